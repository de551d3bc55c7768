package stream

import (
	"testing"
	"time"

	"dinnerbell/stream/campaign"
)

func keysOf(list []startTime) (out []int64) {
	for _, p := range list {
		out = append(out, p.version)
	}
	return out
}

func TestStartTimes(t *testing.T) {
	now := time.Unix(1000, 0)
	k, other := campaign.Key{Campaign: "c", Restaurant: "r"}, campaign.Key{Campaign: "d", Restaurant: "r"}
	const v1, v2 = int64(1), int64(2)
	for name, c := range map[string]struct {
		act  func(a *startTimes)
		want []int64
	}{
		"earliest first": {func(a *startTimes) {
			a.addCommitted(now, startTime{start: 20, key: other, version: v2}, startTime{start: 10, key: k, version: v1})
		}, []int64{v1, v2}},
		"an edit takes the place": {func(a *startTimes) {
			a.addCommitted(now, startTime{start: 10, key: k, version: v1})
			a.addCommitted(now, startTime{start: 20, key: k, version: v2})
		}, []int64{v2}},
		"a reload that read before the edit does not": {func(a *startTimes) {
			a.addCommitted(now, startTime{start: 20, key: k, version: v2})
			a.addLoaded(now, []startTime{{start: 10, key: k, version: v1}})
		}, []int64{v2}},
		"a reload lists what is not listed": {func(a *startTimes) {
			a.addLoaded(now, []startTime{{start: 10, key: k, version: v1}})
			a.addLoaded(now, []startTime{{start: 10, key: k, version: v1}})
		}, []int64{v1}},
		"moved behind the horizon": {func(a *startTimes) {
			a.addCommitted(now, startTime{start: 10, key: k, version: v1})
			a.addCommitted(now, startTime{start: 1000 + 2*3600, key: k, version: v2})
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			a := newStartTimes(maxWaitingStarts)
			c.act(a)
			got := keysOf(a.takeDue(1 << 40))
			if len(got) != len(c.want) {
				t.Fatalf("due %v, want %v", got, c.want)
			}
			for i := range got {
				if got[i] != c.want[i] {
					t.Errorf("due %v, want %v", got, c.want)
				}
			}
			if scheduled, waiting := a.counts(); scheduled+waiting != len(got) {
				t.Errorf("%d are listed still", scheduled+waiting)
			}
		})
	}
}

package takeover

import (
	"errors"
	"strings"
	"testing"

	"dinnerbell/internal/halt"
	"dinnerbell/stream/record"
	"dinnerbell/stream/topic"
)

// The checks of a takeover compare positions that were read before: no server is
// needed for them.
func TestContradictions(t *testing.T) {
	t.Parallel()
	steps := func(seqs ...int64) (out []*record.Payload) {
		for _, seq := range seqs {
			out = append(out, &record.Payload{Seq: seq})
		}
		return out
	}
	for name, c := range map[string]struct {
		seq, shipped, shippedBefore int64
		endsBefore, ends            []int64
		lost                        bool
		outbox                      []*record.Payload
		want                        string // "" goes on
	}{
		"nothing was done":                 {},
		"all is shipped":                   {seq: 7, shipped: 7, shippedBefore: 6, endsBefore: []int64{3, 0}, ends: []int64{3, 5}},
		"two steps wait":                   {seq: 7, shipped: 5, shippedBefore: 5, outbox: steps(6, 7)},
		"the progress is lost":             {seq: 7, shipped: 5, shippedBefore: 5, lost: true, want: "how many of those after 5 are shipped is not known"},
		"K is above P":                     {seq: 7, shipped: 8, shippedBefore: 7, want: "Postgres was rolled back"},
		"K is below the K before":          {seq: 7, shipped: 5, shippedBefore: 6, outbox: steps(6, 7), want: "Kafka was rolled back: topic progress says that steps up to 5 are shipped, it had said 6"},
		"a partition is shorter":           {seq: 7, shipped: 7, endsBefore: []int64{3, 5}, ends: []int64{3, 4}, want: "notifications/1 ends at offset 4, it had reached 5"},
		"the outbox lacks its first step":  {seq: 7, shipped: 5, outbox: steps(7), want: "no longer holds step 6"},
		"the outbox lacks its last step":   {seq: 7, shipped: 5, outbox: steps(6), want: "no longer holds step 7"},
		"the outbox lacks one between":     {seq: 8, shipped: 5, outbox: steps(6, 8), want: "no longer holds step 7"},
		"the outbox is empty and must not": {seq: 7, shipped: 6, want: "no longer holds step 7"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			claim := New(Config{Kafka: topic.Config{Notifications: "notifications", Progress: "progress"}}, 0, Options{})
			claim.Decided, claim.Shipped, claim.ShippedBefore, claim.EndsBefore = c.seq, c.shipped, c.shippedBefore, c.endsBefore
			if c.lost {
				claim.ProgressLost = &topic.ProgressLostError{}
			}
			err := claim.compareSteps()
			if err == nil {
				err = claim.compareEnds(c.ends)
			}
			if err == nil {
				err = claim.checkContiguous(c.shipped, c.outbox)
			}
			if _, halted := errors.AsType[*halt.Error](err); halted != (c.want != "") || halted && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

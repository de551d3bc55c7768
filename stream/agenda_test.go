package stream

import (
	"testing"
	"time"
)

func keysOf(list []appointment) (out []version) {
	for _, p := range list {
		out = append(out, p.version)
	}
	return out
}

func TestAgenda(t *testing.T) {
	now := time.Unix(1000, 0)
	k, other := key{"c", "r"}, key{"d", "r"}
	v1, v2 := version{0, 1}, version{0, 2}
	for name, c := range map[string]struct {
		act  func(a *agenda)
		want []version
	}{
		"earliest first": {func(a *agenda) {
			a.add(now, appointment{20, other, v2}, appointment{10, k, v1})
		}, []version{v1, v2}},
		"an edit takes the place": {func(a *agenda) {
			a.add(now, appointment{10, k, v1})
			a.add(now, appointment{20, k, v2})
		}, []version{v2}},
		"a reload that read before the edit does not": {func(a *agenda) {
			a.add(now, appointment{20, k, v2})
			a.fill(now, []appointment{{10, k, v1}})
		}, []version{v2}},
		"a reload lists what is not listed": {func(a *agenda) {
			a.fill(now, []appointment{{10, k, v1}})
			a.fill(now, []appointment{{10, k, v1}})
		}, []version{v1}},
		"moved behind the horizon": {func(a *agenda) {
			a.add(now, appointment{10, k, v1})
			a.add(now, appointment{1000 + 2*3600, k, v2})
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAgenda()
			c.act(a)
			got := keysOf(a.due(1 << 40))
			if len(got) != len(c.want) {
				t.Fatalf("due %v, want %v", got, c.want)
			}
			for i := range got {
				if got[i] != c.want[i] {
					t.Errorf("due %v, want %v", got, c.want)
				}
			}
			if a.len() != 0 {
				t.Errorf("%d are listed still", a.len())
			}
		})
	}
}

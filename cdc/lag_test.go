package cdc

import (
	"testing"
	"time"

	"dinnerbell/state"
	"dinnerbell/state/id"
)

func TestSourceLag(t *testing.T) {
	t.Parallel()
	base := time.Now()
	at := func(s int) time.Time { return base.Add(time.Duration(s) * time.Second) }
	for name, c := range map[string]struct {
		act     func(g *sourceLag)
		applied id.LSN
		apart   bool // the stream is not connected
		bytes   int64
		behind  time.Duration
		fresh   time.Time
	}{
		"never looked":        {func(*sourceLag) {}, 5, false, -1, -1, time.Time{}},
		"there":               {func(g *sourceLag) { g.noteLook(5, at(-2)) }, 5, false, 0, 0, at(-2)},
		"behind since a look": {func(g *sourceLag) { g.noteLook(5, at(-9)); g.noteLook(8, at(-5)); g.noteLook(11, at(-1)) }, 9, false, 2, 5 * time.Second, at(-5)},
		"the server idles":    {func(g *sourceLag) { g.noteLook(9, at(-9)); g.noteLook(9, at(-1)) }, 9, false, 0, 0, at(-1)},
		"behind since the start": {func(g *sourceLag) {
			g.noteLook(11, at(-1))
			g.noteApplied([]state.TransactionEnd{{End: 4, Time: at(-50)}, {End: 5, Time: at(-40)}})
		}, 5, false, 6, 40 * time.Second, time.Time{}},
		"behind since nobody knows": {func(g *sourceLag) { g.noteLook(11, at(-1)) }, 5, false, 6, -1, time.Time{}},
		"not connected":             {func(g *sourceLag) { g.noteLook(5, at(-2)) }, 5, true, -1, -1, at(-2)},
		"looked too long ago":       {func(g *sourceLag) { g.noteLook(5, at(-16)) }, 5, false, -1, -1, at(-16)},
		"looks in a hurry":          {func(g *sourceLag) { g.noteLook(5, at(-2)); g.noteLook(6, at(-2).Add(time.Millisecond)) }, 6, false, 0, 0, at(-2)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := &sourceLag{}
			c.act(g)
			got := g.readLag(c.applied, !c.apart, base)
			if got.bytes != c.bytes || got.behind.Round(time.Millisecond) != c.behind.Round(time.Millisecond) || !got.fresh.Equal(c.fresh) {
				t.Errorf("got %+v, want %d bytes, %s, fresh %s", got, c.bytes, c.behind, c.fresh)
			}
		})
	}
}

// The memory of a mirror that stays behind is bounded.
func TestSourceLagIsBounded(t *testing.T) {
	t.Parallel()
	g, now := &sourceLag{}, time.Now()
	for i := range 10_000 {
		g.noteLook(id.LSN(i+1), now.Add(time.Duration(i)*time.Second))
	}
	if len(g.looks) > maxLooks {
		t.Errorf("%d looks are remembered, want %d at most", len(g.looks), maxLooks)
	}
	if got := g.readLag(9_999, true, now.Add(9_999*time.Second)); got.bytes != 1 || got.fresh.After(now.Add(9_998*time.Second)) {
		t.Errorf("got %+v", got)
	}
}

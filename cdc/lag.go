package cdc

import (
	"sync"
	"sync/atomic"
	"time"

	"dinnerbell/state"
	"dinnerbell/state/id"
)

// lagUnknownAfter is how long the figures of a look at the server hold. The mirror looks
// every watchEvery while it streams.
const lagUnknownAfter = 5 * watchEvery

const (
	// lookEvery is the least time between two looks that sourceLag remembers: barriers
	// look thousands of times in a second.
	lookEvery = 100 * time.Millisecond
	// maxLooks bounds the looks whose positions are not applied yet.
	maxLooks = 64
)

// sourceLag is how far the local state is behind the server.
type sourceLag struct {
	changes   atomic.Int64 // received and not applied yet
	committed atomic.Int64 // microseconds: commit of the newest applied transaction; 0: none in this process

	mu   sync.Mutex // guards below
	last serverLook
	// looks are those whose positions were not applied when they were last compared,
	// the earliest first.
	looks []serverLook
	// fresh is the newest look whose position is applied: everything that was committed
	// before it is here.
	fresh time.Time
}

// serverLook is the position of a server that was asked at a time: everything that was
// committed before lies before the position.
type serverLook struct {
	position id.LSN
	asked    time.Time
}

// noteLook records the server's position.
func (g *sourceLag) noteLook(position id.LSN, asked time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last = serverLook{position, asked}
	n := len(g.looks)
	switch {
	case n > 0 && g.looks[n-1].position >= position: // the server idles, or another server answers
		g.looks[n-1] = g.last
	case n > 0 && asked.Sub(g.looks[n-1].asked) < lookEvery:
	case n == maxLooks: // of each two the earlier one goes: what is reached later is never taken for fresh
		for i := range maxLooks / 2 {
			g.looks[i] = g.looks[2*i+1]
		}
		g.looks = append(g.looks[:maxLooks/2], g.last)
	default:
		g.looks = append(g.looks, g.last)
	}
}

// noteApplied records the commits of applied transactions and returns the time since the
// oldest commit; ok is false where no transaction ended.
func (g *sourceLag) noteApplied(ends []state.TransactionEnd) (delay time.Duration, ok bool) {
	if len(ends) == 0 {
		return 0, false
	}
	g.committed.Store(ends[len(ends)-1].Time.UnixMicro())
	return max(time.Since(ends[0].Time), 0), true
}

// lag is how far the state is behind at one moment.
type lag struct {
	bytes  int64         // -1: not known
	behind time.Duration // -1: not known
	fresh  time.Time     // zero: not known
}

// readLag compares the server's position with the applied one. connected: the stream brings
// the server's changes; otherwise nobody knows what the server has.
func (g *sourceLag) readLag(applied id.LSN, connected bool, now time.Time) lag {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for ; n < len(g.looks) && g.looks[n].position <= applied; n++ {
		g.fresh = g.looks[n].asked
	}
	g.looks = g.looks[n:]
	out := lag{bytes: -1, behind: -1, fresh: g.fresh}
	switch {
	case !connected || now.Sub(g.last.asked) > lagUnknownAfter:
		return out
	case g.last.position <= applied:
		out.bytes, out.behind = 0, 0
		return out
	}
	out.bytes = int64(g.last.position - applied)
	if since := g.fresh; !since.IsZero() {
		out.behind = max(now.Sub(since), 0)
	} else if us := g.committed.Load(); us > 0 {
		out.behind = max(now.Sub(time.UnixMicro(us)), 0)
	}
	return out
}

package cdc

import (
	"context"
	"sync"
	"sync/atomic"

	"dinnerbell/cdc/pgoutput"
	"dinnerbell/cdc/replication"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

// walReceiver owns the reading half of the stream: it queues the pieces that come
// in. It waits only when the queue is full: then TCP makes the walsender wait too.
type walReceiver struct {
	in     *replication.Reader
	queue  *groupQueue
	status *replication.StatusSender
	stats  *mirrorStats
}

// run returns when the stream ends or is interrupted.
func (r *walReceiver) run(ctx context.Context) error {
	var badBefore, nullBefore int64
	for {
		ev, err := r.in.Next()
		bad, null := r.in.SkippedIDs()
		if bad != badBefore || null != nullBefore {
			r.stats.badIDs.Add(bad - badBefore)
			r.stats.nullIDs.Add(null - nullBefore)
			badBefore, nullBefore = bad, null
		}
		if err != nil {
			return ignoreCanceled(ctx, err)
		}
		if err := r.queueEvent(ctx, &ev); err != nil {
			return err
		}
	}
}

// queueEvent queues a piece, or the position of a keepalive behind all pieces.
func (r *walReceiver) queueEvent(ctx context.Context, ev *replication.Event) error {
	if ev.HasPiece {
		r.status.NoteReceived(ev.Piece.End)
		return r.queue.putPiece(ctx, ev.Piece)
	}
	if ev.WALEnd != 0 {
		r.status.NoteReceived(ev.WALEnd)
		r.queue.putKeepalive(ev.WALEnd, ev.Reply)
	}
	if ev.Reply {
		r.status.SendSoon()
	}
	return nil
}

const (
	// maxQueueBytes bounds the changes that are received and not yet applied. A
	// receiver that waits here does no harm: the status sender goes on without it.
	maxQueueBytes = 16 << 20
	// maxGroupChanges is the size up to which small transactions are applied
	// together. Larger groups gain nothing and make the barrier wait.
	maxGroupChanges = 1024
)

// changeGroup is one call of Apply: whole transactions, or one part of a large one.
// Or a keepalive alone: then batch is empty and nothing is to be applied.
type changeGroup struct {
	batch   state.Batch
	bytes   int
	partial bool // a part of a large transaction
	// observed is a position: everything up to it has been received with this group
	// and those before it.
	observed id.LSN
	// persist asks to bring observed to the disk at once: the server asked for an
	// answer, and may wait for us to shut down.
	persist bool
}

// isEmpty reports whether the group is a keepalive's position only.
func (g *changeGroup) isEmpty() bool { return !g.partial && g.batch.End == 0 }

// groupQueue hands groups from the receiver to the applier. Keepalives go through
// it too, so that a position is never observed before the changes that were
// received ahead of it.
type groupQueue struct {
	ready chan struct{} // cap 1: there may be a group
	space chan struct{} // cap 1: there may be room

	waiting *atomic.Int64 // changes that are received and not applied; for the status

	mu     sync.Mutex // guards all below
	groups []changeGroup
	bytes  int
	free   []state.Batch // empty; their slices are used again
}

// newGroupQueue makes an empty queue for one session: the server sends again what a
// broken session left in its queue.
func newGroupQueue() *groupQueue {
	return &groupQueue{ready: make(chan struct{}, 1), space: make(chan struct{}, 1), waiting: &atomic.Int64{}}
}

// wakeWaiter wakes the one goroutine that waits on a channel of capacity 1.
func wakeWaiter(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// putPiece copies a piece in, and waits while the queue is full. A small transaction
// joins the one before it if the applier has not taken that yet, so that one Apply
// carries everything that came in during the last.
func (q *groupQueue) putPiece(ctx context.Context, p pgoutput.Piece) error {
	for {
		q.mu.Lock()
		if q.bytes == 0 || q.bytes+p.Bytes <= maxQueueBytes {
			q.addLocked(p)
			q.mu.Unlock()
			wakeWaiter(q.ready)
			return nil
		}
		q.mu.Unlock()
		select {
		case <-q.space:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// addLocked appends p.
func (q *groupQueue) addLocked(p pgoutput.Piece) {
	q.bytes += p.Bytes
	q.waiting.Add(int64(len(p.Changes)))
	if n := len(q.groups); n > 0 && !p.Partial {
		tail := &q.groups[n-1]
		if !tail.partial && len(tail.batch.Changes)+len(p.Changes) <= maxGroupChanges {
			tail.batch.Changes = append(tail.batch.Changes, p.Changes...)
			tail.batch.End = p.End
			tail.batch.Transactions = addTransaction(tail.batch.Transactions, &p)
			tail.bytes += p.Bytes
			tail.observed = max(tail.observed, p.End)
			return
		}
	}
	var free state.Batch
	if n := len(q.free); n > 0 {
		free, q.free = q.free[n-1], q.free[:n-1]
	}
	batch := state.Batch{Changes: append(free.Changes, p.Changes...), End: p.End, Transactions: free.Transactions}
	if p.End != 0 {
		batch.Transactions = addTransaction(free.Transactions, &p)
	}
	q.groups = append(q.groups, changeGroup{batch: batch, bytes: p.Bytes, partial: p.Partial, observed: p.End})
}

// addTransaction appends the end of p's transaction. It replaces the one before if that
// brought no changes, so that transactions of other tables need no memory.
func addTransaction(ends []state.TransactionEnd, p *pgoutput.Piece) []state.TransactionEnd {
	if n := len(ends); n > 0 && ends[n-1].Changes == 0 {
		ends = ends[:n-1]
	}
	return append(ends, state.TransactionEnd{Changes: len(p.Changes), End: p.End, Time: p.CommitTime})
}

// putKeepalive queues a position behind everything that came before it.
func (q *groupQueue) putKeepalive(walEnd id.LSN, persist bool) {
	q.mu.Lock()
	if n := len(q.groups); n > 0 && (!q.groups[n-1].partial || q.groups[n-1].batch.End != 0) {
		tail := &q.groups[n-1]
		tail.observed = max(tail.observed, walEnd)
		tail.persist = tail.persist || persist
	} else {
		q.groups = append(q.groups, changeGroup{observed: walEnd, persist: persist})
	}
	q.mu.Unlock()
	wakeWaiter(q.ready)
}

// takeGroup returns the next group, if there is one. The caller gives it back with
// release.
func (q *groupQueue) takeGroup() (changeGroup, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.groups) == 0 {
		return changeGroup{}, false
	}
	g := q.groups[0]
	q.groups[0] = changeGroup{}
	q.groups = q.groups[1:]
	if len(q.groups) == 0 {
		q.groups = nil
	}
	return g, true
}

// releaseGroup frees the memory of an applied group.
func (q *groupQueue) releaseGroup(g changeGroup) {
	q.waiting.Add(-int64(len(g.batch.Changes)))
	clear(g.batch.Changes)
	q.mu.Lock()
	q.bytes -= g.bytes
	if cap(g.batch.Changes) > 0 && len(q.free) < 4 {
		q.free = append(q.free, state.Batch{Changes: g.batch.Changes[:0], Transactions: g.batch.Transactions[:0]})
	}
	q.mu.Unlock()
	wakeWaiter(q.space)
}

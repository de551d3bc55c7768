package cdc

import (
	"context"
	"errors"
	"sync"
	"time"

	"dinnerbell/state/id"
)

const (
	// nudgeAfter is how long a target may take to be reached without help: longer
	// than a commit takes to be decoded and applied, shorter than anybody notices.
	nudgeAfter = 4 * time.Millisecond
	// nudgeUnflushed is nudgeAfter for a target that the server had not flushed
	// yet: either somebody's commit is flushing it, or nobody will before the WAL
	// writer's next round, in up to 200 ms.
	nudgeUnflushed = time.Millisecond
	// nudgeAtMost is the longest pause between two nudges of one waiter.
	nudgeAtMost = time.Second
)

// awaitStrict returns nil once the local state holds everything that was committed
// in Postgres before the call: the changes that the stream sends, and the changes
// of the catalogs that it does not send, such as ATTACH PARTITION.
func (b *freshnessBarrier) awaitStrict(ctx context.Context) error { return b.awaitAnswered(ctx, 0) }

// awaitAnswered is awaitStrict that nudges the stream no sooner than after
// patience.
func (b *freshnessBarrier) awaitAnswered(ctx context.Context, patience time.Duration) error {
	for {
		settled := b.settled.wait()
		r, err := b.queries.joinQuery(ctx, b.stopped)
		if err != nil {
			return err
		}
		if r.changed {
			select {
			case <-settled: // ask again
				continue
			case <-ctx.Done():
				return ctx.Err()
			case <-b.stopped:
				return ErrStopped
			}
		}
		if err = b.awaitTarget(ctx, r, patience); errors.Is(err, errMoved) {
			continue
		}
		if err == nil {
			b.fresh.noteMoment(r.asked)
		}
		return err
	}
}

// awaitStream is awaitStrict without the catalogs: it waits for the changes that
// the stream sends. Rebuild and verification use it, which replace or compare the
// rows themselves.
func (b *freshnessBarrier) awaitStream(ctx context.Context) error {
	for {
		r, err := b.queries.joinQuery(ctx, b.stopped)
		if err != nil {
			return err
		}
		if err = b.awaitTarget(ctx, r, 0); !errors.Is(err, errMoved) {
			return err
		}
	}
}

// awaitTarget waits until the local state has come to the query's target.
//
// Normally a commit or a keepalive brings it there. A target can also lie where the
// server sends neither: inside of a record while the server idles, or behind a
// commit with synchronous_commit = off that waits for the WAL writer. Then a
// transaction of our own brings the stream past the target.
func (b *freshnessBarrier) awaitTarget(ctx context.Context, r *positionQuery, patience time.Duration) error {
	var nudge *time.Timer
	wait := nudgeAfter
	if r.unflushed {
		wait = nudgeUnflushed
	}
	wait = max(wait, patience)
	for {
		at, moved, ok := b.pos.watchEpoch(r.epoch)
		if !ok {
			return errMoved
		}
		if at >= r.target && !b.store.Torn() {
			return nil
		}
		if nudge == nil {
			nudge = time.NewTimer(wait)
			defer nudge.Stop()
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		case <-b.stopped:
			return ErrStopped
		case <-nudge.C:
			b.queries.requestNudge()
			wait = min(wait*8, nudgeAtMost)
			nudge.Reset(wait)
		}
	}
}

// positionQuery is one question to the server how far it is, for all callers that
// came before the question was sent.
type positionQuery struct {
	done      chan struct{} // closed when the fields below are set
	asked     time.Time     // before the query was sent: all that was committed by then lies before target
	target    id.LSN
	unflushed bool   // the server had not flushed target when it was read
	changed   bool   // the catalogs are others than those of the rows; watchCatalogs looks into it
	epoch     uint64 // of the session that served it
}

// queryQueue connects the callers of Barrier with the probe.
type queryQueue struct {
	wake chan struct{} // cap 1: to the probe

	mu sync.Mutex // guards below
	// unsent are the queries that are still to be sent: one, or more when a session
	// ended between taking a query and answering it.
	unsent []*positionQuery
	nudge  bool
}

// joinQuery joins the next query and waits for its answer.
func (q *queryQueue) joinQuery(ctx context.Context, stopped <-chan struct{}) (*positionQuery, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	q.mu.Lock()
	if len(q.unsent) == 0 {
		q.unsent = append(q.unsent, &positionQuery{done: make(chan struct{})})
	}
	r := q.unsent[0]
	q.mu.Unlock()
	wakeWaiter(q.wake)
	select {
	case <-r.done:
		return r, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-stopped:
		return nil, ErrStopped
	}
}

// requestNudge asks for a transaction that moves the stream.
func (q *queryQueue) requestNudge() {
	q.mu.Lock()
	q.nudge = true
	q.mu.Unlock()
	wakeWaiter(q.wake)
}

// takeUnsent returns the queries to be sent, and whether a nudge is wanted. Queries
// that were taken must be answered or put back.
func (q *queryQueue) takeUnsent() (unsent []*positionQuery, nudge bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	unsent, nudge = q.unsent, q.nudge
	q.unsent, q.nudge = nil, false
	return unsent, nudge
}

// putBack keeps unanswered queries for the next session.
func (q *queryQueue) putBack(unsent []*positionQuery) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.unsent = append(q.unsent, unsent...)
}

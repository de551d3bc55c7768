package cdc

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"dinnerbell/cdc/pgoutput"
	"dinnerbell/cdc/source"
	"dinnerbell/cdc/tablecopy"
	"dinnerbell/state"
)

// maxRenewals is how often in a row a rebuild beside the served rows may fail
// before the mirror takes a snapshot in their place: the server may have no slot or
// walsender left for a second stream, or more may be written than can be followed.
const maxRenewals = 5

// renewal rebuilds the rows beside the served ones where the catalogs changed in a
// way that the stream does not report. The stream goes on meanwhile, and a strict
// join waits until the new rows have taken over: see freshnessBarrier.awaitStrict.
//
// It outlives sessions, as a rebuild does that an operator asked for.
type renewal struct {
	m       *Mirror
	wanted  chan string  // cap 1: the reason
	running atomic.Bool  // a rebuild is under way: no other is wanted
	failed  atomic.Int32 // attempts in a row
}

// requestRenewal asks for a rebuild. It returns a *NewSnapshotError if the rows cannot be
// rebuilt beside the served ones.
func (n *renewal) requestRenewal(reason string) error {
	switch {
	case n.running.Load():
	case n.failed.Load() >= maxRenewals:
		n.failed.Store(0)
		return &pgoutput.NewSnapshotError{Reason: reason}
	default:
		select {
		case n.wanted <- reason:
		default:
		}
	}
	return nil
}

// start serves requests until stop.
func (n *renewal) start(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var serving sync.WaitGroup
	serving.Go(func() {
		pause := newBackoff()
		for {
			select {
			case <-ctx.Done():
				return
			case reason := <-n.wanted:
				n.running.Store(true)
				err := n.renewRows(ctx, reason)
				if err == nil {
					pause.Reset()
				} else {
					source.Sleep(ctx, pause.NextBackOff())
				}
				n.running.Store(false)
			}
		}
	})
	return func() { cancel(); serving.Wait() }
}

// renewRows makes one rebuild. Where it fails, the session's next look at the
// catalogs asks again.
func (n *renewal) renewRows(ctx context.Context, reason string) (err error) {
	n.m.log.Info("the catalogs changed; rebuilding the subscriptions beside those that are served", "reason", reason)
	n.m.stats.setRebuildReason(reason)
	working, w, err := n.m.work.beginInstead(ctx, WorkRebuild, reason)
	if err != nil {
		return err // a snapshot in their place is under way
	}
	n.m.stats.snapshots.Add(1)
	_, err = (&onlineRebuild{m: n.m, work: w}).run(working)
	err = n.m.work.endWork(working, w, err)
	switch {
	case err == nil:
		n.failed.Store(0)
		n.m.barrier.settled.notifyAll()
	case ctx.Err() != nil, errors.Is(err, ErrBusy), errors.Is(err, tablecopy.ErrRewritten), errors.Is(err, state.ErrDiskFull):
		n.m.log.Info("the subscriptions were not rebuilt yet", "reason", err)
	default:
		n.failed.Add(1)
		if source.SQLState(err) == source.CodeConfigurationLimit {
			n.failed.Store(maxRenewals)
		}
		n.m.stats.setError(err)
		n.m.log.Warn("could not rebuild the subscriptions beside those that are served", "error", err, "took", time.Since(w.began))
	}
	return err
}

// broadcast wakes everybody who waits for a finding of others.
type broadcast struct {
	mu   sync.Mutex // guards next
	next chan struct{}
}

// wait returns a channel that the next notifyAll closes.
func (s *broadcast) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil {
		s.next = make(chan struct{})
	}
	return s.next
}

func (s *broadcast) notifyAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next != nil {
		close(s.next)
		s.next = nil
	}
}

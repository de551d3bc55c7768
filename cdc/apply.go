package cdc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"dinnerbell/cdc/pgoutput"
	"dinnerbell/cdc/replication"
	"dinnerbell/internal/failpoint"
	"dinnerbell/state"
)

const (
	// persistEvery is how often a position that only keepalives moved goes to the
	// disk, so that a quiet table does not pin WAL.
	persistEvery = time.Second
	// persistBytes is how far the position may move before it goes to the disk at
	// once: other tables may write hundreds of megabytes in a second.
	persistBytes = 8 << 20
	// syncEvery is the least time between two fsyncs.
	syncEvery = 100 * time.Millisecond
)

// applier brings the received changes into the store, in order.
type applier struct {
	store *state.Store
	queue *groupQueue
	pos   *appliedPosition
	gate  *storeGate
	dirty chan struct{} // cap 1: to the syncer

	// holdsGate: a transaction was begun, and the gate is held until its end.
	holdsGate bool

	// awaitRoom waits for room on the disk, see diskWaiter.
	awaitRoom func(ctx context.Context, more int64, why error) error
	// noteNoRoom receives the reason while the disk has no room for a position,
	// which is then not acknowledged, and "" when a batch was written.
	noteNoRoom func(why string)
	// noteApplied receives the transactions that a batch has made visible.
	noteApplied func(ends []state.TransactionEnd)
	// beforeApply is nil outside of tests.
	beforeApply func(*state.Batch)
}

// run applies groups until ctx ends. Rows become visible before they are on disk:
// the syncer follows behind.
func (a *applier) run(ctx context.Context) error {
	defer a.leaveGate()
	tick := time.NewTicker(persistEvery)
	defer tick.Stop()
	for {
		persist := false
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			persist = true
		case <-a.queue.ready:
		}
		for g, ok := a.queue.takeGroup(); ok; g, ok = a.queue.takeGroup() {
			if ctx.Err() != nil {
				return nil
			}
			if err := a.applyGroup(ctx, &g); err != nil {
				return err
			}
			persist = persist || g.persist || g.observed >= a.store.EndLSN()+persistBytes
			a.queue.releaseGroup(g)
		}
		if persist {
			if err := a.persistPosition(ctx); err != nil {
				return err
			}
		}
	}
}

// applyGroup makes one group visible and only then moves the position, so that a
// caller who waits for the position finds the rows.
func (a *applier) applyGroup(ctx context.Context, g *changeGroup) error {
	if !g.isEmpty() {
		if err := a.writeBatch(ctx, &g.batch); err != nil {
			return err
		}
		a.noteApplied(g.batch.Transactions)
	}
	if g.observed != 0 {
		a.pos.advance(g.observed)
	}
	return nil
}

// tryWriteBatch applies a batch, and opens the gate behind a batch that ends a
// transaction.
func (a *applier) tryWriteBatch(ctx context.Context, b *state.Batch) error {
	if !a.holdsGate && !a.gate.enterGate(ctx) {
		return ctx.Err()
	}
	a.holdsGate = true
	if a.beforeApply != nil {
		a.beforeApply(b)
	}
	if b.End == 0 {
		a.pos.inTransaction.Store(true)
	}
	failpoint.Hit("apply/decoded")
	if err := a.store.Apply(b); err != nil {
		if errors.Is(err, state.ErrMissingRow) || errors.Is(err, state.ErrTorn) {
			return &pgoutput.NewSnapshotError{Reason: err.Error()}
		}
		return fmt.Errorf("apply changes up to %s: %w", b.End, err)
	}
	failpoint.Hit("apply/applied")
	a.noteNoRoom("")
	if b.End != 0 {
		a.pos.inTransaction.Store(false)
		a.leaveGate()
		wakeWaiter(a.dirty)
	}
	return nil
}

// leaveGate opens the gate, if the applier holds it.
func (a *applier) leaveGate() {
	if a.holdsGate {
		a.holdsGate = false
		a.gate.leaveGate()
	}
}

// persistPosition stores the position that keepalives brought. It does nothing in
// the middle of a transaction: the transaction would seem to be complete.
func (a *applier) persistPosition(ctx context.Context) error {
	end := a.pos.load()
	if a.gate.InTransaction() {
		return nil
	}
	if end <= a.store.EndLSN() {
		a.noteNoRoom("")
		return nil
	}
	err := a.tryWriteBatch(ctx, &state.Batch{End: end})
	if errors.Is(err, state.ErrDiskFull) { // the write can wait: readers observe the position all the same
		a.leaveGate()
		a.noteNoRoom(err.Error())
		return nil
	}
	return err
}

// syncLoop makes applied changes durable, and only then lets Postgres be told of
// them, as far as the newest checkpoint allows.
func syncLoop(ctx context.Context, store *state.Store, dirty <-chan struct{}, keeper *checkpointKeeper, status *replication.StatusSender) error {
	pace, clock := time.NewTicker(syncEvery), time.NewTicker(keepEvery)
	defer pace.Stop()
	defer clock.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-dirty:
		case <-clock.C:
		}
		lsn, err := store.Sync()
		if err != nil {
			return fmt.Errorf("sync state: %w", err)
		}
		failpoint.Hit("acknowledge/synced")
		if lsn, err = keeper.advanceAcknowledgement(lsn); err != nil {
			return err
		}
		status.NoteDurable(lsn)
		select {
		case <-ctx.Done():
			return nil
		case <-pace.C:
		}
	}
}

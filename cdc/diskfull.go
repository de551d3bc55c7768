package cdc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"dinnerbell/state"
)

// Where the disk is almost full, the store refuses to write, and the mirror waits
// until there is room again. The stream stays open meanwhile: received changes wait
// in the queue and later ones in Postgres; the status sender goes on reporting the
// durable position, so that wal_sender_timeout never strikes; nothing more is
// acknowledged. A position without changes needs no write to be observed, so
// barriers pass as long as no change of a subscription waits. The position is stored
// all the same, out of the reserve, so that a quiet table pins no WAL. The mirror's
// state is disk_full where the reserve, too, is used up.

// roomPoll is the time between two looks at the free room.
const roomPoll = 250 * time.Millisecond

// diskWaiter waits for room on the disk.
type diskWaiter struct {
	store *state.Store
	log   *slog.Logger
	stats *mirrorStats
}

// awaitRoom waits until the disk has the reserve and more bytes beyond it. why is
// the error of the store. Checkpoints go first, see [state.Store.MakeRoom].
func (d *diskWaiter) awaitRoom(ctx context.Context, more int64, why error) error {
	d.log.Warn("the disk is almost full; changes of the subscriptions wait until there is room", "reason", why)
	d.stats.setDiskFull(why.Error())
	defer d.stats.setDiskFull("")
	tick := time.NewTicker(roomPoll)
	defer tick.Stop()
	for {
		err := d.store.MakeRoom(more)
		if err == nil {
			d.log.Info("there is room on the disk again; going on")
			return nil
		}
		if !errors.Is(err, state.ErrDiskFull) {
			return fmt.Errorf("make room on the disk: %w", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// noteNoRoom notes why a position could not be stored; "": it was stored.
func (d *diskWaiter) noteNoRoom(why string) {
	if d.stats.setDiskFull(why) && why != "" {
		d.log.Warn("the disk is full; the source keeps its WAL until there is room", "reason", why)
	}
}

// writeBatch applies a batch as soon as there is room for it.
func (a *applier) writeBatch(ctx context.Context, b *state.Batch) error {
	for {
		outside := !a.holdsGate // else the transaction was begun and must be ended
		err := a.tryWriteBatch(ctx, b)
		if !errors.Is(err, state.ErrDiskFull) {
			return err
		}
		if outside {
			a.leaveGate()
		}
		if outside && len(b.Changes) == 0 {
			a.noteNoRoom(err.Error())
			return nil // a transaction of others, or a nudge: the position needs no write
		}
		if err := a.awaitRoom(ctx, 0, err); err != nil {
			return fmt.Errorf("wait for room on the disk: %w", err)
		}
	}
}

package cdc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/state"
)

// Where the disk is almost full, the store refuses to write, and the mirror
// waits until there is room again. The stream stays open meanwhile: what was
// received waits in the queue, what comes after it waits in Postgres, feedback
// goes on telling what is durable, so that wal_sender_timeout never strikes, and
// nothing more is acknowledged. A position without changes needs no write to be
// observed, so barriers pass as long as no change of a subscription waits. It is
// stored all the same, out of the reserve, so that a quiet table pins no WAL; the
// mirror's state is disk_full where the reserve, too, is used up.

// roomPoll is how often it is looked whether there is room.
const roomPoll = 250 * time.Millisecond

// awaitDiskRoom waits until the disk has the reserve and so many bytes more. why is
// what the store said. Checkpoints go first, see [state.Store.MakeRoom].
func (m *Mirror) awaitDiskRoom(ctx context.Context, more int64, why error) error {
	m.log.Warn("the disk is almost full; changes of the subscriptions wait until there is room", "reason", why)
	m.stats.setDiskFull(why.Error())
	defer m.stats.setDiskFull("")
	tick := time.NewTicker(roomPoll)
	defer tick.Stop()
	for {
		err := m.store.MakeRoom(more)
		if err == nil {
			m.log.Info("there is room on the disk again; going on")
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

// noteNoRoom takes note of why a position could not be stored; "": it was.
func (m *Mirror) noteNoRoom(why string) {
	if m.stats.setDiskFull(why) && why != "" {
		m.log.Warn("the disk is full; the source keeps its WAL until there is room", "reason", why)
	}
}

// awaitRoomForLoad waits after a snapshot that did not fit, until there is room
// for more than it had written by then. The slot goes meanwhile: it would only
// keep WAL on the source for a snapshot that has to be taken anew.
func (m *Mirror) awaitRoomForLoad(ctx context.Context, sql *pgx.Conn, why error) error {
	if err := m.db.DropSlot(ctx, sql); err != nil {
		return errors.Join(why, err)
	}
	if err := m.awaitDiskRoom(ctx, m.loadBytes, why); err != nil {
		return ignoreCanceled(ctx, err)
	}
	return nil
}

// writeBatch applies a batch, as soon as there is room for it.
func (a *applier) writeBatch(ctx context.Context, b *state.Batch) error {
	for {
		between := !a.inTransaction // else the transaction was begun and must be ended
		err := a.tryWriteBatch(ctx, b)
		if !errors.Is(err, state.ErrDiskFull) {
			return err
		}
		if between {
			a.leaveGate()
		}
		if between && len(b.Changes) == 0 {
			a.noteDiskFull(err.Error())
			return nil // somebody else's transaction, a barrier's too: observed is enough
		}
		if err := a.awaitRoom(ctx, 0, err); err != nil {
			return fmt.Errorf("wait for room on the disk: %w", err)
		}
	}
}

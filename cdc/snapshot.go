package cdc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/cdc/source"
	"dinnerbell/cdc/tablecopy"
	"dinnerbell/internal/failpoint"
)

// abandonTimeout bounds how long the end of the daemon waits until a worthless slot
// is dropped.
const abandonTimeout = 5 * time.Second

// tableSnapshot replaces the rows by those of a new slot's snapshot.
type tableSnapshot struct {
	m   *Mirror
	sql *pgx.Conn // the session's connection for catalogs, and free to use
}

// replaceRows drops the mirror's slot, makes it again, and loads the table as of
// the slot's snapshot beside the served rows. When it returns nil, the store holds
// the new rows, durably, and streaming can begin at the slot's start. After an
// error the old rows are still there and the slot is gone: nothing could begin at
// that slot, and it would keep WAL until the next attempt.
func (t *tableSnapshot) replaceRows(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			t.abandonSlot(ctx, err)
		}
	}()
	t.m.work.forbidWork(fmt.Errorf("%w: the mirror takes a new snapshot by itself", ErrBusy))
	defer t.m.work.allowWork()
	t.m.stats.beginSnapshot()
	for range maxAttempts {
		// An attempt waits for open transactions and for the table's locks: during
		// a migration of many statements it takes as long as they do.
		if err = t.tryReplaceRows(ctx); !errors.Is(err, tablecopy.ErrRewritten) {
			break
		}
		t.m.log.Info("the snapshot begins again", "reason", err)
	}
	return err
}

// tryReplaceRows makes one attempt. It returns ErrRewritten if another is needed.
func (t *tableSnapshot) tryReplaceRows(ctx context.Context) error {
	cat, err := t.m.db.Inspect(ctx, t.sql, true)
	if err != nil {
		return err
	}
	if err := t.m.db.DropSlot(ctx, t.sql); err != nil {
		return err
	}
	repl, err := t.m.db.DialReplication(ctx)
	if err != nil {
		return err
	}
	defer source.CloseConn(repl)
	if err := source.CheckSameServer(ctx, repl, cat); err != nil {
		return err
	}
	wait := source.WaitReport{Show: func(text string) { t.m.stats.setError(errors.New(text)) }, After: t.m.hooks.slowSlot}
	slot, err := t.m.db.ExplainSlotWait(ctx, t.sql, t.m.cfg.Slot, repl.PID(), wait, func() (source.CreatedSlot, error) {
		return t.m.db.CreateSlot(ctx, repl, cat.Version)
	})
	if err != nil {
		return err
	}
	failpoint.Hit("snapshot/slot-created")
	if t.m.hooks.slotMade != nil {
		t.m.hooks.slotMade()
	}
	if err = t.loadTable(ctx, slot); err != nil {
		return err
	}
	failpoint.Hit("snapshot/complete")
	t.m.pos.inTransaction.Store(false) // the part belonged to the old rows
	return nil
}

// abandonSlot drops the slot of a snapshot that has failed with cause, also where
// ctx has ended.
func (t *tableSnapshot) abandonSlot(ctx context.Context, cause error) {
	if _, held := errors.AsType[*source.SlotHeldError](cause); held || source.SQLState(cause) == source.CodeDuplicateObject {
		return // the slot belongs to somebody else
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTimeout)
	defer cancel()
	t.m.dropWorthlessSlot(ctx)
}

// loadTable copies the table into a new generation and lets it take over.
func (t *tableSnapshot) loadTable(ctx context.Context, slot source.CreatedSlot) (err error) {
	loader, err := t.m.store.NewGeneration()
	if err != nil {
		return fmt.Errorf("begin snapshot: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, loader.Abort())
		}
	}()
	c, err := tablecopy.Copy(ctx, t.m.db, t.m.copyRequest(slot.Snapshot, "", loader, &t.m.stats.copy))
	t.m.loadBytes = loader.DiskBytes()*5/4 + 1<<20 // for the next try, if this one does not fit
	if err != nil {
		return err
	}
	t.m.loadBytes *= 2 // Finish writes the tables beside the collected runs
	t.m.stats.badIDs.Add(c.BadIDs)
	t.m.stats.nullIDs.Add(c.Nulls)
	failpoint.Hit("snapshot/copied")
	if err := loader.Finish(c.Cat.Source, slot.Start); err != nil {
		return fmt.Errorf("finish snapshot: %w", err)
	}
	t.m.log.Info("snapshot is complete", "table", t.m.cfg.QuotedTable(), "rows", c.Rows, "lsn", slot.Start.String())
	return nil
}

// copyRequest returns a request to copy the table, with the mirror's hooks.
func (m *Mirror) copyRequest(snapshot, only string, sink tablecopy.RowSink, p *tablecopy.Counter) tablecopy.Request {
	return tablecopy.Request{Snapshot: snapshot, Only: only, Sink: sink, Progress: p, Limits: m.cfg.copyLimits, Locked: m.hooks.locked, Copied: m.hooks.copied}
}

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

// abandonTimeout bounds what an end of the daemon waits for a worthless slot to be
// dropped.
const abandonTimeout = 5 * time.Second

// replaceRows drops our slot, makes it again, and loads the table as the slot's
// snapshot shows it beside the state that is being served. When it returns nil,
// the store holds the new rows, durably, and streaming can begin at the slot's
// start. On an error the old rows are still there and the slot is gone: nothing
// could begin there, and it would keep WAL until the next attempt.
//
// sql is the session's connection for catalogs, and free to use.
func (m *Mirror) replaceRows(ctx context.Context, sql *pgx.Conn) (err error) {
	defer func() {
		if err != nil {
			m.abandonSlot(ctx, err)
		}
	}()
	m.work.forbid(fmt.Errorf("%w: the mirror takes a new snapshot by itself", ErrBusy))
	defer m.work.allow()
	m.stats.beginSnapshot()
	for range maxAttempts {
		// An attempt waits for open transactions, and for the table's locks: in a
		// migration of many statements it takes as long as they do.
		if err = m.tryReplaceRows(ctx, sql); !errors.Is(err, tablecopy.ErrRewritten) {
			break
		}
		m.log.Info("the snapshot begins again", "reason", err)
	}
	return err
}

// tryReplaceRows is one attempt. It returns ErrRewritten if another is needed.
func (m *Mirror) tryReplaceRows(ctx context.Context, sql *pgx.Conn) error {
	cat, err := m.db.Inspect(ctx, sql, true)
	if err != nil {
		return err
	}
	if err := m.db.DropSlot(ctx, sql); err != nil {
		return err
	}
	repl, err := m.db.DialReplication(ctx)
	if err != nil {
		return err
	}
	defer source.CloseConn(repl)
	if err := source.CheckSameServer(ctx, repl, cat); err != nil {
		return err
	}
	wait := source.WaitReport{Show: func(text string) { m.stats.setError(errors.New(text)) }, After: m.hooks.slowSlot}
	slot, err := m.db.ExplainSlotWait(ctx, sql, m.cfg.Slot, repl.PID(), wait, func() (source.CreatedSlot, error) {
		return m.db.CreateSlot(ctx, repl, cat.Version)
	})
	if err != nil {
		return err
	}
	failpoint.Hit("snapshot/slot-created")
	if m.hooks.slotMade != nil {
		m.hooks.slotMade()
	}
	if err = m.loadTable(ctx, slot); err != nil {
		return err
	}
	failpoint.Hit("snapshot/complete")
	m.pos.partial.Store(false) // parts were of the old rows
	return nil
}

// abandonSlot drops the slot of a snapshot that has failed with cause, also where
// ctx has ended.
func (m *Mirror) abandonSlot(ctx context.Context, cause error) {
	if _, held := errors.AsType[*source.SlotHeldError](cause); held || source.SQLState(cause) == source.CodeDuplicateObject {
		return // it is somebody else's
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTimeout)
	defer cancel()
	m.dropWorthlessSlot(ctx)
}

// loadTable copies the table into a new generation and lets it take over.
func (m *Mirror) loadTable(ctx context.Context, slot source.CreatedSlot) (err error) {
	loader, err := m.store.NewGeneration()
	if err != nil {
		return fmt.Errorf("begin snapshot: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, loader.Abort())
		}
	}()
	c, err := tablecopy.Copy(ctx, m.db, m.copyRequest(slot.Snapshot, "", loader, &m.stats.copy))
	m.loadBytes = loader.DiskBytes()*5/4 + 1<<20 // for the next try, if this one does not fit
	if err != nil {
		return err
	}
	m.loadBytes *= 2 // tables are made of what was collected beside it
	m.stats.badIDs.Add(c.BadIDs)
	m.stats.nullIDs.Add(c.Nulls)
	failpoint.Hit("snapshot/copied")
	if err := loader.Finish(c.Cat.Source, slot.Start); err != nil {
		return fmt.Errorf("finish snapshot: %w", err)
	}
	m.log.Info("snapshot is complete", "table", m.cfg.QuotedTable(), "rows", c.Rows, "lsn", slot.Start.String())
	return nil
}

// Request is a copy of the table with the mirror's hooks.
func (m *Mirror) copyRequest(snapshot, only string, sink tablecopy.RowSink, p *tablecopy.Counter) tablecopy.Request {
	return tablecopy.Request{Snapshot: snapshot, Only: only, Sink: sink, Progress: p, Limits: m.cfg.copyLimits, Locked: m.hooks.locked, Copied: m.hooks.copied}
}

package cdc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/failpoint"
	"dinnerbell/state"
)

// slowSlot is when the wait for a slot is explained to the operator.
const slowSlot = 10 * time.Second

// rebuild drops our slot, makes it again, and loads the table as the slot's
// snapshot shows it beside the state that is being served. When it returns nil,
// the store holds the new rows, durably, and streaming can begin at the slot's
// start. On an error the old rows are still there.
//
// sql is the session's connection for catalogs, and free to use.
func (m *Mirror) rebuild(ctx context.Context, sql *pgx.Conn) error {
	m.stats.beginSnapshot()
	if err := m.dropSlot(ctx, sql); err != nil {
		return err
	}
	cat, err := m.cfg.inspect(ctx, sql)
	if err != nil {
		return err
	}
	repl, err := m.cfg.dialReplication(ctx)
	if err != nil {
		return err
	}
	defer closeConn(repl)
	if err := sameServer(ctx, repl, cat); err != nil {
		return err
	}
	slot, err := m.createSlot(ctx, sql, repl, cat.version)
	if err != nil {
		return err
	}
	failpoint.Hit("snapshot/slot-created")
	if err := m.load(ctx, slot); err != nil {
		return err
	}
	failpoint.Hit("snapshot/complete")
	m.pos.parts.Store(false) // parts were of the old rows
	return nil
}

// createSlot is Config.createSlot that says what it waits for.
func (m *Mirror) createSlot(ctx context.Context, sql *pgx.Conn, repl *pgconn.PgConn, version int) (newSlot, error) {
	ctx, cancel := context.WithCancel(ctx)
	explained := make(chan struct{})
	go func() {
		defer close(explained)
		if sleep(ctx, slowSlot) {
			m.explainSlot(ctx, sql)
		}
	}()
	slot, err := m.cfg.createSlot(ctx, repl, version)
	cancel()
	<-explained
	return slot, err
}

// explainSlot names the oldest of the transactions that a new slot waits for.
func (m *Mirror) explainSlot(ctx context.Context, sql *pgx.Conn) {
	var pid int32
	var app, since string
	err := sql.QueryRow(ctx, `
		SELECT pid, coalesce(application_name, ''), coalesce(xact_start::text, '') FROM pg_stat_activity
		WHERE backend_xid IS NOT NULL ORDER BY xact_start LIMIT 1`).Scan(&pid, &app, &since)
	if err != nil {
		m.log.Warn("creating the slot waits for open transactions", "slot", m.cfg.Slot)
		return
	}
	m.log.Warn("creating the slot waits for open transactions; this is the oldest",
		"slot", m.cfg.Slot, "pid", pid, "application_name", app, "since", since)
}

// load copies the table, on a connection of its own, into a new generation.
func (m *Mirror) load(ctx context.Context, slot newSlot) (err error) {
	sql, err := m.cfg.dialSQL(ctx)
	if err != nil {
		return err
	}
	defer closeConn(sql.PgConn())
	if err := takeSnapshot(ctx, sql, slot.snapshot); err != nil {
		return err
	}
	// Inspected under the snapshot: the rows belong to exactly these catalogs.
	cat, err := m.cfg.inspect(ctx, sql)
	if err != nil {
		return err
	}
	m.stats.expectRows(cat.rows)
	loader, err := m.store.NewGeneration()
	if err != nil {
		return fmt.Errorf("begin snapshot: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, loader.Abort())
		}
	}()
	in := m.copyReader(cat, loader)
	if _, err := sql.PgConn().CopyTo(ctx, in, m.cfg.copySQL(cat)); err != nil {
		return m.explainCopy(err)
	}
	if !in.ended {
		return fmt.Errorf("copy %s: it ended early: %w", m.cfg.table(), errMalformed)
	}
	m.stats.badIDs.Add(in.badIDs)
	m.stats.nullIDs.Add(in.nulls)
	m.stats.snapshotRows.Store(in.rows)
	failpoint.Hit("snapshot/copied")
	if err := loader.Finish(cat.source, slot.start); err != nil {
		return fmt.Errorf("finish snapshot: %w", err)
	}
	m.log.Info("snapshot is complete", "table", m.cfg.table(), "rows", in.rows, "lsn", slot.start.String())
	return nil
}

// takeSnapshot begins a transaction that sees what the slot's start saw.
// row_security off makes a policy an error instead of a silent filter.
func takeSnapshot(ctx context.Context, sql *pgx.Conn, snapshot string) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	quoted, err := sql.PgConn().EscapeString(snapshot)
	if err != nil {
		return fmt.Errorf("take snapshot: %w", err)
	}
	_, err = sql.Exec(ctx, "BEGIN READ ONLY, ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '"+quoted+
		"'; SET LOCAL row_security = off", pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return fmt.Errorf("take snapshot: %w", err)
	}
	return nil
}

// copyReader counts rows as they go into the loader.
func (m *Mirror) copyReader(cat *catalog, loader *state.Loader) *copyReader {
	in := &copyReader{}
	_, in.integers = copyColumns(cat.columns)
	in.add = func(row state.RowID, restaurant, client state.ID) error {
		if in.rows&1023 == 0 {
			m.stats.snapshotRows.Store(in.rows)
		}
		return loader.Add(row, restaurant, client)
	}
	return in
}

// copySQL is the COPY of the needed columns.
func (c *Config) copySQL(cat *catalog) string {
	list, _ := copyColumns(cat.columns)
	from := " FROM ONLY "
	if cat.partitioned {
		from = " FROM "
	}
	return "COPY (SELECT " + strings.Join(list[:], ", ") + from + c.table() + ") TO STDOUT (FORMAT binary)"
}

// explainCopy turns what an operator has to mend into a halt.
func (m *Mirror) explainCopy(err error) error {
	switch {
	case sqlState(err) == codeInsufficientPrivilege:
		return halt("GRANT SELECT ON "+m.cfg.table()+" TO …, or BYPASSRLS to the role", "the role in source.url may not read all of %s: %v", m.cfg.table(), err)
	case errors.Is(err, state.ErrDuplicateRow):
		return halt("set source.columns.id to a unique key", "key %s of %s is not unique: %v", m.cfg.key(), m.cfg.table(), err)
	}
	return fmt.Errorf("copy %s: %w", m.cfg.table(), err)
}

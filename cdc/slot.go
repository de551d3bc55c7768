package cdc

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/state/id"
)

const (
	plugin = "pgoutput"
	// sideSuffix follows our slot's name in that of a side stream's.
	sideSuffix = "_side_"
	// failoverVersion is the first whose slots can survive a failover.
	failoverVersion = 17_00_00
	// releaseTimeout is how long an ended walsender may take to let go.
	releaseTimeout = 5 * time.Second
)

// Values of pg_replication_slots.wal_status. An unreserved slot may be lost at
// the next checkpoint and can still be saved by reading on; a lost one cannot.
const (
	slotUnreserved = "unreserved"
	slotLost       = "lost"
)

// slotStatus is our row of pg_replication_slots.
// https://www.postgresql.org/docs/current/view-pg-replication-slots.html
type slotStatus struct {
	exists      bool
	pid         int32  // who uses it, 0: nobody
	confirmed   id.LSN // everything before it is gone for us
	restart     id.LSN // 0: no WAL is kept
	walStatus   string // reserved, extended, unreserved, lost
	safeWALSize int64  // bytes until it may be lost; -1: no limit
	keepSize    int64  // max_slot_wal_keep_size in bytes; -1: no limit
	invalid     string // why Postgres gave the slot up; "" if it did not, or does not tell (before 17)
}

// lossReason says what happened to a slot that is lost.
func (s *slotStatus) lossReason() string {
	switch {
	case s.invalid == "idle_timeout":
		return "wal_status lost: nobody read it for longer than idle_replication_slot_timeout"
	case s.invalid == "wal_removed" || s.invalid == "" && s.walStatus == slotLost:
		return "wal_status lost: it was behind by more than max_slot_wal_keep_size"
	case s.invalid != "":
		return "invalidated: " + s.invalid
	}
	return "wal_status " + s.walStatus + ", no position"
}

// isLost says that WAL which the slot needs is gone.
func (s *slotStatus) isLost() bool {
	return s.walStatus == slotLost || s.invalid != "" || s.restart == 0 || s.confirmed == 0
}

// readSlot looks at our slot. A slot of this name that is not of our kind
// belongs to somebody else and is a halt: it is never dropped.
func (db *DB) readSlot(ctx context.Context, sql *pgx.Conn) (slotStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	var s slotStatus
	var ours bool
	var confirmed, restart string
	err := sql.QueryRow(ctx, `
		SELECT coalesce(plugin = $2 AND database = current_database() AND NOT temporary, false),
		       coalesce(active_pid, 0), coalesce(confirmed_flush_lsn, '0/0')::text, coalesce(restart_lsn, '0/0')::text,
		       coalesce(wal_status, ''), coalesce(safe_wal_size, -1), coalesce(to_jsonb(s)->>'invalidation_reason', ''),
		       (`+keepSizeSQL+`)
		FROM pg_replication_slots s WHERE slot_name = $1`, db.cfg.Slot, plugin).
		Scan(&ours, &s.pid, &confirmed, &restart, &s.walStatus, &s.safeWALSize, &s.invalid, &s.keepSize)
	if errors.Is(err, pgx.ErrNoRows) {
		return slotStatus{keepSize: -1}, nil
	}
	if err != nil {
		return s, fmt.Errorf("read slot %s: %w", db.cfg.Slot, err)
	}
	if !ours {
		return s, newHalt("set source.slot to a name that is free", "slot %s belongs to something else: it is not a %s slot of this database", db.cfg.Slot, plugin)
	}
	s.exists = true
	if s.confirmed, err = id.ParseLSN(confirmed); err != nil {
		return s, fmt.Errorf("read slot %s: %w", db.cfg.Slot, err)
	}
	if s.restart, err = id.ParseLSN(restart); err != nil {
		return s, fmt.Errorf("read slot %s: %w", db.cfg.Slot, err)
	}
	return s, nil
}

// releaseSlot gets the slot free. A walsender under our own name is what is left of
// us when we were killed: it is ended. Any other is left alone and named in a
// *slotHeldError.
func (db *DB) releaseSlot(ctx context.Context, sql *pgx.Conn, s slotStatus) error {
	if s.pid == 0 {
		return nil
	}
	held, err := db.readSlotHolder(ctx, sql, s.pid)
	if err != nil || held == nil {
		return err
	}
	if held.app != db.cfg.ApplicationName {
		return held
	}
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	if err := db.endLeftoverBackend(ctx, sql, s.pid, "walsender"); err != nil {
		return err
	}
	return db.awaitSlotRelease(ctx, sql, held)
}

// endLeftoverBackend ends a backend under our own name that a former run left behind.
func (db *DB) endLeftoverBackend(ctx context.Context, sql *pgx.Conn, pid int32, kind string) error {
	db.log.Info("ending our own backend that a former run left behind", "slot", db.cfg.Slot, "pid", pid, "backend_type", kind)
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	// Asked again in the same statement: the PID may be somebody else's by now.
	_, err := sql.Exec(ctx, `
		SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE pid = $1 AND application_name = $2 AND backend_type = $3`, pid, db.cfg.ApplicationName, kind)
	if err != nil {
		return fmt.Errorf("end %s %d: %w", kind, pid, err)
	}
	return nil
}

// awaitSlotRelease waits for an ended walsender to be gone.
func (db *DB) awaitSlotRelease(ctx context.Context, sql *pgx.Conn, held *slotHeldError) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		s, err := db.readSlot(ctx, sql)
		if err != nil {
			return err
		}
		if s.pid != held.pid {
			return nil
		}
		if !sleep(ctx, pause) {
			return held
		}
	}
}

// readSlotHolder tells who a backend is; nil if it is gone. The address of another
// role's backend is shown to members of pg_read_all_stats only.
func (db *DB) readSlotHolder(ctx context.Context, sql *pgx.Conn, pid int32) (*slotHeldError, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	h := &slotHeldError{slot: db.cfg.Slot, pid: pid}
	err := sql.QueryRow(ctx, `
		SELECT coalesce(application_name, ''), coalesce(usename, ''), coalesce(host(client_addr), CASE client_port WHEN -1 THEN 'local' ELSE 'hidden' END)
		FROM pg_stat_activity WHERE pid = $1`, pid).Scan(&h.app, &h.role, &h.address)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil //nolint:nilnil // a backend that is gone is an answer
	}
	if err != nil {
		return nil, fmt.Errorf("look who holds slot %s: %w", db.cfg.Slot, err)
	}
	return h, nil
}

// dropSlot drops our slot, if there is one.
func (db *DB) dropSlot(ctx context.Context, sql *pgx.Conn) error {
	s, err := db.readSlot(ctx, sql)
	if err != nil || !s.exists {
		return err
	}
	if err := db.releaseSlot(ctx, sql, s); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	_, err = sql.Exec(ctx, `SELECT pg_drop_replication_slot($1)`, db.cfg.Slot)
	switch sqlState(err) {
	case "":
	case codeUndefinedObject:
		return nil
	case codeObjectInUse:
		return &slotHeldError{slot: db.cfg.Slot, app: "unknown", role: "unknown", address: "unknown"}
	case codeInsufficientPrivilege:
		return db.haltNoReplication(err)
	}
	if err != nil {
		return fmt.Errorf("drop slot %s: %w", db.cfg.Slot, err)
	}
	return nil
}

// createdSlot is a slot and the snapshot that shows the database as of its start.
type createdSlot struct {
	start    id.LSN
	snapshot string // valid until the next command on the connection
}

// createSlot makes our slot. It waits for transactions that are running.
func (db *DB) createSlot(ctx context.Context, conn *pgconn.PgConn, version int) (createdSlot, error) {
	var r pglogrepl.CreateReplicationSlotResult
	var err error
	if version >= failoverVersion {
		// pglogrepl has no option for it.
		r, err = pglogrepl.ParseCreateReplicationSlot(conn.Exec(ctx,
			"CREATE_REPLICATION_SLOT "+db.cfg.Slot+" LOGICAL "+plugin+" (SNAPSHOT 'export', FAILOVER true)"))
	} else {
		r, err = pglogrepl.CreateReplicationSlot(ctx, conn, db.cfg.Slot, plugin,
			pglogrepl.CreateReplicationSlotOptions{Mode: pglogrepl.LogicalReplication, SnapshotAction: "EXPORT_SNAPSHOT"})
	}
	if err != nil {
		return createdSlot{}, fmt.Errorf("create slot %s: %w", db.cfg.Slot, err)
	}
	start, err := id.ParseLSN(r.ConsistentPoint)
	if err != nil {
		return createdSlot{}, fmt.Errorf("create slot %s: %w", db.cfg.Slot, err)
	}
	return createdSlot{start: start, snapshot: r.SnapshotName}, nil
}

// ExplainSlotInUse explains "replication slot is active for PID".
func (db *DB) ExplainSlotInUse(ctx context.Context, sql *pgx.Conn, cause error) error {
	slot, err := db.readSlot(ctx, sql)
	if err != nil {
		return err
	}
	if held, err := db.readSlotHolder(ctx, sql, slot.pid); err == nil && held != nil {
		return held
	}
	return cause
}

// sideSlotName is a slot name that is nobody's.
func sideSlotName(slot string) string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	suffix := sideSuffix + hex.EncodeToString(b[:])
	return slot[:min(len(slot), maxIdentifier-len(suffix))] + suffix
}

// CreateTemporarySlot makes a slot that the server drops with the connection. It
// waits for transactions that are running.
func CreateTemporarySlot(ctx context.Context, conn *pgconn.PgConn, name string) (createdSlot, error) {
	r, err := pglogrepl.CreateReplicationSlot(ctx, conn, name, plugin,
		pglogrepl.CreateReplicationSlotOptions{Temporary: true, Mode: pglogrepl.LogicalReplication, SnapshotAction: "EXPORT_SNAPSHOT"})
	if sqlState(err) == codeConfigurationLimit {
		return createdSlot{}, fmt.Errorf("make temporary slot: %w; it needs one more of max_replication_slots and of max_wal_senders than the mirror alone", err)
	}
	if err != nil {
		return createdSlot{}, fmt.Errorf("make temporary slot: %w", err)
	}
	start, err := id.ParseLSN(r.ConsistentPoint)
	return createdSlot{start: start, snapshot: r.SnapshotName}, err
}

// importSnapshot begins a transaction that sees what the slot's start saw.
func importSnapshot(ctx context.Context, sql *pgx.Conn, snapshot string) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	_, err := sql.Exec(ctx, "BEGIN READ ONLY, ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '"+
		strings.ReplaceAll(snapshot, "'", "''")+"'", pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return fmt.Errorf("take snapshot: %w", err)
	}
	return nil
}

// exportSnapshot lets further connections import the snapshot of sql's transaction.
func exportSnapshot(ctx context.Context, sql *pgx.Conn) (name string, err error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	if err := sql.QueryRow(ctx, `SELECT pg_export_snapshot()`).Scan(&name); err != nil {
		return "", fmt.Errorf("export snapshot: %w", err)
	}
	return name, nil
}

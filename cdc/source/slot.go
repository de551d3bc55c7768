package source

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

	"dinnerbell/internal/postgres"
	"dinnerbell/state/id"
)

const (
	plugin = "pgoutput"
	// sideSuffix follows the mirror's slot name in that of a side stream.
	sideSuffix = "_side_"
	// FailoverVersion is the first version whose slots can survive a failover.
	FailoverVersion = 17_00_00
	// releaseTimeout is how long an ended walsender may take to release the slot.
	releaseTimeout = 5 * time.Second
)

// Values of pg_replication_slots.wal_status. An unreserved slot may be lost at
// the next checkpoint and can still be saved by reading on; a lost one cannot.
const (
	SlotUnreserved = "unreserved"
	SlotLost       = "lost"
)

// SlotStatus is the mirror's row of pg_replication_slots.
// https://www.postgresql.org/docs/current/view-pg-replication-slots.html
type SlotStatus struct {
	Exists      bool
	pid         int32  // of the backend that uses the slot; 0: nobody
	Confirmed   id.LSN // the slot sends nothing before it
	Restart     id.LSN // 0: no WAL is kept
	WALStatus   string // reserved, extended, unreserved, lost
	SafeWALSize int64  // bytes until the slot may be lost; -1: no limit
	KeepSize    int64  // max_slot_wal_keep_size in bytes; -1: no limit
	Invalid     string // why Postgres gave the slot up; "" if it did not, or gives no reason (before 17)
}

// LossReason returns why a slot is lost.
func (s *SlotStatus) LossReason() string {
	switch {
	case s.Invalid == "idle_timeout":
		return "wal_status lost: nobody read it for longer than idle_replication_slot_timeout"
	case s.Invalid == "wal_removed" || s.Invalid == "" && s.WALStatus == SlotLost:
		return "wal_status lost: it was behind by more than max_slot_wal_keep_size"
	case s.Invalid != "":
		return "invalidated: " + s.Invalid
	}
	return "wal_status " + s.WALStatus + ", no position"
}

// IsLost reports whether WAL that the slot needs is gone.
func (s *SlotStatus) IsLost() bool {
	return s.WALStatus == SlotLost || s.Invalid != "" || s.Restart == 0 || s.Confirmed == 0
}

// ReadSlot reads the mirror's slot. A slot of this name and of another kind belongs
// to somebody else and is a halt: it is never dropped.
func (db *DB) ReadSlot(ctx context.Context, sql *pgx.Conn) (SlotStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, QueryTimeout)
	defer cancel()
	var s SlotStatus
	var ours bool
	var confirmed, restart string
	err := sql.QueryRow(ctx, `
		SELECT coalesce(plugin = $2 AND database = current_database() AND NOT temporary, false),
		       coalesce(active_pid, 0), coalesce(confirmed_flush_lsn, '0/0')::text, coalesce(restart_lsn, '0/0')::text,
		       coalesce(wal_status, ''), coalesce(safe_wal_size, -1), coalesce(to_jsonb(s)->>'invalidation_reason', ''),
		       (`+keepSizeSQL+`)
		FROM pg_replication_slots s WHERE slot_name = $1`, db.cfg.Slot, plugin).
		Scan(&ours, &s.pid, &confirmed, &restart, &s.WALStatus, &s.SafeWALSize, &s.Invalid, &s.KeepSize)
	if errors.Is(err, pgx.ErrNoRows) {
		return SlotStatus{KeepSize: -1}, nil
	}
	if err != nil {
		return s, fmt.Errorf("read slot %s: %w", db.cfg.Slot, err)
	}
	if !ours {
		return s, NewHalt("set source.slot to a name that is free", "slot %s belongs to something else: it is not a %s slot of this database", db.cfg.Slot, plugin)
	}
	s.Exists = true
	if s.Confirmed, err = id.ParseLSN(confirmed); err != nil {
		return s, fmt.Errorf("read slot %s: %w", db.cfg.Slot, err)
	}
	if s.Restart, err = id.ParseLSN(restart); err != nil {
		return s, fmt.Errorf("read slot %s: %w", db.cfg.Slot, err)
	}
	return s, nil
}

// ReleaseSlot frees the slot. A walsender under the mirror's own name is a leftover
// of a run that was killed, and is ended. Any other is left alone and named in a
// *SlotHeldError.
func (db *DB) ReleaseSlot(ctx context.Context, sql *pgx.Conn, s SlotStatus) error {
	if s.pid == 0 {
		return nil
	}
	held, err := db.readSlotHolder(ctx, sql, s.pid)
	if err != nil || held == nil {
		return err
	}
	if held.App != db.cfg.ApplicationName {
		return held
	}
	ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
	defer cancel()
	if err := db.endLeftoverBackend(ctx, sql, s.pid, "walsender"); err != nil {
		return err
	}
	return db.awaitSlotRelease(ctx, sql, held)
}

// endLeftoverBackend ends a backend under the mirror's own name that a former run
// left behind.
func (db *DB) endLeftoverBackend(ctx context.Context, sql *pgx.Conn, pid int32, kind string) error {
	db.log.Info("ending our own backend that a former run left behind", "slot", db.cfg.Slot, "pid", pid, "backend_type", kind)
	ctx, cancel := context.WithTimeout(ctx, QueryTimeout)
	defer cancel()
	// The statement looks the PID up again: it may be somebody else's by now.
	_, err := sql.Exec(ctx, `
		SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE pid = $1 AND application_name = $2 AND backend_type = $3`, pid, db.cfg.ApplicationName, kind)
	if err != nil {
		return fmt.Errorf("end %s %d: %w", kind, pid, err)
	}
	return nil
}

// awaitSlotRelease waits for an ended walsender to be gone.
func (db *DB) awaitSlotRelease(ctx context.Context, sql *pgx.Conn, held *SlotHeldError) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		s, err := db.ReadSlot(ctx, sql)
		if err != nil {
			return err
		}
		if s.pid != held.PID {
			return nil
		}
		if !Sleep(ctx, pause) {
			return held
		}
	}
}

// readSlotHolder describes a backend; nil if it is gone. Postgres shows the address
// of another role's backend to members of pg_read_all_stats only.
func (db *DB) readSlotHolder(ctx context.Context, sql *pgx.Conn, pid int32) (*SlotHeldError, error) {
	ctx, cancel := context.WithTimeout(ctx, QueryTimeout)
	defer cancel()
	h := &SlotHeldError{Slot: db.cfg.Slot, PID: pid}
	err := sql.QueryRow(ctx, `
		SELECT coalesce(application_name, ''), coalesce(usename, ''), coalesce(host(client_addr), CASE client_port WHEN -1 THEN 'local' ELSE 'hidden' END)
		FROM pg_stat_activity WHERE pid = $1`, pid).Scan(&h.App, &h.Role, &h.Address)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil //nolint:nilnil // a backend that is gone is an answer
	}
	if err != nil {
		return nil, fmt.Errorf("read holder of slot %s: %w", db.cfg.Slot, err)
	}
	return h, nil
}

// DropSlot drops the mirror's slot, if there is one.
func (db *DB) DropSlot(ctx context.Context, sql *pgx.Conn) error {
	s, err := db.ReadSlot(ctx, sql)
	if err != nil || !s.Exists {
		return err
	}
	if err := db.ReleaseSlot(ctx, sql, s); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, QueryTimeout)
	defer cancel()
	_, err = sql.Exec(ctx, `SELECT pg_drop_replication_slot($1)`, db.cfg.Slot)
	switch SQLState(err) {
	case "":
	case CodeUndefinedObject:
		return nil
	case CodeObjectInUse:
		return &SlotHeldError{Slot: db.cfg.Slot, App: "unknown", Role: "unknown", Address: "unknown"}
	case CodeInsufficientPrivilege:
		return db.haltNoReplication(err)
	}
	if err != nil {
		return fmt.Errorf("drop slot %s: %w", db.cfg.Slot, err)
	}
	return nil
}

// CreatedSlot is a slot and the snapshot that shows the database as of its start.
type CreatedSlot struct {
	Start    id.LSN
	Snapshot string // valid until the next command on the connection
}

// CreateSlot makes the mirror's slot. It waits for running transactions.
func (db *DB) CreateSlot(ctx context.Context, conn *pgconn.PgConn, version int) (CreatedSlot, error) {
	var r pglogrepl.CreateReplicationSlotResult
	var err error
	if version >= FailoverVersion {
		// pglogrepl has no option for it.
		r, err = pglogrepl.ParseCreateReplicationSlot(conn.Exec(ctx,
			"CREATE_REPLICATION_SLOT "+db.cfg.Slot+" LOGICAL "+plugin+" (SNAPSHOT 'export', FAILOVER true)"))
	} else {
		r, err = pglogrepl.CreateReplicationSlot(ctx, conn, db.cfg.Slot, plugin,
			pglogrepl.CreateReplicationSlotOptions{Mode: pglogrepl.LogicalReplication, SnapshotAction: "EXPORT_SNAPSHOT"})
	}
	if err != nil {
		return CreatedSlot{}, fmt.Errorf("create slot %s: %w", db.cfg.Slot, err)
	}
	start, err := id.ParseLSN(r.ConsistentPoint)
	if err != nil {
		return CreatedSlot{}, fmt.Errorf("create slot %s: %w", db.cfg.Slot, err)
	}
	return CreatedSlot{Start: start, Snapshot: r.SnapshotName}, nil
}

// ExplainSlotInUse replaces the error "replication slot is active for PID" by one
// that names the holder.
func (db *DB) ExplainSlotInUse(ctx context.Context, sql *pgx.Conn, cause error) error {
	slot, err := db.ReadSlot(ctx, sql)
	if err != nil {
		return err
	}
	if held, err := db.readSlotHolder(ctx, sql, slot.pid); err == nil && held != nil {
		return held
	}
	return cause
}

// SideSlotName returns a slot name that nobody uses.
func SideSlotName(slot string) string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	suffix := sideSuffix + hex.EncodeToString(b[:])
	return slot[:min(len(slot), postgres.MaxIdentifier-len(suffix))] + suffix
}

// CreateTemporarySlot makes a slot that the server drops with the connection. It
// waits for running transactions.
func CreateTemporarySlot(ctx context.Context, conn *pgconn.PgConn, name string) (CreatedSlot, error) {
	r, err := pglogrepl.CreateReplicationSlot(ctx, conn, name, plugin,
		pglogrepl.CreateReplicationSlotOptions{Temporary: true, Mode: pglogrepl.LogicalReplication, SnapshotAction: "EXPORT_SNAPSHOT"})
	if SQLState(err) == CodeConfigurationLimit {
		return CreatedSlot{}, fmt.Errorf("make temporary slot: %w; it needs one more of max_replication_slots and of max_wal_senders than the mirror alone", err)
	}
	if err != nil {
		return CreatedSlot{}, fmt.Errorf("make temporary slot: %w", err)
	}
	start, err := id.ParseLSN(r.ConsistentPoint)
	return CreatedSlot{Start: start, Snapshot: r.SnapshotName}, err
}

// ImportSnapshot begins a transaction that sees the database as of the slot's
// start.
func ImportSnapshot(ctx context.Context, sql *pgx.Conn, snapshot string) error {
	ctx, cancel := context.WithTimeout(ctx, QueryTimeout)
	defer cancel()
	_, err := sql.Exec(ctx, "BEGIN READ ONLY, ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '"+
		strings.ReplaceAll(snapshot, "'", "''")+"'", pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return fmt.Errorf("import snapshot: %w", err)
	}
	return nil
}

// ExportSnapshot lets further connections import the snapshot of sql's transaction.
func ExportSnapshot(ctx context.Context, sql *pgx.Conn) (name string, err error) {
	ctx, cancel := context.WithTimeout(ctx, QueryTimeout)
	defer cancel()
	if err := sql.QueryRow(ctx, `SELECT pg_export_snapshot()`).Scan(&name); err != nil {
		return "", fmt.Errorf("export snapshot: %w", err)
	}
	return name, nil
}

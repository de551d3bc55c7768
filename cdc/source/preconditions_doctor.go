package source

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/halt"
	"dinnerbell/internal/pgsession"
	"dinnerbell/internal/postgres"
	"dinnerbell/internal/precondition"
)

// doctorChecks are the facts that stop nothing, or cost a connection: `doctor` alone
// reports them.
var doctorChecks = []check{
	{Name: "source.encryption", At: precondition.AtDoctor, Read: checkEncryption},
	{Name: "source.settings", At: precondition.AtDoctor, Read: checkSettings},
	{Name: "source.walsender", At: precondition.AtDoctor, Read: checkWalsender},
	{Name: "source.connections", At: precondition.AtDoctor, Read: checkConnections},
	{Name: "source.hosts", At: precondition.AtDoctor, Read: checkHosts},
	{Name: "source.slot", At: precondition.AtDoctor, Read: checkSlot},
	{Name: "source.failover", At: precondition.AtDoctor, Read: checkFailover},
	{Name: "source.other_slots", At: precondition.AtDoctor, Read: checkOtherSlots},
	{Name: "source.wal_limit", At: precondition.AtDoctor, Read: checkWALLimit},
	{Name: "source.idle_slot_timeout", At: precondition.AtDoctor, Read: checkIdleTimeout},
	{Name: "source.wal_sender_timeout", At: precondition.AtDoctor, Read: checkSenderTimeout},
}

// newFact returns a list of one finding that nothing is wrong with.
func newFact(format string, args ...any) []finding {
	return []finding{{Level: precondition.OK, Found: fmt.Sprintf(format, args...)}}
}

// newWarning returns a list of one warning.
func newWarning(object, found, effect, fix string) []finding {
	return []finding{{Level: precondition.Warn, Object: object, Found: found, Effect: effect, Fix: fix}}
}

func checkEncryption(_ context.Context, f *checkFacts) ([]finding, error) {
	o, err := f.db.connConfig(nil)
	if err != nil {
		return nil, err
	}
	return postgres.CheckEncryption(f.sql.PgConn(), o, "source.url"), nil
}

func checkSettings(ctx context.Context, f *checkFacts) ([]finding, error) {
	return pgsession.Check(ctx, f.sql, SessionSettings, "source.url")
}

// checkWalsender makes a replication connection, as the mirror does: a pooler, and a
// balancer between several servers, show only there.
func checkWalsender(ctx context.Context, f *checkFacts) ([]finding, error) {
	lacks, err := checkReplication(ctx, f)
	if err != nil || len(lacks) > 0 {
		return nil, errors.Join(err, errNoReplication)
	}
	conn, err := f.db.DialReplication(ctx)
	if SQLState(err) == codeTooMany && f.around.Running {
		return newFact("the daemon has the last one"), nil
	}
	if err == nil {
		defer CloseConn(conn)
		err = CheckSameServer(ctx, conn, f.cat)
	}
	if err = f.db.ExplainError(err); err == nil {
		return newFact("direct, no pooler"), nil
	}
	if _, halted := errors.AsType[*halt.Error](err); halted {
		return nil, err
	}
	o, configErr := f.db.connConfig(nil)
	if _, refused := errors.AsType[*postgres.ConnectError](err); !refused || configErr != nil {
		return newViolation("source.url", err.Error(), "the mirror cannot replicate", "name Postgres itself in source.url, and all hosts of one cluster only"), nil
	}
	refusal := postgres.NoConnection(ctx, err, o, "source.url")
	refusal.Found, refusal.Effect = "no replication connection: "+refusal.Found, "the mirror cannot replicate"
	return []finding{refusal}, nil
}

// errNoReplication keeps checkWalsender from repeating another check's finding.
var errNoReplication = errors.New("the role lacks REPLICATION")

// codeTooMany is the SQLSTATE of a server without a free connection.
const codeTooMany = "53300"

// Connections of the mirror to the source: always, and beside them while it takes a
// snapshot, rebuilds or verifies.
const (
	StreamingConnections = 4
	SnapshotConnections  = 6
)

// checkConnections compares the connections that the mirror takes with those that are
// free for its role.
func checkConnections(ctx context.Context, f *checkFacts) ([]finding, error) {
	var most, used, role, ofRole, database, ofDatabase int
	err := f.sql.QueryRow(ctx, `
		WITH others AS (SELECT a.usesysid, a.datid FROM pg_stat_activity a WHERE a.datid IS NOT NULL AND a.application_name IS DISTINCT FROM $1)
		SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int - coalesce(current_setting('reserved_connections', true), '0')::int,
		       (SELECT count(*) FROM others), r.rolconnlimit, (SELECT count(*) FROM others o WHERE o.usesysid = r.oid), d.datconnlimit, (SELECT count(*) FROM others o WHERE o.datid = d.oid)
		FROM pg_roles r, pg_database d WHERE r.rolname = session_user AND d.datname = current_database()`, f.cat.application).
		Scan(&most, &used, &role, &ofRole, &database, &ofDatabase)
	if err != nil {
		return nil, fmt.Errorf("count connections: %w", err)
	}
	var found []finding
	for _, c := range []struct {
		limit     string
		n, others int
		fix       string
	}{
		{"the server", most, used, fmt.Sprintf("ALTER SYSTEM SET max_connections = %d; -- then restart Postgres", most+2*(StreamingConnections+SnapshotConnections))},
		{"role " + f.db.QuotedRole(), role, ofRole, "ALTER ROLE " + f.db.QuotedRole() + " CONNECTION LIMIT -1"},
		{"database " + f.cat.Source.Database, database, ofDatabase, "ALTER DATABASE " + pgx.Identifier{f.cat.Source.Database}.Sanitize() + " CONNECTION LIMIT -1"},
	} {
		free := c.n - c.others
		what := fmt.Sprintf("of %d connections others use %d", c.n, c.others)
		switch {
		case c.n < 0: // no limit
		case free < StreamingConnections:
			found = append(found, newViolation(c.limit, what, fmt.Sprintf("the mirror takes %d, and the lanes take more", StreamingConnections), c.fix)...)
		case free < StreamingConnections+SnapshotConnections:
			found = append(found, newWarning(c.limit, what, fmt.Sprintf("the mirror takes %d, and up to %d more for a snapshot, which is slower with fewer", StreamingConnections, SnapshotConnections), c.fix)...)
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	return newFact("%d of %d free; the mirror takes %d, and up to %d more for a snapshot", most-used, most, StreamingConnections, SnapshotConnections), nil
}

// checkSlot judges the state of the mirror's slot, and who holds it.
func checkSlot(ctx context.Context, f *checkFacts) ([]finding, error) {
	s, err := f.db.ReadSlot(ctx, f.sql)
	if err != nil {
		return nil, err
	}
	other, err := f.otherHolder(ctx, s)
	if err != nil {
		return nil, err
	}
	return f.judgeSlot(s, other), nil
}

// judgeSlot judges a slot; other is a second daemon that has it, nil without one.
func (f *checkFacts) judgeSlot(s SlotStatus, other *SlotHeldError) []finding {
	object := "slot " + f.db.cfg.Slot
	kept := bytesText(int64(f.cat.WALEnd) - int64(s.Restart))
	switch {
	case other != nil:
		return newViolation(object, fmt.Sprintf("is used by another daemon: PID %d (application_name %q, role %s, client address %s)", other.PID, other.App, other.Role, other.Address),
			"a second daemon with the slot exits with 3", "give each daemon a slot of its own (source.slot) or stop the other one")
	case !s.Exists:
		return newFact("%s is free; run makes it", f.db.cfg.Slot)
	case s.IsLost() && f.around.HaltOnLost:
		return newViolation(object, s.LossReason(), "the daemon halts, as source.on_lost says", "dinnerbell rebuild --offline")
	case s.IsLost():
		return newWarning(object, s.LossReason(), "the daemon takes a new snapshot, and campaigns wait for it", "start the daemon")
	case s.WALStatus == SlotUnreserved:
		return newWarning(object, "wal_status is unreserved: it keeps "+kept, "the server's next checkpoint may end it", "start the daemon at once, or: ALTER SYSTEM SET max_slot_wal_keep_size = '32GB'; SELECT pg_reload_conf()")
	case s.pid != 0 && f.around.Running:
		return newFact("%s, used by the running daemon, keeps %s of WAL", f.db.cfg.Slot, kept)
	case s.pid != 0:
		return newFact("%s, still held by PID %d of a daemon that was killed; run ends it", f.db.cfg.Slot, s.pid)
	case int64(f.cat.WALEnd)-int64(s.Restart) > muchWAL:
		return newWarning(object, "nobody reads it, and it keeps "+kept+" of WAL", "the server's disk fills up", "start the daemon, or, if it does not come back: SELECT pg_drop_replication_slot("+quoteLiteral(f.db.cfg.Slot)+")")
	}
	return newFact("%s, not in use, keeps %s of WAL", f.db.cfg.Slot, kept)
}

// muchWAL is the WAL, in bytes, from which on a slot that nobody reads is warned of.
const muchWAL = 1 << 30

// otherHolder returns a second daemon that has the slot or its advisory lock; nil:
// there is none.
func (f *checkFacts) otherHolder(ctx context.Context, s SlotStatus) (*SlotHeldError, error) {
	if s.pid != 0 {
		held, err := f.db.readSlotHolder(ctx, f.sql, s.pid)
		if err != nil {
			return nil, err
		}
		if held != nil && held.App != f.db.cfg.ApplicationName {
			return held, nil
		}
	}
	h, err := NewSlotLock(f.db, nil, 0).readLockHolder(ctx, f.sql)
	if err != nil || h == nil || !h.mirrors || h.by.App == f.db.cfg.ApplicationName {
		return nil, err
	}
	return &h.by, nil
}

// bytesText writes a size for people.
func bytesText(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%d KiB", max(0, n)>>10)
}

// errForeignSlot keeps checkFailover from advising about another program's slot.
var errForeignSlot = errors.New("the slot belongs to something else")

// checkFailover warns of a slot that a failover leaves behind.
func checkFailover(ctx context.Context, f *checkFacts) ([]finding, error) {
	if _, err := f.db.ReadSlot(ctx, f.sql); err != nil {
		if _, foreign := errors.AsType[*halt.Error](err); foreign {
			return nil, errForeignSlot
		}
		return nil, err
	}
	var standbys int
	var failover *bool // NULL: no slot, or a server before 17
	err := f.sql.QueryRow(ctx, `
		SELECT (SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'physical'),
		       (SELECT (to_jsonb(s)->>'failover')::bool FROM pg_replication_slots s WHERE slot_name = $1)`, f.db.cfg.Slot).Scan(&standbys, &failover)
	if err != nil {
		return nil, fmt.Errorf("read failover slots: %w", err)
	}
	const effect = "a failover to a standby leaves the slot behind: the daemon takes a new snapshot, or halts"
	switch {
	case f.cat.Version < FailoverVersion && standbys > 0:
		return newWarning("slot "+f.db.cfg.Slot, "Postgres before 17 has no failover slots", effect, "upgrade Postgres to 17 or newer"), nil
	case f.cat.Version < FailoverVersion:
		return newFact("no standby with a slot"), nil
	case failover != nil && !*failover:
		return newWarning("slot "+f.db.cfg.Slot, "is no failover slot", effect,
			"with the daemon stopped, over a replication connection (psql 'dbname="+f.cat.Source.Database+" replication=database'): ALTER_REPLICATION_SLOT "+f.db.cfg.Slot+" (FAILOVER true)"), nil
	case failover != nil:
		return newFact("%s is a failover slot", f.db.cfg.Slot), nil
	}
	return newFact("run makes a failover slot"), nil
}

// checkOtherSlots warns of slots that look like those of a daemon that is gone: they
// keep WAL until the disk is full.
func checkOtherSlots(ctx context.Context, f *checkFacts) ([]finding, error) {
	rows, err := f.sql.Query(ctx, `
		SELECT slot_name::text, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::int8 FROM pg_replication_slots
		WHERE plugin = $2 AND database = current_database() AND NOT active AND NOT temporary AND slot_name <> $1 AND restart_lsn IS NOT NULL
		ORDER BY 2 DESC`, f.db.cfg.Slot, plugin)
	if err != nil {
		return nil, fmt.Errorf("read slots: %w", err)
	}
	var found []finding
	var name string
	var kept int64
	_, err = pgx.ForEachRow(rows, []any{&name, &kept}, func() error {
		found = append(found, newWarning("slot "+name, "nobody reads it, and it keeps "+bytesText(kept)+" of WAL", "the server's disk fills up",
			"SELECT pg_drop_replication_slot("+quoteLiteral(name)+"); -- unless its reader, such as another daemon, comes back")...)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read slots: %w", err)
	}
	return found, nil
}

// checkWALLimit warns of a server that keeps WAL for a slot without a limit.
func checkWALLimit(ctx context.Context, f *checkFacts) ([]finding, error) {
	var size int64
	if err := f.sql.QueryRow(ctx, keepSizeSQL).Scan(&size); err != nil {
		return nil, fmt.Errorf("read max_slot_wal_keep_size: %w", err)
	}
	if size >= 0 {
		return newFact("max_slot_wal_keep_size is %s", bytesText(size)), nil
	}
	return newWarning("the server", "max_slot_wal_keep_size is -1, no limit", "while the daemon is stopped its slot can fill the server's disk",
		"ALTER SYSTEM SET max_slot_wal_keep_size = '32GB'; SELECT pg_reload_conf(); -- as much as the disk allows"), nil
}

// likelyDowntime is how long a daemon may be away without anybody's mistake: a weekend.
const likelyDowntime = 72 * time.Hour

// checkIdleTimeout warns of a server that gives an idle slot up (18 and newer).
func checkIdleTimeout(ctx context.Context, f *checkFacts) ([]finding, error) {
	seconds, err := f.readSeconds(ctx, "idle_replication_slot_timeout")
	if err != nil || seconds <= 0 || seconds >= likelyDowntime.Seconds() {
		return nil, err
	}
	return newWarning("the server", fmt.Sprintf("idle_replication_slot_timeout is %s", time.Duration(seconds*float64(time.Second))),
		"a daemon that is away for longer needs a new snapshot", "ALTER SYSTEM SET idle_replication_slot_timeout = '3d'; SELECT pg_reload_conf()"), nil
}

// shortSenderTimeout is the wal_sender_timeout below which a pause of the network or of
// the machine ends the stream.
const shortSenderTimeout = 10 * time.Second

// checkSenderTimeout warns of a server that ends the stream after a short silence.
func checkSenderTimeout(ctx context.Context, f *checkFacts) ([]finding, error) {
	seconds, err := f.readSeconds(ctx, "wal_sender_timeout")
	if err != nil {
		return nil, err
	}
	timeout := time.Duration(seconds * float64(time.Second))
	switch {
	case timeout == 0:
		return newFact("off; the mirror's own sessions have a minute"), nil
	case timeout >= shortSenderTimeout:
		return newFact("%s", timeout), nil
	}
	return newWarning("the server", fmt.Sprintf("wal_sender_timeout is %s", timeout), "a pause of that length on the network or on this machine ends the stream, which begins again",
		"ALTER ROLE "+f.db.QuotedRole()+" SET wal_sender_timeout = '60s'"), nil
}

// readSeconds reads a setting that is a time; 0: the server does not know it.
func (f *checkFacts) readSeconds(ctx context.Context, setting string) (seconds float64, err error) {
	err = f.sql.QueryRow(ctx, `SELECT coalesce(extract(epoch FROM current_setting($1, true)::interval), 0)::float8`, setting).Scan(&seconds)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", setting, err)
	}
	return seconds, nil
}

// checkHosts looks at the other hosts of source.url: whether they can be reached, and
// whether a standby has the slot.
func checkHosts(ctx context.Context, f *checkFacts) ([]finding, error) {
	o, err := f.db.connConfig(SessionSettings)
	if err != nil {
		return nil, err
	}
	here := f.sql.PgConn().Conn().RemoteAddr().String()
	hosts := map[string]bool{}
	var found []finding
	for _, host := range append([]*pgconn.FallbackConfig{{Host: o.Host, Port: o.Port, TLSConfig: o.TLSConfig}}, o.Fallbacks...) {
		at := net.JoinHostPort(host.Host, strconv.Itoa(int(host.Port)))
		if hosts[at] {
			continue // without TLS, as sslmode=prefer has it twice
		}
		hosts[at] = true
		one := o.Copy()
		one.Host, one.Port, one.TLSConfig, one.Fallbacks, one.ValidateConnect = host.Host, host.Port, host.TLSConfig, nil, nil
		for _, again := range o.Fallbacks {
			if again.Host == host.Host && again.Port == host.Port {
				one.Fallbacks = append(one.Fallbacks, again)
			}
		}
		found = append(found, f.checkHost(ctx, one, at, here)...)
	}
	if len(hosts) == 1 {
		return newFact("one; list the standbys too, if there are any"), nil
	}
	return found, nil
}

// checkHost looks at one of several hosts.
func (f *checkFacts) checkHost(ctx context.Context, o *pgx.ConnConfig, at, here string) []finding {
	conn, err := postgres.Connect(ctx, o)
	if err != nil {
		t := postgres.NoConnection(ctx, err, o, "source.url")
		return newWarning("host "+at, t.Found, "after a failover to it the daemon waits", t.Fix)
	}
	defer CloseConn(conn.PgConn())
	if conn.PgConn().Conn().RemoteAddr().String() == here {
		return newFact("%s, the primary", at)
	}
	var standby bool
	var synced *bool // NULL: it has no such slot
	err = conn.QueryRow(ctx, `SELECT pg_is_in_recovery(), (SELECT (to_jsonb(s)->>'synced')::bool FROM pg_replication_slots s WHERE slot_name = $1)`, f.db.cfg.Slot).Scan(&standby, &synced)
	switch {
	case err != nil:
		return []finding{{Level: precondition.Unknown, Object: "host " + at, Found: "cannot be checked: " + err.Error()}}
	case !standby:
		return newViolation("host "+at, "is a primary too", "the daemon may follow either server", "name the hosts of one cluster only")
	case f.cat.Version >= FailoverVersion && (synced == nil || !*synced):
		return newWarning("host "+at, "a standby without the slot "+f.db.cfg.Slot, "after a failover to it the daemon takes a new snapshot, or halts",
			"on it: ALTER SYSTEM SET sync_replication_slots = on; ALTER SYSTEM SET hot_standby_feedback = on; and dbname="+strings.ReplaceAll(f.cat.Source.Database, " ", `\ `)+" in its primary_conninfo, its slot in primary_slot_name")
	}
	return newFact("%s, a standby", at)
}

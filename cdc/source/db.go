package source

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"dinnerbell/internal/pgsession"
	"dinnerbell/internal/postgres"
)

const (
	connectTimeout = 10 * time.Second
	// QueryTimeout bounds catalog queries and those of the barrier: a connection
	// that does not answer in this time is given up.
	QueryTimeout = 10 * time.Second
	// statementCache is pgx's default: there are fewer statements.
	statementCache = 512
	// closeTimeout bounds the goodbye to the server.
	closeTimeout = 2 * time.Second
)

// keepAlive finds a server that vanished without a word during a long wait for its
// answer, as in a COPY: by default that takes minutes.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 4}

// SessionSettings are the settings that every connection to the source pins.
//
// The keepalives end, within half a minute, a backend whose daemon vanished without
// a word: the backend may hold a snapshot and, in a temporary slot, WAL. Without
// tcp_user_timeout a backend in the middle of a COPY would wait for the kernel,
// some 15 minutes. The timeout also ends a connection whose reader stands still for
// that long, so it is longer than any pause of a healthy reader.
var SessionSettings = pgsession.Merge(pgsession.Reading, pgsession.Running, []pgsession.Setting{
	{Name: "synchronous_commit", Value: "local"}, // the barrier's own commit does not wait for standbys
	{Name: "row_security", Value: "off"},         // a policy is an error, not a filter that nobody sees
	{Name: "tcp_keepalives_idle", Value: "15"},
	{Name: "tcp_keepalives_interval", Value: "5"},
	{Name: "tcp_keepalives_count", Value: "3"},
	{Name: "tcp_user_timeout", Value: "120000"},
})

// WalsenderSettings differ for a walsender: its client stands still while the disk
// is full, and answers all the same. wal_sender_timeout ends the walsender when no
// answer comes.
var WalsenderSettings = pgsession.Merge(SessionSettings, []pgsession.Setting{
	{Name: "tcp_user_timeout", Value: "0"},
})

// DB is the source database: it dials, and reads the catalogs and the slot. It
// holds no connection; whoever dials one owns it.
type DB struct {
	cfg     Config
	log     *slog.Logger
	history timelineHistory
}

// Open returns a DB, or an error for a configuration that no server could serve.
// It dials nothing.
func Open(cfg Config) (*DB, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &DB{cfg: cfg, log: cfg.Logger}, nil
}

// Config returns the configuration, with its defaults.
func (db *DB) Config() *Config { return &db.cfg }

// connConfig reads the URL again and returns the options of a connection.
func (db *DB) connConfig(settings []pgsession.Setting) (*pgx.ConnConfig, error) {
	url, err := db.cfg.URL()
	if err != nil {
		return nil, fmt.Errorf("read source URL: %w", err)
	}
	o, err := postgres.Parse(url)
	if err != nil {
		return nil, fmt.Errorf("parse source URL: %w", err)
	}
	settings = pgsession.Merge(settings, []pgsession.Setting{{Name: "application_name", Value: db.cfg.ApplicationName}})
	pgsession.Startup(o, settings)
	delete(o.RuntimeParams, "replication")
	// The URL may ask for one of pgx's other query modes, which read some values as
	// text.
	o.DefaultQueryExecMode, o.StatementCacheCapacity = pgx.QueryExecModeCacheStatement, statementCache
	o.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error { return pinSettings(ctx, conn, settings) }
	o.DialFunc = (&net.Dialer{KeepAliveConfig: keepAlive}).DialContext
	// The walsender flushes message by message, a COPY every 8 KiB; one read takes
	// in much of that.
	o.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		return pgproto3.NewFrontend(bufio.NewReaderSize(r, 64<<10), w)
	}
	if o.ConnectTimeout == 0 {
		o.ConnectTimeout = connectTimeout
	}
	return o, nil
}

// QuotedRole is the quoted name of the role in source.url, for the statements that
// mend its rights.
func (db *DB) QuotedRole() string {
	if o, err := db.connConfig(nil); err == nil {
		return pgx.Identifier{o.User}.Sanitize()
	}
	return "…" // the URL was changed since the connection was made, and is invalid now
}

// pinSettings applies the settings to a session that has begun, see
// [pgsession.SQL].
func pinSettings(ctx context.Context, conn *pgconn.PgConn, settings []pgsession.Setting) error {
	ctx, cancel := context.WithTimeout(ctx, QueryTimeout)
	defer cancel()
	if err := conn.Exec(ctx, pgsession.SQL(settings)).Close(); err != nil {
		return fmt.Errorf("pin settings: %w", err)
	}
	return nil
}

// DialSQL opens an ordinary connection.
func (db *DB) DialSQL(ctx context.Context) (*pgx.Conn, error) {
	o, err := db.connConfig(SessionSettings)
	if err != nil {
		return nil, err
	}
	conn, err := postgres.Connect(ctx, o)
	if SQLState(err) == CodeInsufficientPrivilege {
		h := NewHalt("GRANT CONNECT ON DATABASE "+pgx.Identifier{o.Database}.Sanitize()+" TO "+db.QuotedRole(), "the role in source.url may not connect: %v", err)
		h.Heals = true
		return nil, h
	}
	return conn, db.explainConnectError(&o.Config, err)
}

// DialReplication opens a connection to a walsender.
func (db *DB) DialReplication(ctx context.Context) (*pgconn.PgConn, error) {
	o, err := db.connConfig(WalsenderSettings)
	if err != nil {
		return nil, err
	}
	o.RuntimeParams["replication"] = "database"
	conn, err := postgres.ConnectWalsender(ctx, &o.Config)
	return conn, db.explainConnectError(&o.Config, err)
}

// DialSameServer opens an ordinary connection, and makes sure that it leads to the
// server that cat was read from.
func (db *DB) DialSameServer(ctx context.Context, cat *Catalog) (*pgx.Conn, error) {
	sql, err := db.DialSQL(ctx)
	if err != nil {
		return nil, err
	}
	other := Catalog{}
	if err = (&catalogReader{db: db, sql: sql, cat: &other}).readServer(ctx); err == nil {
		err = cat.matchServer(other.Source.SystemID, other.Source.Timeline, other.Source.Database)
	}
	if err != nil {
		CloseConn(sql.PgConn())
		return nil, err
	}
	return sql, nil
}

// explainConnectError turns errors that trying again does not mend into halts.
func (db *DB) explainConnectError(o *pgconn.Config, err error) error {
	switch code := SQLState(err); {
	case err == nil:
		return nil
	case code == CodeInsufficientPrivilege:
		return db.haltNoReplication(err)
	case code == CodeUndefinedObject && strings.Contains(err.Error(), "idle_session_timeout"):
		return NewHalt("upgrade Postgres to 14 or newer", "the server is older than Postgres 14")
	case code == codeProtocolViolation && strings.Contains(err.Error(), "startup parameter"):
		return haltPooler(err)
	}
	return fmt.Errorf("connect to Postgres: %w", postgres.AddFix(err, o, "source.url"))
}

// haltNoReplication is the halt of a role that may neither replicate nor drop slots.
func (db *DB) haltNoReplication(err error) *HaltError {
	h := NewHalt("ALTER ROLE "+db.QuotedRole()+" REPLICATION", "the role in source.url lacks REPLICATION: %v", err)
	h.Heals = true
	return h
}

// haltPooler is the halt of a source.url that leads through a connection pooler.
func haltPooler(err error) *HaltError {
	return NewHalt("point source.url at Postgres itself", "source.url goes through a connection pooler, which cannot carry replication: %v", err)
}

// haltNotUTF8 is the halt of a value that the server cannot send: it would fail on
// the value again and again. The WAL holds the value even after it was mended, so
// that the slot is worthless.
func (db *DB) haltNotUTF8(err error) *HaltError {
	h := NewHalt(fmt.Sprintf("correct the value; if its column is none of %s, on Postgres 15 and newer: ALTER PUBLICATION %s SET TABLE %s (%s)",
		strings.Join(db.cfg.neededColumns(), ", "), db.cfg.QuotedPublication(), db.cfg.QuotedTable(), db.cfg.quotedColumns()),
		"table %s holds a value that Postgres cannot convert to UTF-8: %v", db.cfg.QuotedTable(), err)
	h.Distrust = true
	return h
}

// isPoolerError recognises a pooler that accepted the settings and dropped them, by
// the errors of Postgres behind it: it takes a replication command for SQL, and
// statements that were prepared in one transaction are gone in the next.
func isPoolerError(err error) bool {
	switch SQLState(err) {
	case codeUnknownStatement, codeDuplicateStatement:
		return true
	case codeSyntaxError:
		return errors.Is(err, errNoWalsender)
	}
	return false
}

// ExplainError turns errors that come from a pooler, or from a value that cannot be
// sent, into halts; it returns any other error as it is.
func (db *DB) ExplainError(err error) error {
	if isPoolerError(err) {
		err = haltPooler(err)
	}
	if code := SQLState(err); code == codeUntranslatable || code == codeBadCharacter {
		err = db.haltNotUTF8(err)
	}
	return err
}

// CloseConn sends the goodbye, so that the server frees the slot at once.
func CloseConn(conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = conn.Close(ctx)
	select {
	case <-conn.CleanupDone():
	case <-ctx.Done():
	}
}

// Sleep waits for d; false: ctx ended before.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

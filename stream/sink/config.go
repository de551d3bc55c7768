package sink

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/pgsession"
	"dinnerbell/internal/postgres"
)

// Config names the Postgres sink: where it is, and the tables in it.
type Config struct {
	// URL returns the connection URL. Connect calls it each time, so that rotated
	// credentials are picked up.
	URL          func() (string, error)
	URLKey       string // of the configuration, that holds the address, for errors; "": sink.url
	Schema       string // of the feedback table
	Table        string // holds the feedback rows
	DaemonSchema string // holds lane, campaign and outbox

	// MaxConnections bounds the connections of a service to the sink: one for each
	// lane that works, and the readers that all lanes share. A lane without a
	// connection waits. 0: one per lane, and four readers.
	MaxConnections int
	// MirrorConnections is how many connections the daemon's mirror takes to the same
	// server, for the check whether there are enough; 0: it reads from another server.
	MirrorConnections int

	// LateSubscribers: clients who subscribe while a campaign is live get it. That takes
	// indexes on the campaign table, which Setup makes.
	LateSubscribers bool

	Pins []pgsession.Setting // override the session settings; nil but in tests
}

// ReaderCount returns how many connections the lanes share for reading: four, or a
// quarter of MaxConnections where that is less, but one at least.
func (c Config) ReaderCount() int {
	const most = 4
	if c.MaxConnections == 0 {
		return most
	}
	return max(1, min(most, c.MaxConnections/4))
}

// Tables holds the quoted names of the sink's tables.
type Tables struct {
	Schema, Lane, Campaign, Outbox string
	FeedbackSchema, Feedback       string
}

// Tables quotes the names of the tables.
func (c Config) Tables() Tables {
	schema := pgx.Identifier{c.DaemonSchema}.Sanitize()
	return Tables{
		Schema:   schema,
		Lane:     schema + ".lane",
		Campaign: schema + ".campaign",
		Outbox:   schema + ".outbox",

		FeedbackSchema: pgx.Identifier{c.Schema}.Sanitize(),
		Feedback:       pgx.Identifier{c.Schema, c.Table}.Sanitize(),
	}
}

// sessionSettings make a lost daemon harmless within seconds: the server ends the
// session of a peer that is gone or silent, so that the locks of the peer do not
// delay a takeover. synchronous_commit makes a decided step durable.
// https://www.postgresql.org/docs/current/runtime-config-client.html
var sessionSettings = pgsession.Merge(pgsession.Reading, pgsession.Running, []pgsession.Setting{
	{Name: "synchronous_commit", Value: "on"},
	{Name: "idle_in_transaction_session_timeout", Value: "10s"},
	{Name: "lock_timeout", Value: "20s"},
	{Name: "tcp_keepalives_idle", Value: "5"},
	{Name: "tcp_keepalives_interval", Value: "2"},
	{Name: "tcp_keepalives_count", Value: "3"},
	{Name: "tcp_user_timeout", Value: "15s"},
})

// connConfig reads the URL again and returns the options of a sink connection with
// the settings above.
func (c Config) connConfig(name string) (*pgx.ConnConfig, error) {
	url, err := c.URL()
	if err != nil {
		return nil, fmt.Errorf("read sink url: %w", err)
	}
	cfg, err := postgres.Parse(url)
	if err != nil {
		return nil, fmt.Errorf("parse sink url: %w", err)
	}
	settings := pgsession.Merge(sessionSettings, c.Pins, []pgsession.Setting{{Name: "application_name", Value: name}})
	pgsession.Startup(cfg, settings)
	cfg.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		// The driver's timeout ends with the authentication: a server that falls silent
		// after it would block the connect for ever.
		ctx, cancel := context.WithTimeout(ctx, cfg.ConnectTimeout)
		defer cancel()
		if err := conn.Exec(ctx, pgsession.SQL(settings)).Close(); err != nil {
			return fmt.Errorf("set up sink session: %w", err)
		}
		return nil
	}
	// The URL may select another query mode of pgx, and some of those read values as
	// text.
	cfg.DefaultQueryExecMode, cfg.StatementCacheCapacity = pgx.QueryExecModeCacheStatement, statementCache
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	return cfg, nil
}

// statementCache bounds the statements that a connection keeps prepared.
const statementCache = 128

// Connect opens one connection to the sink; name is its application_name.
func (c Config) Connect(ctx context.Context, name string) (*pgx.Conn, error) {
	cfg, err := c.connConfig(name)
	if err != nil {
		return nil, err
	}
	conn, err := postgres.Connect(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to sink: %w", postgres.AddFix(err, &cfg.Config, cmp.Or(c.URLKey, "sink.url")))
	}
	return conn, nil
}

// PlanByKeys makes the connection plan each statement once, and by keys: a lane
// always reads and writes a few rows by their key, and a plan that was made while
// the tables were empty must not stay a scan of the whole table when it is large.
func PlanByKeys(ctx context.Context, conn *pgx.Conn) error {
	const settings = `
SET plan_cache_mode = force_generic_plan;
SET enable_seqscan = off;
SET enable_hashjoin = off;
SET enable_mergejoin = off;
SET jit = off`
	if _, err := conn.Exec(ctx, settings, pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("set up sink session: %w", err)
	}
	return nil
}

// CloseConn closes the connection within a second, also where the peer is gone.
func CloseConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // an outcome that gets lost here is read back by the next takeover
}

// quoteIdent quotes a name for SQL.
func quoteIdent(name string) string { return pgx.Identifier{name}.Sanitize() }

// MaxSkew is how far this machine's clock may be from Postgres' before the daemon
// warns. Campaigns start and end by this machine's clock: a wrong clock fires them
// early, late or never.
const MaxSkew = 5 * time.Second

const (
	// clockSamples is how often ClockSkew asks at most.
	clockSamples = 3
	// clockPrecision is the error that ends ClockSkew at once: it is small beside every
	// limit that the difference is compared with.
	clockPrecision = 50 * time.Millisecond
)

// ClockSkew returns how far our clock, now, is ahead of Postgres', with an error of at
// most off: half of the time that the answer takes. Of several answers the quickest counts,
// because a slow machine or network delays single ones. The clocks differ for certain only
// as far as the difference exceeds off.
func ClockSkew(ctx context.Context, conn Querier, now func() time.Time) (skew, off time.Duration, err error) {
	for i := range clockSamples {
		var theirs time.Time
		before := now()
		if err := conn.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&theirs); err != nil {
			return 0, 0, fmt.Errorf("read Postgres' clock: %w", err)
		}
		if half := now().Sub(before) / 2; i == 0 || half < off {
			skew, off = before.Add(half).Sub(theirs), half
		}
		if off <= clockPrecision {
			break
		}
	}
	return skew, off, nil
}

package sink

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/halt"
	"dinnerbell/internal/postgres"
)

// daemonTables creates the daemon's own tables. %[1]s is the schema.
var daemonTables = []struct{ name, sql string }{
	{"schema", `CREATE SCHEMA IF NOT EXISTS %[1]s`},
	// One row per partition of the campaigns topic. Every step changes it by a
	// compare-and-swap on (epoch, seq).
	{"lane", `CREATE TABLE IF NOT EXISTS %[1]s.lane (
  lane int4 NOT NULL PRIMARY KEY,
  epoch int8 NOT NULL DEFAULT 0,           -- counts owners
  seq int8 NOT NULL DEFAULT 0,             -- P: the last decided step
  next_offset int8 NOT NULL,               -- of the campaigns partition
  cluster_id text NOT NULL,                -- the Kafka that the positions count in
  campaigns_topic_id text NOT NULL,
  notifications_topic_id text NOT NULL,
  progress_topic_id text NOT NULL,
  shipped int8 NOT NULL DEFAULT 0,         -- K as of the last step: the progress topic may be ahead, never behind
  notifications_ends int8[] NOT NULL DEFAULT '{}', -- per partition: the notifications topic reached this end, it may never be shorter
  notified int8 NOT NULL DEFAULT 0,        -- notifications decided so far
  expired int8 NOT NULL DEFAULT 0,         -- campaigns that were over on arrival
  dead int8 NOT NULL DEFAULT 0,            -- messages refused
  source_id text NOT NULL DEFAULT '',      -- the source in which source_lsn counts
  source_lsn int8 NOT NULL DEFAULT 0       -- subscription changes up to here are handled for late subscribers; 0: none
) WITH (fillfactor = 50)`},
	// The newest message per (campaign, restaurant), over all lanes. A statement that
	// changes a row names the state that it expects: the version for the progress of
	// a fan-out, version and message for another message. Rows stay for some days
	// after the campaign's end, so that an older message that arrives late through
	// another lane is recognised as older.
	{"campaign", `CREATE TABLE IF NOT EXISTS %[1]s.campaign (
  adv_campaign_id text NOT NULL,
  restaurant_id text NOT NULL,
  lane int4 NOT NULL,                      -- delivers it
  version int8 NOT NULL,                   -- raised whenever something else is to be delivered
  msg_lane int4 NOT NULL,                  -- of the newest message, an identical repeat too: its partition,
  msg_offset int8 NOT NULL,                -- its offset
  msg_time int8 NOT NULL,                  -- and its time in milliseconds, as Kafka gave it
  fingerprint bytea NOT NULL,              -- of all eight fields: an identical repeat is seen as one
  adv_campaign_content text NOT NULL,
  adv_campaign_owner text NOT NULL,
  adv_campaign_owner_contact text NOT NULL,
  adv_campaign_datetime_start int8 NOT NULL,
  adv_campaign_datetime_end int8 NOT NULL,
  datetime_created int8 NOT NULL,
  state text NOT NULL CONSTRAINT campaign_state_check CHECK (state IN (` + stateList + `)),
  cursor bytea NOT NULL,                   -- packed id of the last client looked at
  contested boolean NOT NULL,              -- somebody may have been notified before this version
  accepted_at timestamptz NOT NULL DEFAULT now(),
  audience int8,                           -- subscribers when it was accepted or joined; NULL: not counted, or all are in notified and already
  notified int8 NOT NULL DEFAULT 0,        -- clients whom it notified, over all versions
  already int8 NOT NULL DEFAULT 0,         -- clients whom this version left out because they had the campaign from elsewhere
  approved boolean NOT NULL DEFAULT false, -- an operator let it go although its audience exceeds limits.max_audience
  operator_time int8 NOT NULL DEFAULT 0,   -- milliseconds, of an operator's last command; after a cancel only a later message revives it
  operator text NOT NULL DEFAULT '',       -- that command, and who gave it
  started_at timestamptz,                  -- of its first step; NULL: accepted_at, where a step has served it
  finished_at timestamptz,                 -- of the step that finished it; NULL: accepted_at; from its end on: the end cut it off
  PRIMARY KEY (adv_campaign_id, restaurant_id)
) WITH (fillfactor = 70)`},
	{"campaign_pending", `CREATE INDEX IF NOT EXISTS campaign_pending ON %[1]s.campaign (lane, adv_campaign_datetime_start) WHERE state = 'pending'`},
	{"campaign_operator", operatorIndexSQL},
	{"campaign_held", heldIndexSQL},
	// Decided steps, until after they are shipped. A row is written once and never
	// changed. EXTERNAL: packed ids do not compress.
	{"outbox", `CREATE TABLE IF NOT EXISTS %[1]s.outbox (
  lane int4 NOT NULL,
  seq int8 NOT NULL,
  notifications int4 NOT NULL,
  payload bytea NOT NULL,
  PRIMARY KEY (lane, seq)
)`},
	{"outbox storage", `ALTER TABLE %[1]s.outbox ALTER COLUMN payload SET STORAGE EXTERNAL`},
	{"layout", `CREATE TABLE IF NOT EXISTS %[1]s.layout (version int4 NOT NULL)`},
	{"layout version", `INSERT INTO %[1]s.layout SELECT ` + fmt.Sprint(layoutVersion) + ` WHERE NOT EXISTS (SELECT FROM %[1]s.layout)`},
}

// operatorIndexSQL finds the campaigns that operators have changed lately; few rows are
// in it.
const operatorIndexSQL = `CREATE INDEX IF NOT EXISTS campaign_operator ON %[1]s.campaign (lane, operator_time) WHERE operator_time > 0`

// heldIndexSQL finds the campaigns that wait for an operator.
const heldIndexSQL = `CREATE INDEX IF NOT EXISTS campaign_held ON %[1]s.campaign (lane) WHERE state IN ('parked', 'paused')`

// SetupSQL returns the statements that Setup runs on an empty database. They are safe to
// repeat.
func SetupSQL(cfg Config) []string {
	t := cfg.Tables()
	var out []string
	for _, d := range daemonTables {
		out = append(out, fmt.Sprintf(d.sql, t.Schema))
	}
	if cfg.LateSubscribers {
		for _, index := range lateIndexes {
			out = append(out, fmt.Sprintf(index.sql, concurrentIf(true), t.Schema))
		}
	}
	const suffix = "_adv_campaign_id_client_id_idx" // Postgres chooses a name with the same suffix where Setup runs
	name := quoteIdent(cfg.Table[:min(len(cfg.Table), postgres.MaxIdentifier-len(suffix))] + suffix)
	return append(out, strings.Replace(createIndexSQL(t, true), "CONCURRENTLY ", "CONCURRENTLY IF NOT EXISTS "+name+" ", 1))
}

// GrantSQL returns the GRANT statements for a role that runs the daemon, where another
// role owns the tables and has run the statements of SetupSQL.
func GrantSQL(cfg Config, role string) []string {
	t, role := cfg.Tables(), quoteIdent(role)
	literal := func(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
	return []string{
		"GRANT USAGE ON SCHEMA " + t.FeedbackSchema + " TO " + role,
		"GRANT SELECT, INSERT ON " + t.Feedback + " TO " + role,
		`DO $$ DECLARE sequence text; BEGIN
  sequence := pg_catalog.pg_get_serial_sequence(` + literal(t.Feedback) + `, 'id');
  IF sequence IS NOT NULL THEN EXECUTE 'GRANT USAGE ON SEQUENCE ' || sequence || ' TO ' || ` + literal(role) + `; END IF;
EXCEPTION WHEN undefined_column THEN NULL; END $$`,
		"GRANT USAGE ON SCHEMA " + t.Schema + " TO " + role,
		"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA " + t.Schema + " TO " + role,
	}
}

// createIndexSQL creates the unique index over (campaign, client), by which Postgres
// itself refuses a second row. Any valid unique index over the same two columns serves
// as well. Postgres chooses the name: another deployment's feedback table may be in the
// same schema.
func createIndexSQL(t Tables, concurrently bool) string {
	return fmt.Sprintf("CREATE UNIQUE INDEX %sON %s (adv_campaign_id, client_id)", concurrentIf(concurrently), t.Feedback)
}

// Setup creates the missing tables and the missing index in the sink database, and
// returns one line about each. It is safe to repeat. The user creates the feedback
// table itself.
func Setup(ctx context.Context, cfg Config) ([]string, error) {
	conn, err := cfg.Connect(ctx, "dinnerbell setup")
	if err != nil {
		return nil, err
	}
	defer CloseConn(conn)
	// CREATE INDEX CONCURRENTLY waits for every older transaction, a backup's too.
	if _, err := conn.Exec(ctx, "SET lock_timeout = 0"); err != nil {
		return nil, fmt.Errorf("set up sink session: %w", err)
	}
	t := cfg.Tables()
	did, err := setupTables(ctx, conn, t)
	if err != nil {
		return did, err
	}
	line, err := setupIndex(ctx, conn, t)
	if line != "" {
		did = append(did, line)
	}
	if err != nil {
		return did, err
	}
	lines, err := setupLate(ctx, conn, cfg, t)
	return append(did, lines...), err
}

func setupTables(ctx context.Context, conn *pgx.Conn, t Tables) ([]string, error) {
	var before int
	if err := conn.QueryRow(ctx, `SELECT count(*) FROM (VALUES ($1), ($2), ($3), ($4)) AS n(t) WHERE to_regclass(t) IS NOT NULL`,
		t.Lane, t.Campaign, t.Outbox, t.Schema+".layout").Scan(&before); err != nil {
		return nil, fmt.Errorf("look for tables of schema %s: %w", t.Schema, err)
	}
	if before == 4 {
		return upgradeLayout(ctx, conn, t)
	}
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		for _, d := range daemonTables {
			if _, err := tx.Exec(ctx, fmt.Sprintf(d.sql, t.Schema)); err != nil {
				return fmt.Errorf("create %s of schema %s: %w", d.name, t.Schema, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return []string{fmt.Sprintf("tables of schema %s: created lane, campaign, outbox", t.Schema)}, nil
}

// setupIndex creates a unique index over (campaign, client) unless there is a valid one.
// On a table with rows it builds the index CONCURRENTLY, so that writers go on.
func setupIndex(ctx context.Context, conn *pgx.Conn, t Tables) (string, error) {
	name, err := FindUniqueIndex(ctx, conn, t)
	if err != nil {
		return "", err
	}
	if name != "" {
		return fmt.Sprintf("unique index on %s: there already (%s)", t.Feedback, name), nil
	}
	var online bool // a partitioned table's index cannot be built CONCURRENTLY
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM "+t.Feedback+") AND c.relkind = 'r' FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass($1)", t.Feedback).Scan(&online); err != nil {
		return "", fmt.Errorf("read feedback table %s: %w; create it first (the README has its definition)", t.Feedback, err)
	}
	// A build that failed half-way leaves an invalid index behind.
	invalid, err := listUniqueIndexes(ctx, conn, t, false)
	if err != nil {
		return "", err
	}
	for _, leftover := range invalid {
		if _, err := conn.Exec(ctx, "DROP INDEX IF EXISTS "+leftover); err != nil {
			return "", fmt.Errorf("drop invalid index %s: %w", leftover, err)
		}
	}
	if _, err := conn.Exec(ctx, createIndexSQL(t, online)); err != nil {
		if dup := describeDuplicates(ctx, conn, t); dup != "" {
			return "", fmt.Errorf("create unique index on %s: rows stand in the way: %s; keep one row of each pair, then run `dinnerbell setup` again", t.Feedback, dup)
		}
		return "", fmt.Errorf("create unique index on %s: %w", t.Feedback, err)
	}
	return fmt.Sprintf("unique index on %s: created", t.Feedback), nil
}

// FindUniqueIndex returns the name of a valid, immediate, unpartial unique index over
// exactly (adv_campaign_id, client_id) in either order, or "".
func FindUniqueIndex(ctx context.Context, conn *pgx.Conn, t Tables) (string, error) {
	names, err := listUniqueIndexes(ctx, conn, t, true)
	if err != nil || len(names) == 0 {
		return "", err
	}
	return names[0], nil
}

// wholeUniqueSQL holds for a row i of pg_index that is a unique index over two columns:
// immediate, unpartial, without expressions, valid or not.
const wholeUniqueSQL = `i.indisunique AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indnkeyatts = 2`

// pairIndexSQL holds for a row i of pg_index that is a unique index over exactly
// campaign and client: immediate, unpartial, without expressions, valid or not.
const pairIndexSQL = wholeUniqueSQL + `
  AND (SELECT pg_catalog.array_agg(a.attname::text ORDER BY a.attname) FROM pg_catalog.pg_attribute a
       WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey[0:1])) = '{adv_campaign_id,client_id}'`

// listUniqueIndexes returns the names of the valid unique indexes over the two columns,
// or of the invalid ones.
func listUniqueIndexes(ctx context.Context, conn *pgx.Conn, t Tables, valid bool) ([]string, error) {
	rows, err := conn.Query(ctx, `
SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE i.indrelid = pg_catalog.to_regclass($1) AND i.indisvalid = $2 AND `+pairIndexSQL, t.Feedback, valid)
	if err != nil {
		return nil, fmt.Errorf("look for the unique index on %s: %w", t.Feedback, err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look for the unique index on %s: %w", t.Feedback, err)
	}
	return names, nil
}

// describeDuplicates describes the first few pairs that have more than one row, with
// their ids, or returns "" when there are none. It gives ctids where the table has no
// ids.
func describeDuplicates(ctx context.Context, conn *pgx.Conn, t Tables) string {
	lines, err := QueryTexts(ctx, conn, `
WITH twice AS (SELECT adv_campaign_id, client_id, min(ctid) AS first FROM `+t.Feedback+` GROUP BY adv_campaign_id, client_id HAVING count(*) > 1 ORDER BY 3 LIMIT 10)
SELECT pg_catalog.format('(%s, %s): ids %s', adv_campaign_id, client_id, pg_catalog.string_agg(coalesce(pg_catalog.to_jsonb(f) ->> 'id', f.ctid::text), ', ' ORDER BY f.ctid))
FROM twice JOIN `+t.Feedback+` f USING (adv_campaign_id, client_id) GROUP BY adv_campaign_id, client_id ORDER BY min(first)`)
	if err != nil || len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "; ")
}

// layoutVersion counts the changes of the daemon's tables. A daemon works only on its
// own layout.
const layoutVersion = 3

// migrations hold the statements that bring a layout to the next one, in one
// transaction: migrations[n] begins with layout n. %[1]s is the schema.
var migrations = map[int][]string{
	// Each campaign row gets a version of its own, and separate columns for the lane
	// that delivers the campaign and the partition of the newest message.
	1: {
		`ALTER TABLE %[1]s.campaign ADD COLUMN version int8 NOT NULL DEFAULT 1, ADD COLUMN msg_lane int4, ADD COLUMN contested boolean NOT NULL DEFAULT false`,
		`UPDATE %[1]s.campaign SET msg_lane = lane`,
		`ALTER TABLE %[1]s.campaign ALTER COLUMN msg_lane SET NOT NULL, ALTER COLUMN version DROP DEFAULT, ALTER COLUMN contested DROP DEFAULT`,
	},
	// A lane gets the position in the source up to which late subscribers are handled;
	// a campaign gets more states, counters, and what an operator decided about it.
	2: {
		`ALTER TABLE %[1]s.lane ADD COLUMN source_id text NOT NULL DEFAULT '', ADD COLUMN source_lsn int8 NOT NULL DEFAULT 0`,
		`ALTER TABLE %[1]s.campaign DROP CONSTRAINT IF EXISTS campaign_state_check, ADD CONSTRAINT campaign_state_check CHECK (state IN (` + stateList + `)),
  ADD COLUMN audience int8, ADD COLUMN notified int8 NOT NULL DEFAULT 0, ADD COLUMN already int8 NOT NULL DEFAULT 0,
  ADD COLUMN approved boolean NOT NULL DEFAULT false, ADD COLUMN operator_time int8 NOT NULL DEFAULT 0, ADD COLUMN operator text NOT NULL DEFAULT '',
  ADD COLUMN started_at timestamptz, ADD COLUMN finished_at timestamptz`,
		operatorIndexSQL, heldIndexSQL,
	},
}

// readLayoutVersion reads which layout the daemon's tables have.
func readLayoutVersion(ctx context.Context, conn *pgx.Conn, t Tables) (version int, err error) {
	if err := conn.QueryRow(ctx, `SELECT version FROM `+t.Schema+`.layout`).Scan(&version); err != nil {
		return 0, fmt.Errorf("read layout of schema %s: %w; run `dinnerbell setup`", t.Schema, err)
	}
	return version, nil
}

// notSetUpError reports that `dinnerbell setup` has not made or brought up the daemon's
// own tables.
type notSetUpError struct{ schema, found string }

// Error names the schema, what was found there, and the command that mends it.
func (e *notSetUpError) Error() string {
	return fmt.Sprintf("the tables of schema %s: %s; run `dinnerbell setup`", e.schema, e.found)
}

// SQLSTATEs of a table that is missing.
// https://www.postgresql.org/docs/current/errcodes-appendix.html
const (
	codeUndefinedTable = "42P01"
	codeInvalidSchema  = "3F000"
)

// CheckLayout returns a *notSetUpError where the tables are missing or have an older
// layout, and a halt where their layout is newer: only a newer daemon can work on it.
func CheckLayout(ctx context.Context, conn *pgx.Conn, t Tables) error {
	version, err := readLayoutVersion(ctx, conn, t)
	pgErr, _ := errors.AsType[*pgconn.PgError](err)
	switch {
	case pgErr != nil && (pgErr.Code == codeUndefinedTable || pgErr.Code == codeInvalidSchema), errors.Is(err, pgx.ErrNoRows):
		return &notSetUpError{t.Schema, "they are missing"}
	case err != nil:
		return err
	case version < layoutVersion:
		return &notSetUpError{t.Schema, fmt.Sprintf("they have layout %d, and this dinnerbell works on layout %d", version, layoutVersion)}
	case version > layoutVersion:
		return haltOnNewerLayout(t, version)
	}
	return nil
}

func haltOnNewerLayout(t Tables, version int) error {
	return &halt.Error{Part: halt.Stream, Lane: halt.AllLanes, What: fmt.Sprintf("the tables of schema %s have layout %d, which a later dinnerbell has made; this one works on layout %d", t.Schema, version, layoutVersion),
		Hint: "run the version of dinnerbell that made them, or a later one"}
}

// upgradeLayout brings existing tables to the present layout.
func upgradeLayout(ctx context.Context, conn *pgx.Conn, t Tables) ([]string, error) {
	from, err := readLayoutVersion(ctx, conn, t)
	switch {
	case err != nil:
		return nil, err
	case from > layoutVersion:
		return nil, haltOnNewerLayout(t, from)
	case from == layoutVersion:
		return []string{fmt.Sprintf("tables of schema %s: there already", t.Schema)}, nil
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		// One setup runs at a time. A running daemon of the former layout loses its
		// lanes: its next step misses the epoch, and its next takeover names the
		// layout. This transaction waits for the daemon's open one.
		if err := tx.QueryRow(ctx, `SELECT version FROM `+t.Schema+`.layout FOR UPDATE`).Scan(&from); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE `+t.Lane+` SET epoch = epoch + 1`); err != nil {
			return err
		}
		// A publication FOR ALL TABLES, as change data capture often makes, forbids the
		// update of a table without a key otherwise.
		if _, err := tx.Exec(ctx, `ALTER TABLE `+t.Schema+`.layout REPLICA IDENTITY FULL`); err != nil {
			return err
		}
		for layout := from; layout < layoutVersion; layout++ {
			if len(migrations[layout]) == 0 {
				return errors.New("this dinnerbell does not know it")
			}
			for _, sql := range migrations[layout] {
				if _, err := tx.Exec(ctx, fmt.Sprintf(sql, t.Schema)); err != nil {
					return err
				}
			}
		}
		_, err := tx.Exec(ctx, `UPDATE `+t.Schema+`.layout SET version = $1`, layoutVersion)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("bring schema %s from layout %d to layout %d: %w; nothing was changed", t.Schema, from, layoutVersion, err)
	}
	return []string{fmt.Sprintf("tables of schema %s: brought to layout %d", t.Schema, layoutVersion)}, nil
}

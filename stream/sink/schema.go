package sink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/halt"
	"dinnerbell/internal/postgres"
)

// SetupSQL returns the statements that Setup runs on an empty database. They are safe to
// repeat.
func SetupSQL(cfg Config) []string {
	t := cfg.Tables()
	out := creationSQL(t.Schema)
	for _, index := range daemonIndexes {
		out = append(out, fmt.Sprintf(index.sql, "", t.Schema))
	}
	out = append(out, insertLayoutSQL(t.Schema, layoutVersion))
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
	did, err := setUpObjects(ctx, conn, cfg)
	return did, explainSetupDenied(ctx, conn, cfg, err)
}

// setUpObjects is Setup over a connection.
func setUpObjects(ctx context.Context, conn *pgx.Conn, cfg Config) ([]string, error) {
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

// setupTables creates the daemon's tables that are missing, and brings those of a former
// layout up. It refuses to make an empty table in the place of one whose rows are lost.
func setupTables(ctx context.Context, conn *pgx.Conn, t Tables) ([]string, error) {
	missing, err := t.listMissing(ctx, conn)
	if err != nil {
		return nil, err
	}
	version, numbered := layoutVersion, false
	if len(missing) < len(daemonTables) {
		if loss, err := t.findLoss(ctx, conn, missing); err != nil {
			return nil, err
		} else if loss != nil {
			return nil, loss
		}
		if version, numbered, err = t.findLayout(ctx, conn, missing); err != nil {
			return nil, err
		}
	}
	var did []string
	if len(missing) > 0 || !numbered {
		if err := createTables(ctx, conn, t, version); err != nil {
			return nil, err
		}
		did = append(did, fmt.Sprintf("tables of schema %s: created %s", t.Schema, strings.Join(missing, ", ")))
		if len(missing) == 0 {
			did = []string{fmt.Sprintf("tables of schema %s: noted that they have layout %d", t.Schema, version)}
		}
	}
	if len(did) == 0 || version != layoutVersion {
		lines, err := upgradeLayout(ctx, conn, t)
		if did = append(did, lines...); err != nil {
			return did, err
		}
	}
	lines, err := t.mendIndexes(ctx, conn, slices.Contains(missing, "campaign"))
	return append(did, lines...), err
}

// createTables creates the missing tables, and notes the version of the layout where that
// is not noted.
func createTables(ctx context.Context, conn *pgx.Conn, t Tables, version int) error {
	statements := append(creationSQL(t.Schema), insertLayoutSQL(t.Schema, version))
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		for _, statement := range statements {
			if _, err := tx.Exec(ctx, statement); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("create tables of schema %s: %w", t.Schema, err)
	}
	return nil
}

// listMissing returns the names of the daemon's tables that do not exist.
func (t Tables) listMissing(ctx context.Context, q Querier) ([]string, error) {
	names := make([]string, len(daemonTables))
	for i := range daemonTables {
		names[i] = daemonTables[i].name
	}
	missing, err := QueryTexts(ctx, q, `SELECT n.name FROM pg_catalog.unnest($2::text[]) WITH ORDINALITY AS n(name, place)
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace WHERE c.relname = n.name AND `+quotedSchemaSQL("s")+` = $1)
ORDER BY n.place`, t.Schema, names)
	if err != nil {
		return nil, fmt.Errorf("look for tables of schema %s: %w", t.Schema, err)
	}
	return missing, nil
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

// readLayoutVersion reads which layout the daemon's tables have.
func readLayoutVersion(ctx context.Context, conn Querier, t Tables) (version int, err error) {
	if err := conn.QueryRow(ctx, `SELECT version FROM `+t.Schema+`.layout`).Scan(&version); err != nil {
		if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && pgErr.Code == codeInsufficientPrivilege {
			return 0, fmt.Errorf("read layout of schema %s: %w", t.Schema, err)
		}
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
	codeUndefinedTable        = "42P01"
	codeInsufficientPrivilege = "42501"
	codeInvalidSchema         = "3F000"
)

// CheckLayout returns a *notSetUpError where the tables are missing or have an older
// layout, and a halt where their layout is newer: only a newer daemon can work on it.
func CheckLayout(ctx context.Context, conn *pgx.Conn, t Tables) error {
	version, err := readLayoutVersion(ctx, conn, t)
	pgErr, _ := errors.AsType[*pgconn.PgError](err)
	switch {
	case pgErr != nil && (pgErr.Code == codeUndefinedTable || pgErr.Code == codeInvalidSchema):
		return &notSetUpError{t.Schema, "they are missing"}
	case errors.Is(err, pgx.ErrNoRows):
		return &notSetUpError{t.Schema, "the table " + layoutTable + " has lost the number of their layout"}
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

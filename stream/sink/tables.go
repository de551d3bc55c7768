package sink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// quotedSchemaSQL is the quoted name of a row of pg_namespace, as Tables has it.
// to_regclass fails without USAGE on the schema.
func quotedSchemaSQL(alias string) string {
	return `pg_catalog.concat('"', pg_catalog.replace(` + alias + `.nspname::text, '"', '""'), '"')`
}

// lostTableError reports that one of the daemon's tables is missing while the others
// show that it had rows: an empty table in its place would forget them.
type lostTableError struct{ found, effect, fix string }

// Error names the table, the loss and the way out.
func (e *lostTableError) Error() string {
	return e.found + "; " + e.effect + "; to go on: " + e.fix
}

// findLoss returns a *lostTableError where an empty table in the place of a missing one
// would forget decided notifications, positions or campaigns; nil: nothing is lost.
// missing are the tables that do not exist.
func (t Tables) findLoss(ctx context.Context, q Querier, missing []string) (*lostTableError, error) {
	rows := func(table, condition string) (n int64, err error) {
		if slices.Contains(missing, table) {
			return 0, nil
		}
		err = q.QueryRow(ctx, "SELECT count(*) FROM "+t.Schema+"."+table+condition).Scan(&n)
		if err != nil {
			return 0, fmt.Errorf("look into the table %s.%s: %w", t.Schema, table, err)
		}
		return n, nil
	}
	steps, err := rows("lane", " WHERE seq > 0")
	if err != nil {
		return nil, err
	}
	campaigns, err := rows("campaign", "")
	if err != nil {
		return nil, err
	}
	outbox, err := rows("outbox", "")
	if err != nil {
		return nil, err
	}
	restore := func(table string) string {
		return "put " + t.Schema + "." + table + " back from a backup; or, without one, stop every daemon, create it empty"
	}
	switch {
	case slices.Contains(missing, "outbox") && steps > 0:
		unshipped, err := rows("lane", " WHERE seq > shipped")
		if err != nil {
			return nil, err
		}
		return &lostTableError{
			found:  fmt.Sprintf("the table %s is missing, and %d lanes have decided steps (of %d lanes the last steps may not be shipped)", t.Outbox, steps, unshipped),
			effect: "notifications that were decided and not shipped would be forgotten",
			fix:    restore("outbox") + " (" + t.pasteSQL("outbox") + ") and start the daemon: a lane that had unshipped steps halts and names `dinnerbell resolve`",
		}, nil
	case slices.Contains(missing, "campaign") && steps > 0:
		return &lostTableError{
			found:  fmt.Sprintf("the table %s is missing, and %d lanes have decided steps", t.Campaign, steps),
			effect: "campaigns that are scheduled or under way would be forgotten",
			fix:    restore("campaign") + " (" + t.pasteSQL("campaign") + "), run `dinnerbell setup`, start the daemon, and have it read the campaigns again: `dinnerbell replay --from earliest`",
		}, nil
	case slices.Contains(missing, "lane") && campaigns+outbox > 0:
		return &lostTableError{
			found:  fmt.Sprintf("the table %s is missing, and there are %d campaigns and %d outbox rows", t.Lane, campaigns, outbox),
			effect: "the lanes' positions would be forgotten",
			fix:    restore("lane") + " (" + t.pasteSQL("lane") + ") and start the daemon: a lane that has shipped steps halts and names `dinnerbell resolve`",
		}, nil
	}
	return nil, nil //nolint:nilnil // nothing is lost, and nothing failed
}

// pasteSQL returns the statements that create a table, in one line.
func (t Tables) pasteSQL(name string) string {
	def := daemonTables[slices.IndexFunc(daemonTables, func(d daemonTable) bool { return d.name == name })]
	def.columns = slices.Clone(def.columns)
	for i := range def.columns {
		def.columns[i].about = "" // a comment would hide what follows on its line
	}
	return strings.Join(strings.Fields(strings.Join(def.createSQL(t.Schema), "; ")), " ")
}

// findLayout returns the layout that the existing tables have. numbered is false where
// its number is lost, with the table of the layout or with its row.
func (t Tables) findLayout(ctx context.Context, q Querier, missing []string) (version int, numbered bool, err error) {
	if !slices.Contains(missing, layoutTable) {
		version, err := readLayoutVersion(ctx, q, t)
		if !errors.Is(err, pgx.ErrNoRows) {
			return version, true, err
		}
	}
	if slices.Contains(missing, "campaign") {
		return layoutVersion, false, nil
	}
	columns, err := QueryTexts(ctx, q, `SELECT a.attname::text FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = 'campaign' AND a.attnum > 0 AND NOT a.attisdropped AND `+quotedSchemaSQL("n")+` = $1`, t.Schema)
	if err != nil {
		return 0, false, fmt.Errorf("read columns of %s: %w", t.Campaign, err)
	}
	for _, mark := range cameWith {
		if slices.Contains(columns, mark.column) {
			return mark.layout, false, nil
		}
	}
	return 0, false, fmt.Errorf("tell the layout of %s: it has none of the columns of a campaign; put the table back from a backup, or name another schema in sink.schema", t.Campaign)
}

// createIndex creates an index of the campaign table; online: while the table is used.
func (t Tables) createIndex(ctx context.Context, conn *pgx.Conn, index tableIndex, online bool) error {
	name := t.Schema + "." + index.name
	// A build that failed half-way leaves an invalid index behind.
	if _, err := conn.Exec(ctx, "DROP INDEX IF EXISTS "+name); err != nil {
		return fmt.Errorf("drop invalid index %s: %w", name, err)
	}
	if _, err := conn.Exec(ctx, fmt.Sprintf(index.sql, concurrentIf(online), t.Schema)); err != nil {
		return fmt.Errorf("create index %s: %w", name, err)
	}
	return nil
}

// mendIndexes creates those of daemonIndexes that are missing, and returns a line about
// each where the table is not new.
func (t Tables) mendIndexes(ctx context.Context, conn *pgx.Conn, isNew bool) (did []string, err error) {
	valid, err := readCampaignIndexes(ctx, conn, t)
	if err != nil {
		return nil, err
	}
	for _, index := range daemonIndexes {
		if valid[index.name] {
			continue
		}
		if err := t.createIndex(ctx, conn, index, !isNew); err != nil {
			return did, err
		}
		if !isNew {
			did = append(did, fmt.Sprintf("index %s.%s: created", t.Schema, index.name))
		}
	}
	return did, nil
}

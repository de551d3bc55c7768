package sink

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/precondition"
	"dinnerbell/stream/record"
)

// Rights are the privileges that a command needs, beside USAGE on the schemas of the
// tables.
type Rights struct {
	Own      []string // on the daemon's own tables
	Campaign []string // on the table of campaigns, beside Own
	Feedback []string // on the columns of the feedback table that a notification has
}

// The rights of commands.
var (
	RunningRights   = Rights{Own: []string{"SELECT", "INSERT", "UPDATE", "DELETE"}, Feedback: []string{"SELECT", "INSERT"}}
	ReadingRights   = Rights{Own: []string{"SELECT"}, Feedback: []string{"SELECT"}}
	ListingRights   = Rights{Own: []string{"SELECT"}}
	OperatingRights = Rights{Own: []string{"SELECT"}, Campaign: []string{"UPDATE"}}
)

// listMissingGrants returns the GRANT statements for the rights that the role lacks. It
// looks tables up by name in the catalogue: a cast to regclass fails without USAGE on the
// schema.
func listMissingGrants(ctx context.Context, q Querier, cfg Config, need Rights) ([]string, error) {
	feedbackSchema := ""
	if len(need.Feedback) > 0 {
		feedbackSchema = cfg.Schema
	}
	return QueryTexts(ctx, q, `
SELECT pg_catalog.format('GRANT USAGE ON SCHEMA %I TO %I', n.nspname, current_user) FROM pg_catalog.pg_namespace n
WHERE n.nspname IN ($1, $2) AND NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE')
UNION ALL
SELECT pg_catalog.format('GRANT %s ON ALL TABLES IN SCHEMA %I TO %I', pg_catalog.array_to_string($3::text[], ', '), n.nspname, current_user) FROM pg_catalog.pg_namespace n WHERE n.nspname = $1
  AND EXISTS (SELECT FROM pg_catalog.pg_class c CROSS JOIN pg_catalog.unnest($3::text[]) AS p WHERE c.relnamespace = n.oid
    AND (c.relname IN ('lane', 'campaign', 'outbox') OR c.relname = 'layout' AND p = 'SELECT') AND NOT pg_catalog.has_table_privilege(c.oid, p))
UNION ALL
SELECT pg_catalog.format('GRANT %s ON %I.%I TO %I', p, n.nspname, c.relname, current_user)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace CROSS JOIN pg_catalog.unnest($4::text[]) AS p
WHERE n.nspname = $1 AND c.relname = 'campaign' AND NOT pg_catalog.has_table_privilege(c.oid, p)
UNION ALL
SELECT pg_catalog.format('GRANT %s ON %I.%I TO %I', p, n.nspname, c.relname, current_user)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace CROSS JOIN pg_catalog.unnest($5::text[]) AS p
WHERE n.nspname = $2 AND c.relname = $6 AND NOT pg_catalog.has_table_privilege(c.oid, p) AND EXISTS (SELECT FROM pg_catalog.pg_attribute a
  WHERE a.attrelid = c.oid AND a.attname::text = ANY ($7::text[]) AND NOT pg_catalog.has_column_privilege(c.oid, a.attnum, p))`,
		cfg.DaemonSchema, feedbackSchema, need.Own, need.Campaign, need.Feedback, cfg.Table, record.ColumnNames[:])
}

// IsDenied reports whether Postgres has refused a right.
func IsDenied(err error) bool {
	refused, ok := errors.AsType[*pgconn.PgError](err)
	return ok && refused.Code == codeInsufficientPrivilege
}

// ExplainDenied adds to an error with which Postgres refused a right the GRANT statements
// for the rights that the role lacks of those that the command needs. It returns every
// other error unchanged. The connection must not be in a transaction.
func ExplainDenied(ctx context.Context, conn *pgx.Conn, cfg Config, need Rights, err error) error {
	if !IsDenied(err) {
		return err
	}
	if _, explained := errors.AsType[*precondition.UnmetError](err); explained {
		return err
	}
	grants, readErr := listMissingGrants(ctx, conn, cfg, need)
	if readErr != nil || len(grants) == 0 {
		return err
	}
	return fmt.Errorf("%w (to mend: %s)", err, strings.Join(grants, "; "))
}

// ExplainDeniedAnew is ExplainDenied over a connection of its own.
func ExplainDeniedAnew(ctx context.Context, cfg Config, need Rights, err error) error {
	if !IsDenied(err) {
		return err
	}
	conn, connectErr := cfg.Connect(ctx, "dinnerbell rights")
	if connectErr != nil {
		return err
	}
	defer CloseConn(conn)
	return ExplainDenied(ctx, conn, cfg, need, err)
}

// explainSetupDenied adds to an error with which Postgres refused a statement of Setup the
// statements that let the role run it.
func explainSetupDenied(ctx context.Context, conn *pgx.Conn, cfg Config, err error) error {
	if !IsDenied(err) {
		return err
	}
	names := []string{}
	for i := range daemonTables {
		names = append(names, daemonTables[i].name)
	}
	mend, readErr := QueryTexts(ctx, conn, `
SELECT pg_catalog.format('GRANT CREATE ON DATABASE %I TO %I', pg_catalog.current_database(), current_user)
WHERE NOT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') AND NOT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)
UNION ALL
SELECT pg_catalog.format('GRANT %s ON SCHEMA %I TO %I', p, n.nspname, current_user) FROM pg_catalog.pg_namespace n CROSS JOIN pg_catalog.unnest('{USAGE,CREATE}'::text[]) AS p
WHERE n.nspname IN ($1, $2) AND NOT pg_catalog.has_schema_privilege(n.oid, p)
UNION ALL
SELECT pg_catalog.format('ALTER TABLE %I.%I OWNER TO %I', n.nspname, c.relname, current_user) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE (n.nspname = $2 AND c.relname = $3 OR n.nspname = $1 AND c.relname = ANY ($4::text[])) AND c.relkind IN ('r', 'p') AND NOT pg_catalog.pg_has_role(c.relowner, 'USAGE')`,
		cfg.DaemonSchema, cfg.Schema, cfg.Table, names)
	if readErr != nil || len(mend) == 0 {
		return err
	}
	return fmt.Errorf("%w (to mend: %s; or let somebody with these rights run what `dinnerbell setup --print-sql` prints)", err, strings.Join(mend, "; "))
}

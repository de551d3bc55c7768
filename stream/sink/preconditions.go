package sink

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/precondition"
)

// Preconditions lists the preconditions of the Postgres sink. The unique index comes
// after the preconditions under which setup can create it.
var Preconditions = slices.Concat([]precondition.Check[*Facts]{
	{Name: "sink.connections", At: precondition.AtSetup | precondition.AtStart, Read: checkConnections},
	{Name: "sink.schema", At: precondition.Always, Read: checkSchemaRights},
	{Name: "sink.layout", At: precondition.AtStart | precondition.AtSession, Read: checkTablesLayout},
}, feedbackPreconditions, []precondition.Check[*Facts]{
	{Name: "sink.feedback.unique_index", At: precondition.AtStart | precondition.AtSession, Read: checkUniqueIndex},
})

// Facts holds the facts that the preconditions of the Postgres sink check.
type Facts struct {
	Cfg       Config
	T         Tables
	Conn      *pgx.Conn
	Lanes     int        // partitions of the campaigns topic
	Catalogue *Catalogue // of the feedback table, read before the checks
}

// checkTablesLayout checks that the daemon's own tables exist in the layout that this
// program works on.
func checkTablesLayout(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	return nil, checkLayout(ctx, f.Conn, f.T)
}

// checkSchemaRights checks the role's rights on the daemon's own tables.
func checkSchemaRights(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	// A role without USAGE on the schema cannot see its tables.
	grants, err := QueryTexts(ctx, f.Conn, `
SELECT pg_catalog.format('GRANT USAGE ON SCHEMA %I TO %I', n.nspname, current_user) FROM pg_catalog.pg_namespace n WHERE n.nspname = $1 AND NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE')
UNION ALL
SELECT pg_catalog.format('GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %I TO %I', n.nspname, current_user) FROM pg_catalog.pg_namespace n WHERE n.nspname = $1
  AND EXISTS (SELECT FROM pg_catalog.pg_class c CROSS JOIN pg_catalog.unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) AS p
    WHERE c.relnamespace = n.oid AND c.relname IN ('lane', 'campaign', 'outbox') AND NOT pg_catalog.has_table_privilege(c.oid, p)
    UNION ALL SELECT FROM pg_catalog.pg_class c WHERE c.relnamespace = n.oid AND c.relname = 'layout' AND NOT pg_catalog.has_table_privilege(c.oid, 'SELECT'))`, f.Cfg.DaemonSchema)
	if err != nil {
		return nil, err
	}
	if len(grants) > 0 {
		missing := newFailure("the role "+f.Catalogue.role+" lacks rights on dinnerbell's own tables", "no lane can work", strings.Join(grants, "; "))
		missing.Object = "schema " + f.T.Schema
		return []precondition.Finding{missing}, nil
	}
	return nil, nil
}

// checkUniqueIndex checks that a unique index keeps a client from getting two rows of
// one campaign.
func checkUniqueIndex(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	index, err := FindUniqueIndex(ctx, f.Conn, f.T)
	if err != nil || index != "" || !f.Catalogue.tableExists {
		return nil, err
	}
	return []precondition.Finding{{Level: precondition.Fail, Object: "feedback table " + f.T.Feedback,
		Found:  "it has no valid unique index on (adv_campaign_id, client_id)",
		Effect: "nothing would keep a client from being notified twice",
		Fix:    "dinnerbell setup"}}, nil
}

// checkConnections compares the connections that the lanes take with those that the
// server has left. Once they are used up, the server refuses every client.
func checkConnections(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	lanes := f.Lanes
	need := lanes + f.Cfg.ReaderCount()
	if n := f.Cfg.MaxConnections; n > 0 {
		need = min(need, n)
	}
	var most, reserved, used, role, database int
	if err := f.Conn.QueryRow(ctx, `
SELECT pg_catalog.current_setting('max_connections')::int4,
  pg_catalog.current_setting('superuser_reserved_connections')::int4 + coalesce(pg_catalog.current_setting('reserved_connections', true), '0')::int4,
  (SELECT count(*) FROM pg_catalog.pg_stat_activity a WHERE a.datid IS NOT NULL AND NOT coalesce(pg_catalog.starts_with(a.application_name, 'dinnerbell '), false)),
  (SELECT r.rolconnlimit FROM pg_catalog.pg_roles r WHERE r.rolname = current_user), (SELECT d.datconnlimit FROM pg_catalog.pg_database d WHERE d.datname = current_database())`).
		Scan(&most, &reserved, &used, &role, &database); err != nil {
		return nil, err
	}
	var found []precondition.Finding
	warn := func(what string, room int, fix string) {
		if room < need {
			found = append(found, precondition.Finding{Level: precondition.Warn, Object: "the sink's server",
				Found:  fmt.Sprintf("%d lanes take %d connections to it, and %s", lanes, need, what),
				Effect: "lanes or other clients are refused", Fix: fix})
		}
	}
	lower := "; or lower sink.max_connections and run more daemons"
	warn(fmt.Sprintf("of max_connections %d there are %d reserved and %d in use by others", most, reserved, used), most-reserved-used, "raise max_connections"+lower)
	if role >= 0 {
		warn(fmt.Sprintf("the role may have %d", role), role, "ALTER ROLE … CONNECTION LIMIT -1"+lower)
	}
	if database >= 0 {
		warn(fmt.Sprintf("the database may have %d", database), database, "ALTER DATABASE … CONNECTION LIMIT -1"+lower)
	}
	if n := f.Cfg.MaxConnections; n > 0 && n < lanes+f.Cfg.ReaderCount() {
		found = append(found, precondition.Finding{Level: precondition.Warn, Object: "sink.max_connections",
			Found:  fmt.Sprintf("it is %d, and the %d lanes take %d where one daemon has all of them", n, lanes, lanes+f.Cfg.ReaderCount()),
			Effect: "lanes for which there is none wait", Fix: "raise it, or run more daemons of the group"})
	}
	return found, nil
}

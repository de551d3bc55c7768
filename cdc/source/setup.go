package source

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/precondition"
)

// publishAll is the option that a publication needs.
const publishAll = "publish = 'insert, update, delete, truncate'"

// SetupSQL returns the statements that prepare an empty source for a mirror. The
// slot is not among them: Run makes it with its snapshot.
func SetupSQL(cfg Config) []string {
	return []string{fmt.Sprintf("CREATE PUBLICATION %s FOR TABLE %s WITH (%s, publish_via_partition_root = true)",
		cfg.QuotedPublication(), cfg.QuotedTable(), publishAll)}
}

// Setup makes the missing objects, and returns the statements that it ran. It is
// safe to repeat and to run in two places at once.
func Setup(ctx context.Context, cfg Config) (did []string, err error) {
	db, err := Open(cfg)
	if err != nil {
		return nil, err
	}
	sql, err := db.DialSQL(ctx)
	if err != nil {
		return nil, err
	}
	defer CloseConn(sql.PgConn())
	for {
		cat, err := db.inspectAt(ctx, sql, precondition.AtSetup, true)
		if err != nil {
			return did, err
		}
		missing := cfg.missingStatements(cat)
		if len(missing) == 0 {
			return did, nil
		}
		for _, statement := range missing {
			_, err := sql.Exec(ctx, statement)
			if SQLState(err) == CodeDuplicateObject {
				break // somebody was faster: look again
			}
			if err != nil {
				return did, cfg.explainSetup(ctx, sql, statement, err)
			}
			did = append(did, statement)
		}
	}
}

// explainSetup returns a halt where the role lacks a right: the halt names the statements that
// grant the missing rights, and the statement for the table's owner.
func (c *Config) explainSetup(ctx context.Context, conn *pgx.Conn, statement string, err error) error {
	if SQLState(err) != CodeInsufficientPrivilege {
		return fmt.Errorf("run %q: %w", statement, err)
	}
	hint := "run it as the table's owner: " + statement
	rows, queryErr := conn.Query(ctx, `
SELECT pg_catalog.format('GRANT CREATE ON DATABASE %I TO %I', pg_catalog.current_database(), current_user)
WHERE NOT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') AND NOT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = $1)
UNION ALL
SELECT pg_catalog.format('ALTER TABLE %I.%I OWNER TO %I', n.nspname, t.relname, current_user) FROM pg_catalog.pg_class t JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
WHERE n.nspname = $2 AND t.relname = $3 AND NOT pg_catalog.pg_has_role(t.relowner, 'USAGE')`, c.Publication, c.Schema, c.Table)
	var mend []string
	if queryErr == nil {
		mend, queryErr = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if queryErr == nil && len(mend) > 0 {
		hint = strings.Join(mend, "; ") + "; or " + hint
	}
	return NewHalt(hint, "set up publication: %v", err)
}

// missingStatements returns the statements that are still to be run.
func (c *Config) missingStatements(cat *Catalog) []string {
	p := &cat.publication
	if !p.exists {
		return SetupSQL(*c)
	}
	var statements []string
	if !p.member {
		statements = append(statements, fmt.Sprintf("ALTER PUBLICATION %s ADD TABLE %s", c.QuotedPublication(), c.QuotedTable()))
	}
	if !p.all {
		statements = append(statements, fmt.Sprintf("ALTER PUBLICATION %s SET (%s)", c.QuotedPublication(), publishAll))
	}
	if cat.IsPartitioned() && !p.viaRoot {
		statements = append(statements, fmt.Sprintf("ALTER PUBLICATION %s SET (publish_via_partition_root = true)", c.QuotedPublication()))
	}
	return statements
}

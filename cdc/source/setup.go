package source

import (
	"context"
	"fmt"

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
				return did, explainSetup(statement, err)
			}
			did = append(did, statement)
		}
	}
}

// explainSetup returns a halt where only the table's owner can go on.
func explainSetup(statement string, err error) error {
	if SQLState(err) == CodeInsufficientPrivilege {
		return NewHalt("run it as the table's owner: "+statement, "set up publication: %v", err)
	}
	return fmt.Errorf("run %q: %w", statement, err)
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

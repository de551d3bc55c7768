package cdc

import (
	"context"
	"fmt"

	"dinnerbell/internal/precondition"
)

// publishAll is what a publication has to publish.
const publishAll = "publish = 'insert, update, delete, truncate'"

// SetupSQL gives the statements that make what a mirror needs where nothing is
// there yet. The slot is not among them: Run makes it with its snapshot.
func SetupSQL(cfg SourceConfig) []string {
	return []string{fmt.Sprintf("CREATE PUBLICATION %s FOR TABLE %s WITH (%s, publish_via_partition_root = true)",
		cfg.quotedPublication(), cfg.quotedTable(), publishAll)}
}

// Setup makes what is missing, and tells which statements it ran. It is safe to
// repeat and to run in two places at once.
func Setup(ctx context.Context, cfg SourceConfig) (did []string, err error) {
	db, err := Open(cfg)
	if err != nil {
		return nil, err
	}
	sql, err := db.dialSQL(ctx)
	if err != nil {
		return nil, err
	}
	defer closeConn(sql.PgConn())
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
			if sqlState(err) == codeDuplicateObject {
				break // somebody was faster: look again
			}
			if err != nil {
				return did, explainSetup(statement, err)
			}
			did = append(did, statement)
		}
	}
}

// explainSetup halts where only the table's owner can go on.
func explainSetup(statement string, err error) error {
	if sqlState(err) == codeInsufficientPrivilege {
		return newHalt("run it as the table's owner: "+statement, "set up publication: %v", err)
	}
	return fmt.Errorf("run %q: %w", statement, err)
}

// missingStatements gives the statements that are still to be run.
func (c *SourceConfig) missingStatements(cat *catalog) []string {
	p := &cat.publication
	if !p.exists {
		return SetupSQL(*c)
	}
	var statements []string
	if !p.member {
		statements = append(statements, fmt.Sprintf("ALTER PUBLICATION %s ADD TABLE %s", c.quotedPublication(), c.quotedTable()))
	}
	if !p.all {
		statements = append(statements, fmt.Sprintf("ALTER PUBLICATION %s SET (%s)", c.quotedPublication(), publishAll))
	}
	if cat.isPartitioned() && !p.viaRoot {
		statements = append(statements, fmt.Sprintf("ALTER PUBLICATION %s SET (publish_via_partition_root = true)", c.quotedPublication()))
	}
	return statements
}

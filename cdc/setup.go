package cdc

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// publishAll is what a publication has to publish.
const publishAll = "publish = 'insert, update, delete, truncate'"

// SetupSQL gives the statements that make what a mirror needs where nothing is
// there yet. The slot is not among them: Run makes it with its snapshot.
func SetupSQL(cfg Config) []string {
	return []string{fmt.Sprintf("CREATE PUBLICATION %s FOR TABLE %s WITH (%s, publish_via_partition_root = true)",
		cfg.publication(), cfg.table(), publishAll)}
}

// Setup makes what is missing, and tells which statements it ran. It is safe to
// repeat and to run in two places at once.
func Setup(ctx context.Context, cfg Config) (did []string, err error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	sql, err := cfg.dialSQL(ctx)
	if err != nil {
		return nil, err
	}
	defer closeConn(sql.PgConn())
	if err := cfg.inspectBefore(ctx, sql); err != nil {
		return nil, err
	}
	for {
		missing, err := cfg.missing(ctx, sql)
		if err != nil || len(missing) == 0 {
			return did, err
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

// inspectBefore refuses what cannot be mirrored before it is published. More is
// at stake than a setup that ends half way: once a table without a replica
// identity is published, Postgres refuses every UPDATE and DELETE of it, and so
// breaks the services that write there.
func (c *Config) inspectBefore(ctx context.Context, sql *pgx.Conn) error {
	cat := &catalog{}
	for _, step := range []func(context.Context, *pgx.Conn, *catalog) error{c.inspectServer, c.inspectTable, c.inspectColumns, c.inspectIdentity} {
		if err := step(ctx, sql, cat); err != nil {
			return err
		}
	}
	return nil
}

// explainSetup halts where only the table's owner can go on.
func explainSetup(statement string, err error) error {
	if sqlState(err) == codeInsufficientPrivilege {
		return halt("run it as the table's owner: "+statement, "set up publication: %v", err)
	}
	return fmt.Errorf("run %q: %w", statement, err)
}

// missing gives the statements that are still to be run.
func (c *Config) missing(ctx context.Context, sql *pgx.Conn) ([]string, error) {
	var all, member, viaRoot, partitioned bool
	err := sql.QueryRow(ctx, `
		SELECT p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate, p.pubviaroot,
		       EXISTS (SELECT FROM pg_publication_tables t
		               WHERE t.pubname = p.pubname AND t.schemaname = $2 AND t.tablename = $3)
		       OR EXISTS (SELECT FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = to_regclass($4)),
		       coalesce((SELECT c.relkind = 'p' FROM pg_class c WHERE c.oid = to_regclass($4)), false)
		FROM pg_publication p WHERE p.pubname = $1`, c.Publication, c.Schema, c.Table, c.table()).
		Scan(&all, &viaRoot, &member, &partitioned)
	if errors.Is(err, pgx.ErrNoRows) {
		return SetupSQL(*c), nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for publication %s: %w", c.publication(), err)
	}
	var statements []string
	if !member {
		statements = append(statements, fmt.Sprintf("ALTER PUBLICATION %s ADD TABLE %s", c.publication(), c.table()))
	}
	if !all {
		statements = append(statements, fmt.Sprintf("ALTER PUBLICATION %s SET (%s)", c.publication(), publishAll))
	}
	if partitioned && !viaRoot {
		statements = append(statements, fmt.Sprintf("ALTER PUBLICATION %s SET (publish_via_partition_root = true)", c.publication()))
	}
	return statements, nil
}

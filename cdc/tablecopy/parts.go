package tablecopy

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"dinnerbell/cdc/source"
)

// Part is the rows that one COPY reads: a relation, or a range of its blocks.
type Part struct {
	relation string // quoted, with ONLY where its descendants are other tables
	Whole    bool   // all blocks; else the range below
	from, to int64  // to is behind the last block; 0: the range is open
	only     string // see Request.Only
}

// fromClause is the FROM clause of the part. A TID range scan (14 and newer) reads
// nothing else of the table; the last range is open, so that no block is forgotten.
func (p Part) fromClause() string {
	var where []string
	if !p.Whole {
		where = append(where, fmt.Sprintf("ctid >= '(%d,0)'", p.from))
	}
	if p.to != 0 {
		where = append(where, fmt.Sprintf("ctid < '(%d,0)'", p.to))
	}
	if p.only != "" {
		where = append(where, p.only)
	}
	if len(where) == 0 {
		return " FROM " + p.relation
	}
	return " FROM " + p.relation + " WHERE " + strings.Join(where, " AND ")
}

// PlanParts cuts a large table into ranges of blocks, each partition by itself. It
// leaves the table in one piece where the role may not read a partition directly,
// or where the root has a policy: reading below the root would step around the
// refusal.
func PlanParts(ctx context.Context, sql *pgx.Conn, cfg *source.Config, cat *source.Catalog, limits Limits) ([]Part, error) {
	whole := []Part{{relation: fromTable(cfg, cat), Whole: true}}
	if limits.Connections < 2 {
		return whole, nil
	}
	ctx, cancel := context.WithTimeout(ctx, source.QueryTimeout)
	defer cancel()
	rows, err := sql.Query(ctx, `
		SELECT format('%I.%I', n.nspname, c.relname), coalesce(pg_relation_size(c.oid), 0), block,
		       coalesce(has_table_privilege(c.oid, 'SELECT') AND has_table_privilege($1::oid, 'SELECT'), false)
		         AND NOT c.relrowsecurity AND NOT (SELECT relrowsecurity FROM pg_class WHERE oid = $1::oid)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
		     (SELECT current_setting('block_size')::bigint AS block) AS b
		WHERE c.relkind = 'r' AND c.oid IN (SELECT relid FROM pg_partition_tree($1::oid) UNION SELECT $1::oid)
		ORDER BY c.oid`, cat.Source.TableOID)
	if err != nil {
		return nil, fmt.Errorf("measure table: %w", err)
	}
	var parts []Part
	var name string
	var size, block, bytes int64
	var readable bool
	all := true
	_, err = pgx.ForEachRow(rows, []any{&name, &size, &block, &readable}, func() error {
		all = all && readable
		bytes += size
		parts = append(parts, cutBlocks("ONLY "+name, size/block, max(limits.RangeBytes/block, 1))...)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("measure table: %w", err)
	}
	if !all || bytes < limits.ParallelBytes {
		return whole, nil
	}
	return parts, nil
}

// cutBlocks cuts a relation into ranges of step blocks; the last is open.
func cutBlocks(relation string, blocks, step int64) []Part {
	parts := []Part{{relation: relation}}
	for at := step; at < blocks; at += step {
		parts[len(parts)-1].to = at
		parts = append(parts, Part{relation: relation, from: at})
	}
	return parts
}

// fromTable names the table in a FROM clause: an ordinary one without its
// descendants, which are tables of their own.
func fromTable(cfg *source.Config, cat *source.Catalog) string {
	if cat.IsPartitioned() {
		return cfg.QuotedTable()
	}
	return "ONLY " + cfg.QuotedTable()
}

package sink

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"dinnerbell/stream/record"
)

// Catalogue holds the facts about the feedback table that the server's catalogue has,
// for the preconditions.
type Catalogue struct {
	Feedback    *FeedbackTable // its columns may be missing or unfit
	tableExists bool
	kind        string   // pg_class.relkind
	unlogged    []string // it, or partitions of it, that are not logged
	foreign     []string // partitions that are foreign tables
	hidden      bool     // row-level security applies to this role
	children    bool     // by inheritance
	columns     map[string]catalogueColumn
	required    []string // other columns than the ten that are NOT NULL and that nothing fills
	rules       []string // on INSERT or UPDATE
	partKeys    []string // columns of the partition key; "" is an expression
	sequence    []sequenceUsage
	denied      []string // rights that the role lacks, as GRANT statements
	role        string   // quoted
}

type catalogueColumn struct {
	typ           string
	base          uint32 // OID of its type; of a domain, the base type
	mod           int32  // its typmod
	filled        string // "generated", "identity" or ""
	inKey         bool   // of the primary key
	deterministic bool   // the collation takes only identical texts for equal
}

// sequenceUsage is one sequence that a default of the table takes numbers from.
type sequenceUsage struct {
	name, column string
	last, limit  int64 // limit is the last number that both column and sequence can hold
	identity     bool
	capped       bool // the limit is the sequence's MAXVALUE, not the column's
	behind       bool // the table has rows with the next numbers already
}

// ReadCatalogue reads all facts about the feedback table. A missing table is not an
// error. With an error it returns the facts that it has read before.
func ReadCatalogue(ctx context.Context, conn Querier, t Tables) (*Catalogue, error) {
	c := &Catalogue{Feedback: &FeedbackTable{schema: t.FeedbackSchema, Name: t.Feedback}, columns: map[string]catalogueColumn{}}
	for _, read := range []func(context.Context, Querier) error{c.readRelation, c.readTree, c.readColumns, c.readTriggers, c.readPartitionKey, c.readRights, c.readShape} {
		if err := read(ctx, conn); err != nil {
			return c, fmt.Errorf("read the catalogue of feedback table %s: %w", t.Feedback, err)
		}
		if !c.tableExists {
			return c, nil
		}
	}
	return c, nil
}

func (c *Catalogue) readRelation(ctx context.Context, conn Querier) error {
	f := c.Feedback
	rows, err := conn.Query(ctx, `
SELECT c.oid, c.relkind::text, pg_catalog.row_security_active(c.oid),
  c.relkind = 'r' AND EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid),
  pg_catalog.current_setting('server_encoding'), pg_catalog.quote_ident(current_user),
  c.relkind = 'p' OR EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal)
    OR EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'c')
    OR EXISTS (SELECT FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid WHERE a.attrelid = c.oid AND t.typtype = 'd')
    OR EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.refclassid = 'pg_catalog.pg_proc'::regclass
      AND (d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid IN (SELECT f.oid FROM pg_catalog.pg_attrdef f WHERE f.adrelid = c.oid)
        OR d.classid = 'pg_catalog.pg_class'::regclass AND d.objid IN (SELECT i.indexrelid FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid)))
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE pg_catalog.concat('"', pg_catalog.replace(n.nspname::text, '"', '""'), '"."', pg_catalog.replace(c.relname::text, '"', '""'), '"') = $1`, f.Name) // to_regclass fails without USAGE on the schema
	if err != nil {
		return err
	}
	var none bool
	_, err = pgx.ForEachRow(rows, []any{&f.OID, &c.kind, &c.hidden, &c.children, &f.Encoding, &c.role, &none}, func() error {
		f.partitioned = c.kind == "p"
		c.tableExists, f.RunsUserCode, f.byteLimits = true, none, f.Encoding == "SQL_ASCII"
		return nil
	})
	return err
}

// readColumnsSQL resolves domains down to their base types.
const readColumnsSQL = `
WITH RECURSIVE base AS (
  SELECT a.attnum, a.attname::text AS name, pg_catalog.format_type(a.atttypid, a.atttypmod) AS spelled, a.atttypid AS typ, a.atttypmod AS mod,
    a.attnotnull AS required, a.atthasdef AS filled, a.attidentity::text AS identity, a.attgenerated::text AS generated, a.attcollation AS collation
  FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
  UNION ALL
  SELECT b.attnum, b.name, b.spelled, t.typbasetype, t.typtypmod, b.required OR t.typnotnull, b.filled OR t.typdefault IS NOT NULL, b.identity, b.generated, b.collation
  FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.typ WHERE t.typtype = 'd')
SELECT b.name, b.spelled, b.typ, b.mod, b.required AND NOT b.filled AND b.identity = '',
  CASE WHEN b.generated <> '' THEN 'generated' WHEN b.identity <> '' THEN 'identity' ELSE '' END, coalesce(l.collisdeterministic, true),
  EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = $1 AND i.indisprimary AND b.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]))
FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.typ LEFT JOIN pg_catalog.pg_collation l ON l.oid = b.collation
WHERE t.typtype <> 'd' ORDER BY b.attnum`

func (c *Catalogue) readColumns(ctx context.Context, conn Querier) error {
	rows, err := conn.Query(ctx, readColumnsSQL, c.Feedback.OID)
	if err != nil {
		return err
	}
	var name string
	var required bool
	var k catalogueColumn
	_, err = pgx.ForEachRow(rows, []any{&name, &k.typ, &k.base, &k.mod, &required, &k.filled, &k.deterministic, &k.inKey}, func() error {
		c.columns[name] = k
		if required && !slices.Contains(record.ColumnNames[:], name) {
			c.required = append(c.required, name)
		}
		return nil
	})
	for i, name := range record.ColumnNames {
		k := c.columns[name]
		c.Feedback.Kinds[i], c.Feedback.types[i] = kindsByOID[k.base], columnType{sql: k.typ, limit: k.sizeLimit()}
	}
	_, c.Feedback.HasID = c.columns["id"]
	_, c.Feedback.HasFeedback = c.columns["feedback"]
	return err
}

// sizeLimit returns n of varchar(n) and char(n), and the digits before the point of
// numeric(p, s).
func (k catalogueColumn) sizeLimit() int {
	mod := k.mod - 4 // atttypmod counts a header of four bytes that values no longer have
	switch {
	case mod < 0:
		return 0
	case kindsByOID[k.base] == record.KindNumeric:
		scale := mod & 0x7ff
		return int(mod>>16&0xffff - (scale ^ 1024 - 1024)) // since Postgres 15 the scale may be negative
	}
	return int(mod)
}

// TreeSQL selects the table with its partitions, by key whatever the statistics say.
const TreeSQL = `WITH RECURSIVE tree AS (
  SELECT $1::oid AS oid UNION ALL
  SELECT i.inhrelid FROM tree CROSS JOIN LATERAL (SELECT s.inhrelid FROM pg_catalog.pg_inherits s WHERE s.inhparent = tree.oid OFFSET 0) AS i)`

// readTree reads the kinds of the relations that hold the rows: a partition may be of
// another kind than its table.
func (c *Catalogue) readTree(ctx context.Context, conn Querier) (err error) {
	const names = TreeSQL + ` SELECT pg_catalog.format('%I.%I', n.nspname, r.relname) FROM tree JOIN pg_catalog.pg_class r ON r.oid = tree.oid JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace WHERE `
	if c.unlogged, err = QueryTexts(ctx, conn, names+`r.relpersistence <> 'p' AND r.relkind <> 'p' ORDER BY 1`, c.Feedback.OID); err != nil {
		return err
	}
	c.foreign, err = QueryTexts(ctx, conn, names+`r.relkind = 'f' AND r.oid <> $1 ORDER BY 1`, c.Feedback.OID)
	return err
}

// mayDropRowSQL selects the triggers that can change or drop a row: enabled, BEFORE,
// INSERT, FOR EACH ROW.
const mayDropRowSQL = `NOT g.tgisinternal AND g.tgenabled IN ('O', 'A') AND g.tgtype & 7 = 7`

func (c *Catalogue) readTriggers(ctx context.Context, conn Querier) (err error) {
	if c.Feedback.Triggers, err = QueryTexts(ctx, conn, TreeSQL+`
SELECT DISTINCT g.tgname::text FROM tree JOIN pg_catalog.pg_trigger g ON g.tgrelid = tree.oid WHERE `+mayDropRowSQL+` ORDER BY 1`, c.Feedback.OID); err != nil {
		return err
	}
	c.rules, err = QueryTexts(ctx, conn, `SELECT rulename::text FROM pg_catalog.pg_rewrite WHERE ev_class = $1 AND ev_type IN ('2', '3') AND ev_enabled <> 'D' ORDER BY 1`, c.Feedback.OID)
	return err
}

func (c *Catalogue) readPartitionKey(ctx context.Context, conn Querier) (err error) {
	c.partKeys, err = QueryTexts(ctx, conn, `SELECT coalesce(a.attname::text, '') FROM pg_catalog.pg_partitioned_table p
CROSS JOIN LATERAL pg_catalog.unnest(p.partattrs::int2[]) AS k(attnum) LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = k.attnum AND k.attnum > 0
WHERE p.partrelid = $1`, c.Feedback.OID)
	return err
}

// readRights collects the rights that the role lacks.
func (c *Catalogue) readRights(ctx context.Context, conn Querier) (err error) {
	c.denied, err = QueryTexts(ctx, conn, `
SELECT pg_catalog.format('GRANT USAGE ON SCHEMA %I TO %I', n.nspname, current_user) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = $1 AND NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE')
UNION ALL
SELECT pg_catalog.format('GRANT %s ON %s TO %I', p, $2::text, current_user) FROM pg_catalog.unnest('{SELECT,INSERT}'::text[]) AS p
WHERE NOT pg_catalog.has_table_privilege($1, p) AND EXISTS (SELECT FROM pg_catalog.pg_attribute a
  WHERE a.attrelid = $1 AND a.attname::text = ANY ($3::text[]) AND NOT pg_catalog.has_column_privilege($1, a.attnum, p))`,
		c.Feedback.OID, c.Feedback.Name, record.ColumnNames[:])
	if err != nil {
		return err
	}
	return c.readSequences(ctx, conn)
}

// readSequencesSQL selects the sequences that the table's defaults and identity columns
// take numbers from. A default's sequence needs USAGE, an identity column's does not.
const readSequencesSQL = `
WITH used AS (
  SELECT d.refobjid AS seq, ad.adnum AS attnum, false AS identity FROM pg_catalog.pg_attrdef ad
  JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = ad.oid AND d.refclassid = 'pg_catalog.pg_class'::regclass
  JOIN pg_catalog.pg_class s ON s.oid = d.refobjid AND s.relkind = 'S' WHERE ad.adrelid = $1
  UNION
  SELECT d.objid, d.refobjsubid, true FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S'
  WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = $1 AND d.deptype = 'i')
SELECT pg_catalog.format('%I.%I', n.nspname, s.relname), pg_catalog.quote_ident(a.attname), u.identity, q.seqmax < CASE a.atttypid WHEN 21 THEN 32767 WHEN 23 THEN 2147483647 ELSE 9223372036854775807 END OR a.atttypid = 20,
  CASE WHEN q.seqcycle OR q.seqincrement < 0 THEN 9223372036854775807 ELSE least(q.seqmax, CASE a.atttypid WHEN 21 THEN 32767 WHEN 23 THEN 2147483647 ELSE 9223372036854775807 END) END,
  u.identity OR pg_catalog.has_sequence_privilege(s.oid, 'USAGE') OR pg_catalog.has_sequence_privilege(s.oid, 'UPDATE'),
  CASE WHEN pg_catalog.has_sequence_privilege(s.oid, 'USAGE') OR pg_catalog.has_sequence_privilege(s.oid, 'SELECT') THEN coalesce(pg_catalog.pg_sequence_last_value(s.oid), 0) ELSE 0 END,
  EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum AND i.indpred IS NULL)
    AND pg_catalog.has_column_privilege($1, a.attnum, 'SELECT') AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND (pg_catalog.has_sequence_privilege(s.oid, 'USAGE') OR pg_catalog.has_sequence_privilege(s.oid, 'SELECT'))
FROM used u JOIN pg_catalog.pg_class s ON s.oid = u.seq JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace JOIN pg_catalog.pg_sequence q ON q.seqrelid = u.seq
JOIN pg_catalog.pg_attribute a ON a.attrelid = $1 AND a.attnum = u.attnum AND a.atttypid IN (20, 21, 23) ORDER BY 1`

func (c *Catalogue) readSequences(ctx context.Context, conn Querier) error {
	rows, err := conn.Query(ctx, readSequencesSQL, c.Feedback.OID)
	if err != nil {
		return err
	}
	var s sequenceUsage
	var granted, unique bool
	var uniques []bool
	_, err = pgx.ForEachRow(rows, []any{&s.name, &s.column, &s.identity, &s.capped, &s.limit, &granted, &s.last, &unique}, func() error {
		c.sequence, uniques = append(c.sequence, s), append(uniques, unique)
		if !granted {
			c.denied = append(c.denied, "GRANT USAGE ON SEQUENCE "+s.name+" TO "+c.role)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i := range c.sequence {
		s := &c.sequence[i]
		if !uniques[i] {
			continue
		}
		// Only if nobody has taken a number since last was read.
		if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+c.Feedback.Name+` WHERE `+s.column+` > $1::int8 AND `+s.column+` <= $1::int8 + 100)
  AND $1::int8 = coalesce(pg_catalog.pg_sequence_last_value($2::text::regclass), 0)`, s.last, s.name).Scan(&s.behind); err != nil {
			return err
		}
	}
	return nil
}

// shapeSQL is the query that selects, as one text, all facts about the feedback table
// that a step's statements depend on. The step's transaction compares the text while it
// holds the table's lock, after its rows and before its commit: so nobody can have
// changed a column's type, added a trigger that drops rows, or dropped the unique index.
// expr surrounds the text. $1 is the table's oid, $2 its name.
//
// Each step pays for the query, so it reads by keys alone, whatever the statistics say,
// and looks for partitions only in a partitioned table. The columns of an index stand in
// it by number: the names of the numbers are in the text too.
func (t *FeedbackTable) shapeSQL(expr func(text string) string) string {
	tree, unlogged, triggers := "", "''", "g.tgrelid = $1"
	from := "pg_catalog.pg_trigger g"
	if t.partitioned {
		tree, unlogged = TreeSQL, "(SELECT pg_catalog.string_agg(r.oid::text, ',' ORDER BY r.oid) FROM tree CROSS JOIN LATERAL (SELECT * FROM pg_catalog.pg_class s WHERE s.oid = tree.oid OFFSET 0) AS r WHERE r.relpersistence <> 'p' AND r.relkind <> 'p')"
		from, triggers = "tree CROSS JOIN LATERAL (SELECT * FROM pg_catalog.pg_trigger s WHERE s.tgrelid = tree.oid OFFSET 0) AS g", "true"
	}
	return tree + ` SELECT ` + expr(`pg_catalog.concat_ws(';', $1::oid = pg_catalog.to_regclass($2::text), `+unlogged+`,
  (SELECT pg_catalog.concat_ws(' ', c.relkind, c.relpersistence, c.relrowsecurity, c.relforcerowsecurity, c.relhasrules) FROM pg_catalog.pg_class c WHERE c.oid = $1),
  (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attnotnull, a.atthasdef, a.attidentity, a.attgenerated), ',' ORDER BY a.attnum)
   FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped),
  (SELECT pg_catalog.string_agg(g.tgname::text, ',' ORDER BY g.tgname) FROM `+from+` WHERE `+triggers+` AND `+mayDropRowSQL+`),
  (SELECT pg_catalog.string_agg(DISTINCT i.indkey::text, ',') FROM pg_catalog.pg_index i WHERE i.indrelid = $1 AND i.indisvalid AND `+wholeUniqueSQL+`))`)
}

func (c *Catalogue) readShape(ctx context.Context, conn Querier) error {
	if len(c.denied) > 0 {
		return nil // no session begins
	}
	text := func(text string) string { return text }
	return conn.QueryRow(ctx, c.Feedback.shapeSQL(text), c.Feedback.OID, c.Feedback.Name).Scan(&c.Feedback.Shape)
}

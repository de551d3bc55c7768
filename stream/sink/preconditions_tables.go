package sink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/precondition"
)

// checkTables compares the daemon's own tables with their definitions. Missing tables,
// and those of another layout, are the findings of sink.layout.
func checkTables(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	c := &tablesCheck{t: f.T, conn: f.Conn}
	if err := c.readTables(ctx); err != nil {
		return nil, err
	}
	if len(c.actual) < len(daemonTables) {
		if f.ForDoctor {
			return nil, errNoTables
		}
		return nil, nil
	}
	switch version, err := readLayoutVersion(ctx, f.Conn, f.T); {
	case f.ForDoctor && (err != nil || version != layoutVersion):
		return nil, errOtherLayout
	case errors.Is(err, pgx.ErrNoRows), err == nil && version != layoutVersion:
		return nil, nil
	case err != nil:
		return nil, err
	}
	for i := range daemonTables {
		if err := c.checkTable(ctx, &daemonTables[i], c.actual[daemonTables[i].name]); err != nil {
			return c.found, err
		}
	}
	if err := c.checkTriggers(ctx); err != nil {
		return c.found, err
	}
	if err := c.checkConstraints(ctx); err != nil {
		return c.found, err
	}
	return c.found, c.checkIndexes(ctx)
}

// Why `doctor` cannot compare the tables.
var (
	errNoTables    = errors.New("some of the tables are missing")
	errOtherLayout = errors.New("the tables do not have the layout of this dinnerbell")
)

// tablesCheck is one comparison of the daemon's tables with their definitions.
type tablesCheck struct {
	t      Tables
	conn   *pgx.Conn
	actual map[string]*actualTable
	found  []precondition.Finding
}

// actualTable is one of the daemon's tables as the server's catalogue has it.
type actualTable struct {
	oid         uint32
	kind        string // pg_class.relkind
	persistence string // pg_class.relpersistence
	hidden      bool   // row-level security applies to this role
	hasKey      bool   // a valid unique index over the columns of the key, all NOT NULL
	columns     map[string]actualColumn
}

// actualColumn is a column as the server's catalogue has it.
type actualColumn struct {
	typ, fallback string
	null, filled  bool // filled: generated, or an identity column
}

// readTables reads the tables and their columns, one row for each column.
func (c *tablesCheck) readTables(ctx context.Context) error {
	names, keys := make([]string, len(daemonTables)), make([]string, len(daemonTables))
	for i, d := range daemonTables {
		names[i], keys[i] = d.name, strings.Join(slices.Sorted(slices.Values(d.key)), ",")
	}
	rows, err := c.conn.Query(ctx, `
SELECT w.name, c.oid, c.relkind::text, c.relpersistence::text, pg_catalog.row_security_active(c.oid),
  EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
    AND (SELECT pg_catalog.string_agg(k.attname::text, ',' ORDER BY k.attname::text COLLATE "C") FROM pg_catalog.pg_attribute k WHERE k.attrelid = c.oid AND k.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])) = w.key),
  coalesce(a.attname::text, ''), coalesce(pg_catalog.format_type(a.atttypid, a.atttypmod), ''), coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid), ''), NOT coalesce(a.attnotnull, true),
  coalesce(a.attidentity <> '' OR a.attgenerated <> '', false)
FROM unnest($2::text[], $3::text[]) AS w(name, key) JOIN pg_catalog.pg_class c ON c.relname = w.name JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND `+quotedSchemaSQL("n")+` = $1
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
ORDER BY w.name, a.attnum`, c.t.Schema, names, keys)
	if err != nil {
		return err
	}
	c.actual = map[string]*actualTable{}
	var name, column string
	var table actualTable
	var k actualColumn
	_, err = pgx.ForEachRow(rows, []any{&name, &table.oid, &table.kind, &table.persistence, &table.hidden, &table.hasKey, &column, &k.typ, &k.fallback, &k.null, &k.filled}, func() error {
		if c.actual[name] == nil {
			seen := table
			seen.columns = map[string]actualColumn{}
			c.actual[name] = &seen
		}
		if column != "" {
			c.actual[name].columns[column] = k
		}
		return nil
	})
	return err
}

// fail adds a finding that keeps lanes from working.
func (c *tablesCheck) fail(table, found, effect, fix string) {
	f := newFailure(found, effect, fix)
	f.Object = "table " + c.t.Schema + "." + table
	c.found = append(c.found, f)
}

// warn adds a finding that hurts later.
func (c *tablesCheck) warn(table, found, effect, fix string) {
	c.found = append(c.found, newWarning("table "+c.t.Schema+"."+table, found, effect, fix))
}

// alterSQL returns an ALTER TABLE statement.
func (c *tablesCheck) alterSQL(table, format string, args ...any) string {
	return "ALTER TABLE " + c.t.Schema + "." + table + " " + fmt.Sprintf(format, args...)
}

func (c *tablesCheck) checkTable(ctx context.Context, want *daemonTable, table *actualTable) error {
	if table.kind != "r" {
		c.fail(want.name, "it is no plain table (relkind "+table.kind+")", "no lane can work",
			"ALTER TABLE "+c.t.Schema+"."+want.name+" RENAME TO "+want.name+"_former; -- then put the table back from a backup, or, where nothing was decided yet: dinnerbell setup")
		return nil
	}
	if table.persistence != "p" {
		c.fail(want.name, "it is not logged", "a crash of Postgres would empty it, and clients would be notified again or not at all", c.alterSQL(want.name, "SET LOGGED"))
	}
	if table.hidden {
		c.fail(want.name, "row-level security applies to this role", "rows would be hidden from the daemon", c.alterSQL(want.name, "DISABLE ROW LEVEL SECURITY"))
	}
	if err := c.checkColumns(ctx, want, table); err != nil {
		return err
	}
	if len(want.key) > 0 && !table.hasKey {
		c.fail(want.name, "it has no primary key ("+strings.Join(want.key, ", ")+")", "a step is refused, or one row becomes two", c.alterSQL(want.name, "ADD PRIMARY KEY (%s)", strings.Join(want.key, ", ")))
	}
	return nil
}

// plainTables returns the oids of the tables that can have triggers and constraints, and
// their definitions.
func (c *tablesCheck) plainTables() (oids []uint32, byOID map[uint32]*daemonTable) {
	byOID = map[uint32]*daemonTable{}
	for i := range daemonTables {
		if table := c.actual[daemonTables[i].name]; table.kind == "r" {
			oids, byOID[table.oid] = append(oids, table.oid), &daemonTables[i]
		}
	}
	return oids, byOID
}

// checkColumns compares the columns of a table with the definition.
func (c *tablesCheck) checkColumns(ctx context.Context, want *daemonTable, table *actualTable) error {
	for i := range want.columns {
		w := &want.columns[i]
		k, there := table.columns[w.name]
		switch {
		case !there:
			fix, err := c.restoreColumn(ctx, want, w)
			if err != nil {
				return err
			}
			c.fail(want.name, "column "+w.name+" is missing", "no lane can work", fix)
			continue
		case k.filled:
			c.fail(want.name, "column "+w.name+" is generated or an identity column", "the daemon's own value cannot be written to it", c.alterSQL(want.name, "ALTER COLUMN %s DROP EXPRESSION IF EXISTS, ALTER COLUMN %[1]s DROP IDENTITY IF EXISTS", w.name))
		case k.typ != w.typ:
			c.fail(want.name, "column "+w.name+" is of type "+k.typ+", not "+w.typ, "the daemon's values do not fit, or are read as others", c.retypeSQL(want.name, w))
		}
		if k.null && !w.null {
			c.warn(want.name, "column "+w.name+" may be NULL", "a NULL that somebody writes ends a lane's session", c.alterSQL(want.name, "ALTER COLUMN %s SET NOT NULL", w.name))
		}
		if !k.null && w.null {
			c.fail(want.name, "column "+w.name+" is NOT NULL", "steps are refused", c.alterSQL(want.name, "ALTER COLUMN %s DROP NOT NULL", w.name))
		}
		if k.typ == w.typ && !k.filled && w.fallback != "" && k.fallback != w.fallback {
			c.fail(want.name, fmt.Sprintf("column %s has the default %q, not %q", w.name, k.fallback, w.fallback), "new rows get no value or a wrong one", c.alterSQL(want.name, "ALTER COLUMN %s SET DEFAULT %s", w.name, w.fallback))
		}
	}
	for name, k := range table.columns {
		known := slices.ContainsFunc(want.columns, func(w daemonColumn) bool { return w.name == name })
		if !known && !k.null && k.fallback == "" && !k.filled {
			c.fail(want.name, "column "+name+" is NOT NULL, has no default, and dinnerbell does not know it", "no row can be added", c.alterSQL(want.name, "ALTER COLUMN %s DROP NOT NULL", quoteIdent(name)))
		}
	}
	return nil
}

// retypeSQL returns the statement that gives a column the type of the definition. A
// default of another type would be in the way.
func (c *tablesCheck) retypeSQL(table string, w *daemonColumn) string {
	change := fmt.Sprintf("ALTER COLUMN %s TYPE %s USING %[1]s::text::%[2]s", w.name, w.typ)
	if w.typ == "bytea" {
		change = fmt.Sprintf("ALTER COLUMN %s TYPE bytea USING %[1]s::bytea", w.name)
	}
	if w.fallback == "" {
		return c.alterSQL(table, "%s", change)
	}
	return c.alterSQL(table, "ALTER COLUMN %s DROP DEFAULT, %s, ALTER COLUMN %[1]s SET DEFAULT %[3]s", w.name, change, w.fallback)
}

// restoreColumn returns how a missing column comes back: a column that can begin with its
// default, and each column of an empty table, by a statement; the others from a backup.
func (c *tablesCheck) restoreColumn(ctx context.Context, want *daemonTable, w *daemonColumn) (string, error) {
	add := c.alterSQL(want.name, "ADD COLUMN %s", w.definition())
	if !w.isVital() {
		return add, nil
	}
	var used bool
	if err := c.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM "+c.t.Schema+"."+want.name+")").Scan(&used); err != nil {
		return "", fmt.Errorf("look into the table %s.%s: %w", c.t.Schema, want.name, err)
	}
	if used {
		return "stop every daemon, and put " + c.t.Schema + "." + want.name + " back from a backup: nothing else has the values of " + w.name, nil
	}
	return add, nil
}

// checkTriggers refuses triggers and rules that may change or drop what the daemon
// writes, and warns of other triggers.
func (c *tablesCheck) checkTriggers(ctx context.Context) error {
	oids, byOID := c.plainTables()
	rows, err := c.conn.Query(ctx, `
SELECT g.tgrelid, pg_catalog.quote_ident(g.tgname), 'trigger', g.tgtype & 3 = 3 FROM pg_catalog.pg_trigger g WHERE g.tgrelid = ANY ($1::oid[]) AND NOT g.tgisinternal AND g.tgenabled IN ('O', 'A')
UNION ALL
SELECT r.ev_class, pg_catalog.quote_ident(r.rulename), 'rule', true FROM pg_catalog.pg_rewrite r WHERE r.ev_class = ANY ($1::oid[]) AND r.ev_enabled IN ('O', 'A')
ORDER BY 1, 2`, oids)
	if err != nil {
		return err
	}
	var oid uint32
	var name, kind string
	var changes bool
	_, err = pgx.ForEachRow(rows, []any{&oid, &name, &kind, &changes}, func() error {
		table := byOID[oid].name
		disable := c.alterSQL(table, "DISABLE %s %s", strings.ToUpper(kind), name)
		switch {
		case kind == "rule":
			c.fail(table, "it has the rule "+name, "it rewrites the daemon's statements", disable)
		case changes:
			c.fail(table, "its trigger "+name+" runs BEFORE and FOR EACH ROW", "it may change or drop what the daemon writes", disable)
		default:
			c.warn(table, "it has the trigger "+name, "each step takes longer, and an error in it ends the lane's session", disable)
		}
		return nil
	})
	return err
}

// checkConstraints warns of constraints and unique indexes that are not in the
// definition.
func (c *tablesCheck) checkConstraints(ctx context.Context) error {
	oids, byOID := c.plainTables()
	rows, err := c.conn.Query(ctx, `
SELECT k.conrelid, pg_catalog.quote_ident(k.conname), pg_catalog.pg_get_constraintdef(k.oid) FROM pg_catalog.pg_constraint k WHERE k.conrelid = ANY ($1::oid[]) AND k.contype IN ('c', 'f', 'x', 'u')
UNION ALL
SELECT i.indrelid, pg_catalog.quote_ident(c.relname), pg_catalog.pg_get_indexdef(c.oid) FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = ANY ($1::oid[]) AND i.indisunique AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conindid = c.oid)
ORDER BY 1, 2`, oids)
	if err != nil {
		return err
	}
	var oid uint32
	var name, definition string
	_, err = pgx.ForEachRow(rows, []any{&oid, &name, &definition}, func() error {
		want := byOID[oid]
		own := slices.ContainsFunc(want.checks, func(check string) bool { return strings.HasPrefix(check, "CONSTRAINT "+name+" ") })
		const refused = "a step that it refuses ends the lane's session"
		switch {
		case own:
		case strings.HasPrefix(definition, "CREATE UNIQUE INDEX"):
			c.warn(want.name, "it has the unique index "+name, refused, "DROP INDEX "+c.t.Schema+"."+name)
		default:
			c.warn(want.name, "it has the constraint "+name+": "+definition, refused, c.alterSQL(want.name, "DROP CONSTRAINT %s", name))
		}
		return nil
	})
	return err
}

// checkIndexes warns of missing indexes of the campaign table.
func (c *tablesCheck) checkIndexes(ctx context.Context) error {
	valid, err := readCampaignIndexes(ctx, c.conn, c.t)
	if err != nil {
		return err
	}
	var missing []string
	for _, index := range daemonIndexes {
		if !valid[index.name] {
			missing = append(missing, index.name)
		}
	}
	if len(missing) > 0 {
		c.warn("campaign", "it has no valid index "+strings.Join(missing, ", "), "look-ups read the whole table", "dinnerbell setup")
	}
	return nil
}

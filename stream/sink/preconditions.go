package sink

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/agnivade/levenshtein"
	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/precondition"
	"dinnerbell/stream/record"
)

// Preconditions lists the preconditions of the Postgres sink. The unique index comes
// after the preconditions under which setup can create it.
var Preconditions = slices.Concat([]precondition.Check[*Facts]{
	{Name: "sink.connections", At: precondition.AtSetup | precondition.AtStart, Read: checkConnections},
	{Name: "sink.schema", At: precondition.Always, Read: checkSchemaRights},
	{Name: "sink.tables", At: precondition.Always, Read: checkTables, Show: func(*Facts) string { return "as setup makes them" }},
	{Name: "sink.layout", At: precondition.AtStart | precondition.AtSession, Read: checkTablesLayout, Show: func(f *Facts) string {
		return fmt.Sprintf("schema %s, layout %d", f.Cfg.DaemonSchema, layoutVersion)
	}},
}, feedbackPreconditions, []precondition.Check[*Facts]{
	{Name: "sink.feedback.unique_index", At: precondition.AtStart | precondition.AtSession, Read: checkUniqueIndex, Show: func(*Facts) string { return "valid" }},
	{Name: "sink.late_indexes", At: precondition.AtStart | precondition.AtSession, Read: checkLateIndexes},
}, doctorChecks)

// ReadingPreconditions are those of a command that only reads, under a role that may have
// no other right.
var ReadingPreconditions = []precondition.Check[*Facts]{
	{Name: "sink.reading", At: precondition.Always, Read: checkReadingRights},
	{Name: "sink.layout", At: precondition.Always, Read: checkTablesLayout},
}

// checkReadingRights checks that the role may read the daemon's own tables and the feedback
// table.
func checkReadingRights(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	grants, err := listMissingGrants(ctx, f.Conn, f.Cfg, ReadingRights)
	if err != nil || len(grants) == 0 {
		return nil, err
	}
	missing := newFailure("the role "+f.Catalogue.role+" may not read", "nothing can be compared", strings.Join(grants, "; "))
	missing.Object = "schema " + f.T.Schema + " and table " + f.T.Feedback
	return []precondition.Finding{missing}, nil
}

// Facts holds the facts that the preconditions of the Postgres sink check.
type Facts struct {
	Cfg       Config
	T         Tables
	Conn      *pgx.Conn
	Lanes     int        // partitions of the campaigns topic; 0: unknown, for `doctor` alone
	Catalogue *Catalogue // of the feedback table, read before the checks

	ForDoctor bool             // checks show what they have seen
	Key       string           // of the configuration, that holds the address; for ForDoctor alone
	Now       func() time.Time // nil: time.Now
	unread    error            // why Catalogue is not complete; for ForDoctor alone
}

// checkTablesLayout checks that the daemon's own tables exist in the layout that this
// program works on. A later layout is a *halt.Error: waiting for setup does not help.
func checkTablesLayout(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	err := CheckLayout(ctx, f.Conn, f.T)
	if unmade, ok := errors.AsType[*notSetUpError](err); ok {
		found := newFailure(unmade.found, "no lane can work", "dinnerbell setup")
		found.Object = "dinnerbell's own tables, in schema " + unmade.schema
		return []precondition.Finding{found}, nil
	}
	if err != nil {
		return nil, err
	}
	missing, err := f.T.listMissing(ctx, f.Conn)
	if err != nil || len(missing) == 0 {
		return nil, err
	}
	found := newFailure("missing: "+strings.Join(missing, ", "), "no lane can work", "dinnerbell setup")
	found.Object = "dinnerbell's own tables, in schema " + f.T.Schema
	loss, err := f.T.findLoss(ctx, f.Conn, missing)
	if loss != nil {
		found.Found, found.Effect, found.Fix = loss.found, "no lane can work; in an empty table in its place "+loss.effect, loss.fix
	}
	return []precondition.Finding{found}, err
}

// checkSchemaRights checks the role's rights on the daemon's own tables.
func checkSchemaRights(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	// A role without USAGE on the schema cannot see its tables.
	grants, err := listMissingGrants(ctx, f.Conn, f.Cfg, Rights{Own: RunningRights.Own})
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
	// Unlike its columns, the index can be looked up while the table is locked.
	if there, err := f.hasFeedbackTable(); !there && f.unread == nil {
		return nil, err
	}
	index, err := FindUniqueIndex(ctx, f.Conn, f.T)
	if err != nil || index != "" || !f.Catalogue.tableExists {
		return nil, err
	}
	return []precondition.Finding{{Level: precondition.Fail, Object: "feedback table " + f.T.Feedback,
		Found:  "it has no valid unique index on (adv_campaign_id, client_id)",
		Effect: "nothing would keep a client from being notified twice",
		Fix:    "dinnerbell setup"}}, nil
}

// checkConnections compares the connections that this daemon takes with those that the
// server has left. Once they are used up, the server refuses every client.
func checkConnections(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	if f.ForDoctor && f.Lanes == 0 {
		return nil, errors.New("the number of lanes is not known")
	}
	need := f.Lanes + f.Cfg.ReaderCount()
	if n := f.Cfg.MaxConnections; n > 0 {
		need = min(need, n)
	}
	need += f.Cfg.MirrorConnections
	c, err := countConnections(ctx, f.Conn)
	if err != nil {
		return nil, err
	}
	takes := fmt.Sprintf("%d lanes take %d connections to it", f.Lanes, need)
	if f.Cfg.MirrorConnections > 0 {
		takes = fmt.Sprintf("%d lanes and the mirror take %d connections to it", f.Lanes, need)
	}
	var found []precondition.Finding
	warn := func(what string, room int, fix string) {
		if room < need {
			found = append(found, precondition.Finding{Level: precondition.Warn, Object: "the sink's server",
				Found: takes + ", and " + what, Effect: "lanes or other clients are refused", Fix: fix + "or lower sink.max_connections and run more daemons"})
		}
	}
	warn(fmt.Sprintf("of max_connections %d there are %d reserved and %d in use by others", c.most, c.reserved, c.used), c.most-c.reserved-c.used,
		fmt.Sprintf("ALTER SYSTEM SET max_connections = %d; -- then restart Postgres, ", c.reserved+c.used+need+20))
	if c.role >= 0 {
		warn(fmt.Sprintf("the role may have %d", c.role), c.role, "ALTER ROLE "+c.roleName+" CONNECTION LIMIT -1; -- ")
	}
	if c.database >= 0 {
		warn(fmt.Sprintf("the database may have %d", c.database), c.database, "ALTER DATABASE "+c.databaseName+" CONNECTION LIMIT -1; -- ")
	}
	if all := f.Lanes + f.Cfg.ReaderCount(); f.Cfg.MaxConnections > 0 && f.Cfg.MaxConnections < all {
		found = append(found, precondition.Finding{Level: precondition.Warn, Object: "sink.max_connections",
			Found:  fmt.Sprintf("it is %d, and the %d lanes take %d where one daemon has all of them", f.Cfg.MaxConnections, f.Lanes, all),
			Effect: "lanes for which there is none wait", Fix: "raise it, or run more daemons of the group"})
	}
	if f.ForDoctor && len(found) == 0 {
		found = append(found, precondition.Finding{Found: fmt.Sprintf("%s; %d of %d are free", takes, c.most-c.reserved-c.used, c.most)})
	}
	return found, nil
}

// connectionCounts are the limits of connections to the server, and those in use.
type connectionCounts struct {
	most, reserved, used   int // used by others than dinnerbell
	role, database         int // the limits of the role and of the database; -1: none
	roleName, databaseName string
}

func countConnections(ctx context.Context, conn *pgx.Conn) (c connectionCounts, err error) {
	err = conn.QueryRow(ctx, `
SELECT pg_catalog.current_setting('max_connections')::int4,
  pg_catalog.current_setting('superuser_reserved_connections')::int4 + coalesce(pg_catalog.current_setting('reserved_connections', true), '0')::int4,
  (SELECT count(*) FROM pg_catalog.pg_stat_activity a WHERE a.datid IS NOT NULL AND coalesce(a.application_name, '') !~ '^dinnerbell[ @]'),
  (SELECT r.rolconnlimit FROM pg_catalog.pg_roles r WHERE r.rolname = current_user), (SELECT d.datconnlimit FROM pg_catalog.pg_database d WHERE d.datname = current_database()),
  pg_catalog.quote_ident(current_user), pg_catalog.quote_ident(pg_catalog.current_database())`).
		Scan(&c.most, &c.reserved, &c.used, &c.role, &c.database, &c.roleName, &c.databaseName)
	return c, err
}

// feedbackPreconditions are the preconditions of the feedback table. The table belongs
// to the user, with the columns, constraints and triggers that he needs; the checks
// refuse a table that would store other values than the records carry, or stop every
// campaign.
var feedbackPreconditions = []precondition.Check[*Facts]{
	{Name: "sink.feedback.exists", At: precondition.Always, Read: checkFeedbackExists},
	{Name: "sink.feedback.table", At: precondition.Always, Read: onFeedbackTable((*Catalogue).checkTable), Show: func(f *Facts) string { return f.T.Feedback }},
	{Name: "sink.feedback.columns", At: precondition.Always, Read: onFeedbackTable((*Catalogue).checkColumns), Show: (*Facts).showColumns},
	{Name: "sink.feedback.required_columns", At: precondition.Always, Read: onFeedbackTable((*Catalogue).checkRequired)},
	{Name: "sink.feedback.partition_key", At: precondition.Always, Read: onFeedbackTable((*Catalogue).checkPartitionKey)},
	{Name: "sink.feedback.rules", At: precondition.Always, Read: onFeedbackTable((*Catalogue).checkRules)},
	{Name: "sink.feedback.triggers", At: precondition.Always, Read: onFeedbackTable((*Catalogue).checkTriggers)},
	{Name: "sink.feedback.sequence", At: precondition.Always, Read: onFeedbackTable((*Catalogue).checkSequences), Show: (*Facts).showSequences},
	{Name: "sink.feedback.rights", At: precondition.Always, Read: onFeedbackTable((*Catalogue).checkRights), Show: func(f *Facts) string { return "role " + f.Catalogue.role + ": SELECT and INSERT" }},
	{Name: "sink.encoding", At: precondition.AtSetup | precondition.AtStart, Read: onFeedbackTable((*Catalogue).checkEncoding)},
}

// Report makes the checks whose outcome can change while the daemon runs.
func (c *Catalogue) Report() (report precondition.Report) {
	for _, check := range []func(*Catalogue) []precondition.Finding{(*Catalogue).checkTable, (*Catalogue).checkColumns, (*Catalogue).checkRequired, (*Catalogue).checkSequences} {
		for _, f := range check(c) {
			report = append(report, f)
		}
	}
	return report
}

func onFeedbackTable(check func(*Catalogue) []precondition.Finding) func(context.Context, *Facts) ([]precondition.Finding, error) {
	return func(_ context.Context, f *Facts) ([]precondition.Finding, error) {
		if there, err := f.hasFeedbackTable(); !there {
			return nil, err
		}
		found := check(f.Catalogue)
		for i := range found {
			if found[i].Object == "" {
				found[i].Object = "feedback table " + f.T.Feedback
			}
		}
		return found, nil
	}
}

// errNoFeedback reports that there is no feedback table to judge.
var errNoFeedback = errors.New("the feedback table was not found")

// hasFeedbackTable reports whether the facts of the feedback table were read. A missing
// table is the finding of checkFeedbackExists, and an error for `doctor` alone, which
// shows each check that could not be made.
func (f *Facts) hasFeedbackTable() (bool, error) {
	switch {
	case f.unread != nil:
		return false, f.unread
	case f.Catalogue.tableExists:
		return true, nil
	case f.ForDoctor:
		return false, errNoFeedback
	}
	return false, nil
}

// checkFeedbackExists checks that the table exists. A role without USAGE on the schema
// does not see the table either.
func checkFeedbackExists(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	if f.Catalogue.tableExists {
		return nil, nil
	}
	if f.unread != nil {
		return nil, f.unread
	}
	missing := newFailure("it does not exist", "there is no place for notifications", f.Catalogue.Feedback.createSQL())
	missing.Object = "feedback table " + f.T.Feedback
	var hidden bool
	var role string
	err := f.Conn.QueryRow(ctx, `SELECT NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE'), pg_catalog.quote_ident(current_user) FROM pg_catalog.pg_namespace n WHERE n.nspname = $1`, f.Cfg.Schema).Scan(&hidden, &role)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		missing.Found, missing.Fix = "its schema does not exist", "CREATE SCHEMA "+f.T.FeedbackSchema+"; "+missing.Fix
	case err != nil:
		return nil, err
	case hidden:
		missing.Found, missing.Fix = "the role "+role+" may not use its schema", "GRANT USAGE ON SCHEMA "+f.T.FeedbackSchema+" TO "+role
	}
	return []precondition.Finding{missing}, nil
}

// createSQL returns the statement that creates the contract's table under this name.
func (t *FeedbackTable) createSQL() string {
	var b strings.Builder
	b.WriteString("CREATE TABLE " + t.Name + " (id bigserial PRIMARY KEY")
	for i, want := range ContractTable().types {
		b.WriteString(", " + record.ColumnNames[i] + " " + want.sql + " NOT NULL")
	}
	return b.String() + ", feedback text)"
}

func newFailure(found, effect, fix string) precondition.Finding {
	return precondition.Finding{Level: precondition.Fail, Found: found, Effect: effect, Fix: fix}
}

func (c *Catalogue) alterTableSQL(format string, args ...any) string {
	return "ALTER TABLE " + c.Feedback.Name + " " + fmt.Sprintf(format, args...)
}

// checkTable checks the kind of the relation and of its partitions.
func (c *Catalogue) checkTable() (found []precondition.Finding) {
	const name = "name a table in sink.table"
	switch c.kind {
	case "r", "p":
	case "v":
		return []precondition.Finding{newFailure("it is a view, not a table", "COPY and the unique index need a table", name)}
	case "m":
		return []precondition.Finding{newFailure("it is a materialized view, not a table", "nothing can be written to it", name)}
	case "f":
		return []precondition.Finding{newFailure("it is a foreign table", "no unique index would keep a client from being notified twice", name)}
	default:
		return []precondition.Finding{newFailure("it is no table (relkind "+c.kind+")", "nothing can be written to it", name)}
	}
	for _, table := range c.unlogged {
		what := "it is not logged"
		if c.kind == "p" {
			what = "its partition " + table + " is not logged"
		}
		found = append(found, newFailure(what, "a crash of Postgres would empty it, and clients would be notified again", "ALTER TABLE "+table+" SET LOGGED"))
	}
	for _, table := range c.foreign {
		found = append(found, newFailure("its partition "+table+" is a foreign table", "no unique index would keep a client from being notified twice", c.alterTableSQL("DETACH PARTITION %s", table)))
	}
	if c.hidden {
		found = append(found, newFailure("row-level security applies to the role "+c.role, "rows would be hidden, and COPY is refused", "ALTER ROLE "+c.role+" BYPASSRLS"))
	}
	if c.children {
		found = append(found, newFailure("tables inherit from it", "its unique index does not cover their rows, and a client could be notified twice", "make it a partitioned table (PARTITION BY HASH (adv_campaign_id)), or name another in sink.table"))
	}
	return found
}

// checkColumns checks that the ten columns exist with types that can carry the values.
func (c *Catalogue) checkColumns() (found []precondition.Finding) {
	for i, name := range record.ColumnNames {
		k, there := c.columns[name]
		kind := c.Feedback.Kinds[i]
		switch {
		case !there:
			found = append(found, newFailure("column "+name+" is missing", "a notification has no place for its value", c.addColumnSQL(i)))
		case k.filled == "generated":
			found = append(found, newFailure("column "+name+" is generated", "the notification's own value cannot be written to it", c.alterTableSQL("ALTER COLUMN %s DROP EXPRESSION", name)))
		case k.filled == "identity":
			found = append(found, newFailure("column "+name+" is an identity column", "the notification's own value cannot be written to it", c.alterTableSQL("ALTER COLUMN %s DROP IDENTITY", name)))
		case !kind.CanCarry(i):
			found = append(found, newFailure("column "+name+" is of type "+k.typ, "the type cannot carry the value of every notification", c.retypeColumnSQL(i, k)))
		case record.IsIDColumn(i) && !k.deterministic:
			found = append(found, newFailure("column "+name+" has a nondeterministic collation", "different ids would count as one, and clients would be missed", c.retypeColumnSQL(i, k)))
		case kind == record.KindInt4 && i != record.TriggerColumn:
			found = append(found, precondition.Finding{Level: precondition.Warn, Found: "column " + name + " is of type " + k.typ,
				Effect: "campaigns with a time after 2038-01-19 are refused as dead letters", Fix: c.retypeColumnSQL(i, k)})
		}
	}
	return found
}

// addColumnSQL returns the statement that mends a missing column: RENAME of a column with
// nearly the same name, otherwise ADD.
func (c *Catalogue) addColumnSQL(column int) string {
	want := record.ColumnNames[column]
	best, distance := "", len(want)/3
	for name := range c.columns {
		if slices.Contains(record.ColumnNames[:], name) {
			continue
		}
		if d := levenshtein.ComputeDistance(name, want); d < distance || d == distance && name < best {
			best, distance = name, d
		}
	}
	if best != "" {
		return c.alterTableSQL("RENAME COLUMN %s TO %s", quoteIdent(best), want)
	}
	return c.alterTableSQL("ADD COLUMN %s %s", want, ContractTable().types[column].sql)
}

// retypeColumnSQL returns the statement that gives a column the contract's type. Its USING
// is right for times; for other values the user must decide.
func (c *Catalogue) retypeColumnSQL(column int, k catalogueColumn) string {
	name, typ := record.ColumnNames[column], ContractTable().types[column].sql
	if strings.HasPrefix(k.typ, "date") && record.IsNumberColumn(column) {
		return c.alterTableSQL("ALTER COLUMN %s TYPE %s USING extract(epoch FROM %s)", name, typ, name)
	}
	collate := ""
	if !k.deterministic {
		collate = ` COLLATE "C"`
	}
	return c.alterTableSQL("ALTER COLUMN %s TYPE %s%s USING %s::%s", name, typ, collate, name, typ)
}

// checkRequired checks for other columns that a row must fill. A trigger may fill them,
// which only the first row shows.
func (c *Catalogue) checkRequired() (found []precondition.Finding) {
	for _, name := range c.required {
		f := newFailure("column "+name+" is NOT NULL, has no default, and no notification has a value for it", "no row can be written", c.fillColumnSQL(name))
		if len(c.Feedback.Triggers) > 0 {
			f.Level, f.Effect = precondition.Warn, "no row can be written unless trigger "+strings.Join(c.Feedback.Triggers, ", ")+" fills it"
		}
		found = append(found, f)
	}
	return found
}

// fillColumnSQL returns the statement that lets a row do without a value for a column. A
// column of the primary key cannot be NULL, and gets numbers or random texts instead.
func (c *Catalogue) fillColumnSQL(name string) string {
	column, k := quoteIdent(name), c.columns[name]
	switch {
	case !k.inKey:
		return c.alterTableSQL("ALTER COLUMN %s DROP NOT NULL", column)
	case k.typ == "smallint", k.typ == "integer", k.typ == "bigint":
		literal := "'" + strings.ReplaceAll(c.Feedback.Name, "'", "''") + "', '" + strings.ReplaceAll(name, "'", "''") + "'"
		return c.alterTableSQL("ALTER COLUMN %s ADD GENERATED BY DEFAULT AS IDENTITY", column) +
			fmt.Sprintf("; SELECT setval(pg_get_serial_sequence(%s), coalesce(max(%s), 0) + 1, false) FROM %s", literal, column, c.Feedback.Name)
	}
	return c.alterTableSQL("ALTER COLUMN %s SET DEFAULT gen_random_uuid()::%s", column, k.typ)
}

// checkPartitionKey checks that the partition key allows the unique index.
func (c *Catalogue) checkPartitionKey() []precondition.Finding {
	for _, name := range c.partKeys {
		if name == record.ColumnNames[record.CampaignColumn] || name == record.ColumnNames[record.ClientColumn] {
			continue
		}
		if name == "" {
			name = "an expression"
		}
		return []precondition.Finding{newFailure("it is partitioned by "+name, "a unique index on (adv_campaign_id, client_id) must contain the partition key, so nothing would keep a client from being notified twice",
			"partition it BY HASH (adv_campaign_id), BY HASH (client_id) or not at all, or name another table in sink.table")}
	}
	return nil
}

// checkRules refuses rules: COPY ignores them, and Postgres refuses ON CONFLICT.
func (c *Catalogue) checkRules() (found []precondition.Finding) {
	for _, name := range c.rules {
		found = append(found, newFailure("it has the rule "+name+" on INSERT or UPDATE", "COPY ignores rules, and INSERT … ON CONFLICT is refused", "DROP RULE "+quoteIdent(name)+" ON "+c.Feedback.Name))
	}
	return found
}

// checkTriggers warns of triggers that may drop rows.
func (c *Catalogue) checkTriggers() (found []precondition.Finding) {
	for _, name := range c.Feedback.Triggers {
		found = append(found, precondition.Finding{Level: precondition.Warn, Found: "its trigger " + name + " runs BEFORE INSERT FOR EACH ROW",
			Effect: "rows go by INSERT instead of COPY, which is slower, and a row that the trigger drops halts its lane"})
	}
	return found
}

// checkSequences checks how many numbers the sequences have left.
func (c *Catalogue) checkSequences() (found []precondition.Finding) {
	for _, s := range c.sequence {
		widen := c.alterTableSQL("ALTER COLUMN %s TYPE bigint", s.column)
		switch {
		case s.capped:
			widen = "ALTER SEQUENCE " + s.name + " NO MAXVALUE"
		case !s.identity:
			widen += "; ALTER SEQUENCE " + s.name + " AS bigint"
		}
		used := fmt.Sprintf("column %s has used %d of %d numbers of sequence %s", s.column, s.last, s.limit, s.name)
		switch {
		case s.last >= s.limit:
			found = append(found, newFailure(used, "no row can be written", widen))
		case s.last >= s.limit/10*8:
			found = append(found, precondition.Finding{Level: precondition.Warn, Found: used, Effect: "at the last of them no row can be written any more", Fix: widen})
		}
		if s.behind {
			found = append(found, newFailure(fmt.Sprintf("column %s has rows with numbers above %d, where sequence %s goes on", s.column, s.last, s.name), "rows collide with them",
				fmt.Sprintf("SELECT setval('%s', (SELECT max(%s) FROM %s))", s.name, s.column, c.Feedback.Name)))
		}
	}
	return found
}

// checkRights checks the role's rights on the table.
func (c *Catalogue) checkRights() (found []precondition.Finding) {
	for _, grant := range c.denied {
		found = append(found, newFailure("the role "+c.role+" lacks a right", "no row can be written", grant))
	}
	return found
}

// checkEncoding warns of a database that cannot hold every text.
func (c *Catalogue) checkEncoding() []precondition.Finding {
	if !c.Feedback.HoldsUnicode() {
		return []precondition.Finding{{Level: precondition.Warn, Object: "the sink's database", Found: "its encoding is " + c.Feedback.Encoding,
			Effect: "campaigns and clients with characters that it does not have are refused as dead letters", Fix: "create it with ENCODING 'UTF8'"}}
	}
	return nil
}

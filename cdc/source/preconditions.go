package source

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/halt"
	"dinnerbell/internal/precondition"
)

// checkFacts are the facts that a check of the source looks at.
type checkFacts struct {
	db  *DB
	cat *Catalog  // read before the checks, as of one moment
	sql *pgx.Conn // for facts that are not in cat; the checks run one after the other
	// reads: the table is about to be read, for a snapshot or a verification.
	reads bool
	// streams: the stream runs. It needs no right again that only its start
	// requires.
	streams bool
	// around is what `doctor` knows beside; nil at every other moment.
	around *Surroundings
	rows   int64 // of the table, estimated for `doctor`; -1: unknown
}

type (
	check   = precondition.Check[*checkFacts]
	finding = precondition.Finding
)

// preconditions are all conditions on the server, the role, the table and the
// publication that a mirror needs, and behind them the facts that `doctor` alone
// reads. A check that needs the table cannot be made where the table does not exist:
// the check of the table reports that.
var preconditions = slices.Concat([]check{
	{Name: "source.version", At: precondition.Always, Read: catalogCheck(checkVersion)},
	{Name: "source.primary", At: precondition.Always, Read: checkPrimary},
	{Name: "source.wal_level", At: precondition.Always, Read: catalogCheck(checkWALLevel), Show: func(f *checkFacts) string { return f.cat.level }},
	{Name: "source.synchronous_standbys", At: precondition.Always, Read: catalogCheck(checkStandbys)},
	{Name: "source.room", At: precondition.AtSetup | precondition.AtStart, Read: checkRoom},
	{Name: "source.prepared_transactions", At: precondition.AtSetup | precondition.AtStart, Read: checkPrepared},
	{Name: "source.old_snapshots", At: precondition.AtSetup | precondition.AtStart, Read: checkOldSnapshots},
	{Name: "source.encoding", At: precondition.AtSetup | precondition.AtStart, Read: checkEncoding},
	{Name: "source.wal_keep_size", At: precondition.AtSetup | precondition.AtStart, Read: checkKeepSize},
	{Name: "source.table", At: precondition.Always, Read: catalogCheck(checkTable), Show: (*checkFacts).showTable},
	{Name: "source.schema_usage", At: precondition.Always, Read: tableCheck(checkSchemaUsage)},
	{Name: "source.persistence", At: precondition.Always, Read: tableCheck(checkPersistence)},
	{Name: "source.partitions", At: precondition.Always, Read: tableCheck(checkPartitions)},
	{Name: "source.inheritance", At: precondition.Always, Read: tableCheck(checkInheritance)},
	{Name: "source.columns", At: precondition.Always, Read: tableCheck(checkColumns), Show: (*checkFacts).showColumns},
	{Name: "source.id_types", At: precondition.AtSetup | precondition.AtStart, Read: tableQueryCheck(checkIDTypes)},
	{Name: "source.key", At: precondition.Always, Read: tableCheck(checkKey)},
	{Name: "source.replica_identity", At: precondition.Always, Read: tableCheck(checkReplicaIdentity), Show: (*checkFacts).showIdentity},
	{Name: "source.row_security", At: precondition.Always, Read: tableCheck(checkRowSecurity)},
	{Name: "source.replication", At: precondition.AtStart | precondition.AtSession, Read: checkReplication},
	{Name: "source.publication", At: precondition.AtStart | precondition.AtSession, Read: tableCheck(checkPublication), Show: (*checkFacts).showPublication},
	{Name: "source.publication.rows", At: precondition.AtStart | precondition.AtSession, Read: tableCheck(checkPublicationRows)},
	{Name: "source.publication.columns", At: precondition.AtStart | precondition.AtSession, Read: tableCheck(checkPublicationColumns)},
	{Name: "source.publication.identity", At: precondition.AtStart | precondition.AtSession, Read: tableCheck(checkPublicationCovers)},
}, doctorChecks)

// unpublished are the checks whose violation means that changes may have passed
// that were never published, so that the slot is worthless even after mending.
var unpublished = []string{"source.persistence", "source.publication", "source.publication.rows", "source.publication.columns"}

// atOnce are the checks whose violation ends the stream at once: the violation
// harms others, or no statement mends it.
var atOnce = []string{"source.version", "source.wal_level", "source.synchronous_standbys"}

// catalogCheck makes a check of a function that needs only the catalogs that were
// read before.
func catalogCheck(judge func(*checkFacts) []finding) func(context.Context, *checkFacts) ([]finding, error) {
	return func(_ context.Context, f *checkFacts) ([]finding, error) { return judge(f), nil }
}

// tableCheck is catalogCheck for a function that can judge only a table that
// exists.
func tableCheck(judge func(*checkFacts) []finding) func(context.Context, *checkFacts) ([]finding, error) {
	return func(_ context.Context, f *checkFacts) ([]finding, error) {
		if !f.cat.table.exists {
			return nil, errNoTable
		}
		return judge(f), nil
	}
}

// tableQueryCheck is tableCheck for a function that asks the server.
func tableQueryCheck(read func(context.Context, *checkFacts) ([]finding, error)) func(context.Context, *checkFacts) ([]finding, error) {
	return func(ctx context.Context, f *checkFacts) ([]finding, error) {
		if !f.cat.table.exists {
			return nil, errNoTable
		}
		return read(ctx, f)
	}
}

// errNoTable reports that there is nothing to judge.
var errNoTable = errors.New("the table was not found")

// CheckPreconditions reads the source and makes the checks of a moment. An error
// reports that something could not be read; the report has the findings of the
// rest.
func CheckPreconditions(ctx context.Context, cfg Config, at precondition.Moment) (precondition.Report, error) {
	db, err := Open(cfg)
	if err != nil {
		return nil, err
	}
	sql, err := db.DialSQL(ctx)
	if err != nil {
		return nil, err
	}
	defer CloseConn(sql.PgConn())
	cat, err := db.readCatalog(ctx, sql)
	if err != nil {
		return nil, err
	}
	return precondition.Run(ctx, preconditions, at, &checkFacts{db: db, cat: cat, sql: sql, reads: true})
}

// Inspect reads the catalogs, in the transaction that the connection is in, and
// makes the checks of a session. It returns a *halt.Error if the table cannot be
// mirrored as things are. reads: the table is about to be read.
func (db *DB) Inspect(ctx context.Context, sql *pgx.Conn, reads bool) (*Catalog, error) {
	return db.inspectAt(ctx, sql, precondition.AtSession, reads)
}

// InspectStreaming is Inspect for a look while the stream runs.
func (db *DB) InspectStreaming(ctx context.Context, sql *pgx.Conn) (*Catalog, error) {
	return db.inspectWith(ctx, precondition.AtSession, checkFacts{sql: sql, streams: true})
}

func (db *DB) inspectAt(ctx context.Context, sql *pgx.Conn, at precondition.Moment, reads bool) (*Catalog, error) {
	return db.inspectWith(ctx, at, checkFacts{sql: sql, reads: reads})
}

// inspectWith fills in the facts that f lacks, and makes the checks of a moment.
func (db *DB) inspectWith(ctx context.Context, at precondition.Moment, f checkFacts) (*Catalog, error) {
	cat, err := db.readCatalog(ctx, f.sql)
	if err != nil {
		return nil, err
	}
	f.db, f.cat = db, cat
	report, err := precondition.Run(ctx, preconditions, at, &f)
	if violation, ok := report.Violation(); ok {
		return nil, haltOnViolation(violation)
	}
	if err != nil {
		return nil, fmt.Errorf("inspect source: %w", err)
	}
	return cat, nil
}

// CheckStart makes the checks of a start: those that sessions do not make
// again. Warnings go to the log.
func (db *DB) CheckStart(ctx context.Context, sql *pgx.Conn, cat *Catalog) error {
	report, _ := precondition.Run(ctx, preconditions, precondition.AtStart, &checkFacts{db: db, cat: cat, sql: sql}) // a check that cannot be made is unknown
	for _, f := range report.At(precondition.Warn) {
		db.log.Warn("a precondition of the source does not hold", "check", f.Name, "found", f.String())
	}
	if violation, ok := report.Violation(); ok {
		return haltOnViolation(violation)
	}
	return nil
}

// haltOnViolation makes the halt of a violation.
func haltOnViolation(f finding) *HaltError {
	what := f.Object + " " + f.Found
	if f.Effect != "" {
		what += ": " + f.Effect
	}
	return &HaltError{
		Err:      &halt.Error{Part: halt.Source, What: what, Hint: f.Fix},
		Distrust: slices.Contains(unpublished, f.Name), Heals: !slices.Contains(atOnce, f.Name),
	}
}

// newViolation is a list of one violation.
func newViolation(object, found, effect, fix string) []finding {
	return []finding{{Level: precondition.Fail, Object: object, Found: found, Effect: effect, Fix: fix}}
}

// tableObject names the table in findings.
func (f *checkFacts) tableObject() string { return "table " + f.db.cfg.QuotedTable() }

// publicationObject names the publication in findings.
func (f *checkFacts) publicationObject() string { return "publication " + f.db.cfg.QuotedPublication() }

func checkVersion(f *checkFacts) []finding {
	if f.cat.Version >= minVersion {
		return nil
	}
	return newViolation("the server", fmt.Sprintf("is Postgres %d, older than 14", f.cat.Version/10000),
		"it sends no logical messages, which strict joins need", "upgrade Postgres to 14 or newer")
}

// checkPrimary returns an error and, but for `doctor`, no violation: in the middle of
// a failover the server is a standby for a while.
func checkPrimary(_ context.Context, f *checkFacts) ([]finding, error) {
	if f.cat.standby && f.around != nil {
		return newViolation("the server", "is a standby", "it takes neither a slot nor a write",
			"name all servers in source.url: postgres://…@db1:5432,db2:5432/…?target_session_attrs=read-write"), nil
	}
	if f.cat.standby {
		return nil, errors.New("the server is a standby; source.url must lead to the primary")
	}
	return nil, nil
}

func checkWALLevel(f *checkFacts) []finding {
	if f.cat.level == "logical" {
		return nil
	}
	return newViolation("the server", fmt.Sprintf("has wal_level %q, not \"logical\"", f.cat.level),
		"no changes can be read from its WAL", "ALTER SYSTEM SET wal_level = logical; -- then restart Postgres")
}

// kindNames are the kinds of relations whose changes are never sent.
var kindNames = map[string]string{
	"v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence", "i": "an index", "c": "a type",
}

func checkTable(f *checkFacts) []finding {
	t := &f.cat.table
	switch {
	case f.cat.Version < minVersion:
		return nil // the table was not read
	case !t.exists:
		return newViolation(f.tableObject(), "does not exist", "", "create it, or set source.table")
	case t.kind != kindTable && t.kind != kindPartitioned:
		return newViolation(f.db.cfg.QuotedTable(), "is "+kindNames[t.kind]+", not a table", "no changes of it are sent", "set source.table to the table behind it")
	}
	return nil
}

func checkSchemaUsage(f *checkFacts) []finding {
	if f.cat.table.schemaUsable {
		return nil
	}
	schema := pgx.Identifier{f.db.cfg.Schema}.Sanitize()
	return newViolation("the role in source.url", "may not use schema "+f.db.cfg.Schema, "", "GRANT USAGE ON SCHEMA "+schema+" TO "+f.db.QuotedRole())
}

func checkPersistence(f *checkFacts) []finding {
	switch f.cat.table.persistence {
	case permanent:
		return nil
	case temporary:
		return newViolation(f.tableObject(), "is temporary", "its changes are not in the WAL", "set source.table to a permanent table")
	}
	return newViolation(f.tableObject(), "is unlogged", "its changes are not in the WAL", "ALTER TABLE "+f.db.cfg.QuotedTable()+" SET LOGGED")
}

// checkPartitions refuses partitions whose changes are not in the WAL.
func checkPartitions(f *checkFacts) (found []finding) {
	if !f.cat.IsPartitioned() {
		return nil
	}
	for _, r := range f.cat.Relations {
		object := "partition " + r.name + " of " + f.db.cfg.QuotedTable()
		switch {
		case r.kind != kindTable:
			found = append(found, newViolation(object, "is "+kindNames[r.kind], "its changes are not sent",
				"ALTER TABLE "+f.db.cfg.QuotedTable()+" DETACH PARTITION "+r.name)...)
		case r.persistence != permanent:
			found = append(found, newViolation(object, "is unlogged", "its changes are not in the WAL", "ALTER TABLE "+r.name+" SET LOGGED")...)
		}
	}
	return found
}

// checkInheritance refuses inheritance children. Every reader of the table sees
// their rows in it; the stream sends them as rows of other tables, and nothing
// prevents two of them from having one key.
func checkInheritance(f *checkFacts) []finding {
	if len(f.cat.children) == 0 {
		return nil
	}
	first := f.cat.children[0]
	return newViolation(f.tableObject(), "has inheritance children ("+strings.Join(f.cat.children, ", ")+")",
		"their rows are rows of the table to all who read it, and are not published as its own",
		"ALTER TABLE "+first+" NO INHERIT "+f.db.cfg.QuotedTable()+"; -- or make it a partitioned table")
}

func checkColumns(f *checkFacts) (found []finding) {
	for _, name := range f.db.cfg.neededColumns() {
		i := slices.IndexFunc(f.cat.Columns, func(col NeededColumn) bool { return col.Name == name })
		switch {
		case i < 0:
			found = append(found, newViolation(f.tableObject(), fmt.Sprintf("has no column %q", name), "",
				"set source.columns to the columns that hold id, client and restaurant")...)
		case f.cat.Columns[i].generated:
			found = append(found, newViolation(f.tableObject(), fmt.Sprintf("has column %q, which is generated", name),
				"it is not published", "choose a stored column")...)
		case !f.cat.Columns[i].readable:
			found = append(found, newViolation("the role in source.url", fmt.Sprintf("may not read column %q of %s", name, f.db.cfg.QuotedTable()), "",
				"GRANT SELECT ON "+f.db.cfg.QuotedTable()+" TO "+f.db.QuotedRole())...)
		}
	}
	return found
}

func checkKey(f *checkFacts) []finding {
	if f.cat.uniqueKey || len(f.cat.Columns) < len(f.db.cfg.neededColumns()) { // then checkColumns has the finding
		return nil
	}
	return newViolation("key "+f.db.cfg.QuotedKey()+" of "+f.db.cfg.QuotedTable(), "is not unique and NOT NULL", "it does not tell rows apart",
		f.addKeySQL()+"; -- or set source.columns.id to the columns of its key")
}

func (f *checkFacts) addKeySQL() string {
	return "ALTER TABLE " + f.db.cfg.QuotedTable() + " ADD PRIMARY KEY (" + f.db.cfg.QuotedKey() + ")"
}

// checkReplicaIdentity makes sure that updates and deletes carry the key. More
// is at stake than the mirror: once a table without a replica identity is
// published, Postgres refuses every UPDATE and DELETE of it, and so breaks the
// services that write there.
func checkReplicaIdentity(f *checkFacts) []finding {
	if f.cat.table.identity == identityNothing {
		return newViolation(f.tableObject(), "has REPLICA IDENTITY NOTHING", "deletes do not say of which row",
			"ALTER TABLE "+f.db.cfg.QuotedTable()+" REPLICA IDENTITY DEFAULT")
	}
	for _, r := range f.cat.Relations {
		if r.kind == kindTable && !r.carriesColumns(f.db.cfg.KeyColumns) {
			fix := "ALTER TABLE " + r.name + " REPLICA IDENTITY FULL"
			if r.identity == identityDefault && !f.cat.uniqueKey {
				fix = f.addKeySQL() // it becomes the identity, and FULL would write whole rows to the WAL
			}
			if f.cat.publication.columns != nil {
				fix = f.readdSQL() + "; " + fix // a list has to cover the replica identity
			}
			return newViolation("key "+f.db.cfg.QuotedKey(), "is not in the replica identity of "+r.name, "deletes do not carry it", fix)
		}
	}
	return nil
}

// checkPublicationCovers warns of a list of columns that does not cover the replica
// identity. The mirror goes on; the table's writers fail. Setup makes no such list:
// on a column in a list Postgres refuses ALTER … TYPE and DROP COLUMN too, so that
// the decision is the owner's.
// https://www.postgresql.org/docs/current/logical-replication-col-lists.html
func checkPublicationCovers(f *checkFacts) []finding {
	if f.cat.publication.columns == nil {
		return nil
	}
	for _, r := range f.cat.Relations {
		missing := slices.ContainsFunc(r.identityColumns, func(name string) bool { return !slices.Contains(f.cat.publication.columnNames, name) })
		if r.kind == kindTable && (r.identity == identityFull || missing) {
			found := newViolation(f.publicationObject(), "has a list of columns that does not cover the replica identity of "+r.name,
				"Postgres refuses UPDATE and DELETE there", f.readdSQL())
			found[0].Level = precondition.Warn
			return found
		}
	}
	return nil
}

// carriesColumns reports whether updates and deletes carry the columns.
func (r *tableRelation) carriesColumns(columns []string) bool {
	return r.identity == identityFull ||
		!slices.ContainsFunc(columns, func(name string) bool { return !slices.Contains(r.identityColumns, name) })
}

// checkRowSecurity refuses policies that hide rows from the role. They do not reach
// the stream, so that a mirror which needs no snapshot goes on. A policy on a
// partition does not apply to readers of the table.
func checkRowSecurity(f *checkFacts) []finding {
	if !f.cat.table.policies {
		return nil
	}
	found := newViolation("the role in source.url", "may not read all of "+f.db.cfg.QuotedTable()+": row-level security applies to it", "no snapshot can be taken",
		"ALTER ROLE "+f.db.QuotedRole()+" BYPASSRLS; -- or ALTER TABLE "+f.db.cfg.QuotedTable()+" DISABLE ROW LEVEL SECURITY")
	if !f.reads {
		found[0].Level = precondition.Warn
	}
	return found
}

// checkPublication makes sure that everything that happens to the table is
// published, as its own.
func checkPublication(f *checkFacts) []finding {
	p, object := &f.cat.publication, f.publicationObject()
	switch {
	case !p.exists:
		return newViolation(object, "does not exist in database "+f.cat.Source.Database, "", "dinnerbell setup")
	case f.cat.IsPartitioned() && !p.viaRoot:
		return newViolation(object, "sends changes of "+f.db.cfg.QuotedTable()+" as those of its partitions", "",
			"ALTER PUBLICATION "+f.db.cfg.QuotedPublication()+" SET (publish_via_partition_root = true)")
	case !p.member:
		return newViolation(object, "does not publish table "+f.db.cfg.QuotedTable(), "", "dinnerbell setup")
	case p.asParent:
		return newViolation(object, "sends changes of "+f.db.cfg.QuotedTable()+" as those of the table whose partition it is", "",
			"ALTER PUBLICATION "+f.db.cfg.QuotedPublication()+" SET (publish_via_partition_root = false); -- or set source.table to that table")
	case !p.all:
		return newViolation(object, "does not publish all of insert, update, delete and truncate", "", "dinnerbell setup")
	}
	return nil
}

func checkPublicationRows(f *checkFacts) []finding {
	if !f.cat.publication.filtered {
		return nil
	}
	return newViolation(f.publicationObject(), "filters the rows of "+f.db.cfg.QuotedTable(), "", f.readdSQL())
}

func checkPublicationColumns(f *checkFacts) []finding {
	list := f.cat.publication.columns
	if list == nil || !slices.ContainsFunc(f.cat.Columns, func(col NeededColumn) bool { return !slices.Contains(list, col.num) }) {
		return nil
	}
	return newViolation(f.publicationObject(), "leaves out one of the columns "+strings.Join(f.db.cfg.neededColumns(), ", "), "", f.readdSQL())
}

// readdSQL returns the statements that take a filter or a column list off the
// table.
func (f *checkFacts) readdSQL() string {
	return fmt.Sprintf("ALTER PUBLICATION %s DROP TABLE %s; ALTER PUBLICATION %[1]s ADD TABLE %[2]s", f.db.cfg.QuotedPublication(), f.db.cfg.QuotedTable())
}

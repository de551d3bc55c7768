package cdc

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/pgsession"
	"dinnerbell/state"
)

// minVersion is the first that sends logical messages, which the barrier needs.
const minVersion = 14_00_00

// noTransaction is a connection's status outside of transactions.
const noTransaction = 'I'

// catalog is what the server says of itself, the table and the publication.
type catalog struct {
	source  state.Source
	version int       // server_version_num
	level   string    // wal_level
	standby bool      // does not take writes, nor slots of ours
	walEnd  state.LSN // flushed

	columns     []column // see Config.columns
	partitioned bool
}

// column is a needed column. Its number changes when it is dropped and added
// again under the same name, which no message of the stream tells.
type column struct {
	name string
	num  int16
	typ  uint32
	// version changes with each ALTER of the column. ALTER … TYPE … USING may
	// give every row another value and leave the type as it was.
	version string
}

// inspect reads the catalogs, all as of one moment: in the transaction that the
// connection is in, or in one of its own. It returns a *HaltError if the table
// cannot be mirrored as things are.
//
// Functions of the server's (pg_partition_tree and others) read the catalogs of
// the present, whatever the transaction sees. Around a partition that is just
// being attached the two disagree, and together they can look like a table that
// cannot be mirrored. So a halt counts only if a second look says so, too. In a
// transaction that was open already a second look would see the same: there it
// is an error that passes, and the next session looks again.
func (c *Config) inspect(ctx context.Context, sql *pgx.Conn) (*catalog, error) {
	cat, err := c.inspectOnce(ctx, sql)
	h, halted := errors.AsType[*HaltError](err)
	switch {
	case !halted:
		return cat, err
	case sql.PgConn().TxStatus() != noTransaction:
		return nil, fmt.Errorf("inspect server: the catalogs changed while they were read: %s", h.What)
	}
	return c.inspectOnce(ctx, sql)
}

func (c *Config) inspectOnce(ctx context.Context, sql *pgx.Conn) (*catalog, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	if sql.PgConn().TxStatus() == noTransaction {
		tx, err := sql.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
		if err != nil {
			return nil, fmt.Errorf("inspect server: %w", err)
		}
		defer func() { _ = tx.Rollback(ctx) }() // it only read; a broken connection shows at the next query
	}
	cat := &catalog{source: state.Source{Slot: c.Slot, Publication: c.Publication, Schema: c.Schema, Table: c.Table}}
	cat.source.Catalog = "text " + pgsession.TextVersion() + ";"
	for _, step := range []func(context.Context, *pgx.Conn, *catalog) error{
		c.inspectServer, c.inspectTable, c.inspectColumns, c.inspectIdentity, c.inspectPublication,
	} {
		if err := step(ctx, sql, cat); err != nil {
			return nil, err
		}
	}
	return cat, nil
}

// inspectServer reads who the server is and whether it can decode at all.
func (c *Config) inspectServer(ctx context.Context, sql *pgx.Conn, cat *catalog) error {
	var end string
	// The timeline is in a WAL file's name. A control file would tell that of
	// the last checkpoint, which is the old one for a while after a promotion.
	err := sql.QueryRow(ctx, `
		SELECT current_setting('server_version_num')::int, current_setting('wal_level'), current_database(),
		       (SELECT system_identifier::text FROM pg_control_system()), pg_is_in_recovery(),
		       CASE WHEN pg_is_in_recovery() THEN 0
		            ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint END,
		       CASE WHEN pg_is_in_recovery() THEN '0/0' ELSE pg_current_wal_flush_lsn()::text END`).
		Scan(&cat.version, &cat.level, &cat.source.Database, &cat.source.SystemID, &cat.standby, &cat.source.Timeline, &end)
	if err != nil {
		return fmt.Errorf("inspect server: %w", err)
	}
	if err := cat.serviceable(); err != nil {
		return err
	}
	if c.timelines != nil {
		cat.source.History = c.timelines.of(cat.source.Timeline)
	}
	cat.walEnd, err = state.ParseLSN(end)
	if err != nil {
		return fmt.Errorf("inspect server: %w", err)
	}
	return nil
}

// serviceable refuses servers that do not send what is needed.
func (cat *catalog) serviceable() error {
	switch {
	case cat.version < minVersion:
		return halt("upgrade Postgres to 14 or newer", "the server is Postgres %d, older than 14", cat.version/10000)
	case cat.standby:
		// Not a halt: it is what one sees in the middle of a failover.
		return fmt.Errorf("inspect server: it is a standby; source.url must lead to the primary")
	case cat.level != "logical":
		return halt("ALTER SYSTEM SET wal_level = logical; then restart Postgres", "wal_level is %q, not \"logical\"", cat.level)
	}
	return nil
}

// Values of pg_class.relkind and relreplident.
// https://www.postgresql.org/docs/current/catalog-pg-class.html
const (
	kindTable       = "r"
	kindPartitioned = "p"
	permanent       = "p"
	temporary       = "t"
	identityNothing = "n"
)

// kindNames are the relations that changes are never sent of.
var kindNames = map[string]string{
	"v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence", "i": "an index", "c": "a type",
}

// inspectTable refuses what has no row changes in the WAL, or whose deletes do
// not say which row went (Postgres' own default identity does).
func (c *Config) inspectTable(ctx context.Context, sql *pgx.Conn, cat *catalog) error {
	var kind, persistence, identity string
	var usable bool
	err := sql.QueryRow(ctx, `
		SELECT c.oid, c.relkind::text, c.relpersistence::text, c.relreplident::text,
		       has_schema_privilege(n.oid, 'USAGE')
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2`, c.Schema, c.Table).
		Scan(&cat.source.TableOID, &kind, &persistence, &identity, &usable)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return halt("create it, or set source.table", "table %s does not exist", c.table())
	case err != nil:
		return fmt.Errorf("inspect table: %w", err)
	case kind != kindTable && kind != kindPartitioned:
		return halt("set source.table to the table behind it", "%s is %s, not a table, so that no changes of it are sent", c.table(), kindNames[kind])
	case persistence == temporary:
		return halt("set source.table to a permanent table", "table %s is temporary: its changes are not in the WAL", c.table())
	case persistence != permanent:
		h := halt("ALTER TABLE "+c.table()+" SET LOGGED", "table %s is unlogged: its changes are not in the WAL", c.table())
		h.distrust = true
		return h
	case identity == identityNothing:
		return halt("ALTER TABLE "+c.table()+" REPLICA IDENTITY DEFAULT", "table %s has REPLICA IDENTITY NOTHING: deletes do not say of which row", c.table())
	case !usable:
		return halt("GRANT USAGE ON SCHEMA "+pgx.Identifier{c.Schema}.Sanitize()+" TO …", "the role in source.url may not use schema %s", c.Schema)
	}
	cat.partitioned = kind == kindPartitioned
	cat.source.Catalog += fmt.Sprintf("table %d %s;", cat.source.TableOID, identity)
	if cat.partitioned {
		if err := c.lockRoot(ctx, sql); err != nil {
			return err
		}
		return c.inspectPartitions(ctx, sql, cat)
	}
	return nil
}

// lockRoot takes the lock on a partitioned table that a later COPY takes anyway.
// The server's pg_partition_tree locks the partitions alone: a TRUNCATE, which
// begins at the root, would meet us there, and one of the two would end as a
// deadlock.
func (c *Config) lockRoot(ctx context.Context, sql *pgx.Conn) error {
	if sql.PgConn().TxStatus() == noTransaction {
		return nil // each statement's locks end with it
	}
	if _, err := sql.Exec(ctx, `LOCK TABLE ONLY `+c.table()+` IN ACCESS SHARE MODE`); err != nil {
		return fmt.Errorf("inspect partitions: %w", err)
	}
	return nil
}

// inspectPartitions refuses partitions whose changes are not sent, and notes
// which there are. Rows come and go with ATTACH, DETACH and DROP of a partition,
// and with a TRUNCATE of one alone, and no message tells: only a new snapshot
// does. The file number changes with a TRUNCATE (and, needlessly, a VACUUM FULL).
// https://www.postgresql.org/docs/current/sql-createpublication.html
func (c *Config) inspectPartitions(ctx context.Context, sql *pgx.Conn, cat *catalog) error {
	rows, err := sql.Query(ctx, `
		SELECT c.oid::regclass::text, c.relkind::text, c.relpersistence::text, c.oid::text || ' ' || c.relfilenode::text
		FROM pg_partition_tree($1::oid) p JOIN pg_class c ON c.oid = p.relid WHERE p.isleaf ORDER BY c.oid`, cat.source.TableOID)
	if err != nil {
		return fmt.Errorf("inspect partitions: %w", err)
	}
	var name, kind, persistence, version string
	all := fnv.New64a()
	_, err = pgx.ForEachRow(rows, []any{&name, &kind, &persistence, &version}, func() error {
		_, _ = all.Write([]byte(version + ";")) // never fails
		switch {
		case kind == kindPartitioned: // without partitions of its own
		case kind != kindTable:
			return halt("ALTER TABLE "+c.table()+" DETACH PARTITION "+name, "partition %s of %s is %s: its changes are not sent", name, c.table(), kindNames[kind])
		case persistence != permanent:
			return halt("ALTER TABLE "+name+" SET LOGGED", "partition %s of %s is unlogged: its changes are not in the WAL", name, c.table())
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("inspect partitions: %w", err)
	}
	cat.source.Catalog += fmt.Sprintf("partitions %016x;", all.Sum64())
	return nil
}

// inspectColumns finds the needed columns, by name. Others are of no interest,
// so that the table's owner is free to add and drop them.
func (c *Config) inspectColumns(ctx context.Context, sql *pgx.Conn, cat *catalog) error {
	names := c.columns()
	rows, err := sql.Query(ctx, `
		SELECT attname::text, attnum, atttypid, xmin::text, attgenerated <> '',
		       coalesce(has_column_privilege(attrelid, attnum, 'SELECT'), true) -- NULL: it was dropped just now
		FROM pg_attribute
		WHERE attrelid = $1 AND attname = ANY($2::text[]) AND attnum > 0 AND NOT attisdropped`,
		cat.source.TableOID, names)
	if err != nil {
		return fmt.Errorf("inspect columns: %w", err)
	}
	found := map[string]column{}
	var col column
	var generated, readable bool
	_, err = pgx.ForEachRow(rows, []any{&col.name, &col.num, &col.typ, &col.version, &generated, &readable}, func() error {
		if generated {
			return halt("choose a stored column", "column %s of %s is generated: it is not published", col.name, c.table())
		}
		if !readable {
			return halt("GRANT SELECT ON "+c.table()+" TO …", "the role in source.url may not read column %s of %s", col.name, c.table())
		}
		found[col.name] = col
		return nil
	})
	if err != nil {
		return fmt.Errorf("inspect columns: %w", err)
	}
	for _, name := range names {
		col, ok := found[name]
		if !ok {
			return halt("set source.columns to the columns that hold id, client and restaurant", "table %s has no column %q", c.table(), name)
		}
		cat.columns = append(cat.columns, col)
		cat.source.Catalog += fmt.Sprintf("column %d %s %d %s;", col.num, col.name, col.typ, col.version)
	}
	return nil
}

// inspectIdentity makes sure that the key tells rows apart, and that updates
// and deletes carry it.
func (c *Config) inspectIdentity(ctx context.Context, sql *pgx.Conn, cat *catalog) error {
	var unique bool
	var without string // a relation whose replica identity lacks the key
	// Partitions have replica identities of their own, and theirs count. Their
	// columns have other numbers. A deferrable key is no key at every moment, and no replica identity.
	err := sql.QueryRow(ctx, `
		WITH indexes AS (
		  SELECT indrelid, indisprimary, indisreplident, key,
		         ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = indrelid AND attnum = ANY(key)) AS names
		  FROM pg_index, LATERAL (SELECT (indkey[0:indnkeyatts-1])::int2[] AS key) AS k
		  WHERE indimmediate AND indisvalid AND indisunique AND indpred IS NULL
		    AND indrelid IN (SELECT relid FROM pg_partition_tree($1::oid) UNION SELECT $1::oid))
		SELECT EXISTS (SELECT FROM indexes WHERE indrelid = $1 AND key <@ $2::int2[] AND NOT EXISTS (
		               SELECT FROM pg_attribute WHERE attrelid = $1 AND attnum = ANY(key) AND NOT attnotnull)),
		       coalesce((
		         SELECT c.oid::regclass::text FROM pg_class c
		         WHERE (c.oid = $1 AND c.relkind = 'r' OR c.oid IN (SELECT relid FROM pg_partition_tree($1::oid) WHERE isleaf) AND c.relkind = 'r')
		           AND c.relreplident <> 'f' AND NOT EXISTS (
		             SELECT FROM indexes WHERE indrelid = c.oid AND $3::text[] <@ names
		               AND CASE c.relreplident WHEN 'i' THEN indisreplident WHEN 'd' THEN indisprimary ELSE false END)
		         ORDER BY c.oid LIMIT 1), '')`,
		cat.source.TableOID, cat.keyNumbers(), c.KeyColumns).Scan(&unique, &without)
	switch {
	case err != nil:
		return fmt.Errorf("inspect replica identity: %w", err)
	case !unique:
		return halt("ALTER TABLE "+c.table()+" ADD PRIMARY KEY ("+c.key()+"), or set source.columns.id to the columns of its key",
			"key %s of %s is not unique and NOT NULL, so that it does not tell rows apart", c.key(), c.table())
	case without != "":
		return halt("ALTER TABLE "+without+" REPLICA IDENTITY FULL",
			"key %s is not in the replica identity of %s: deletes do not carry it", c.key(), without)
	}
	return nil
}

// keyNumbers are the key columns' numbers.
func (cat *catalog) keyNumbers() []int16 {
	var numbers []int16
	for c, col := range cat.columns {
		if inKey(c) {
			numbers = append(numbers, col.num)
		}
	}
	return numbers
}

// inspectPublication checks that everything that happens to the table is
// published, and unfiltered.
func (c *Config) inspectPublication(ctx context.Context, sql *pgx.Conn, cat *catalog) error {
	var insert, update, del, truncate, viaRoot, member bool
	var version, filter string
	var columns []int16
	// to_jsonb reads columns that the catalogs have only since 15. The list of
	// columns is read as numbers: the view looks names up in the catalogs of the
	// moment, not of our transaction, and so forgets a column that was dropped since.
	err := sql.QueryRow(ctx, `
		SELECT p.oid, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot, t.pubname IS NOT NULL,
		       p.xmin::text || ' ' || coalesce(r.oid::text || ' ' || r.xmin::text, ''),
		       coalesce(to_jsonb(t)->>'rowfilter', ''),
		       CASE WHEN jsonb_typeof(to_jsonb(r)->'prattrs') = 'array'
		            THEN ARRAY(SELECT jsonb_array_elements_text(to_jsonb(r)->'prattrs')::int2) END
		FROM pg_publication p
		LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = $2
		LEFT JOIN pg_publication_tables t ON t.pubname = p.pubname AND t.schemaname = $3 AND t.tablename = $4
		WHERE p.pubname = $1`, c.Publication, cat.source.TableOID, c.Schema, c.Table).
		Scan(&cat.source.PublicationOID, &insert, &update, &del, &truncate, &viaRoot, &member, &version, &filter, &columns)
	if errors.Is(err, pgx.ErrNoRows) {
		return halt("dinnerbell setup", "publication %s does not exist in database %s", c.publication(), cat.source.Database)
	}
	if err != nil {
		return fmt.Errorf("inspect publication: %w", err)
	}
	cat.source.Catalog += fmt.Sprintf("publication %d %s", cat.source.PublicationOID, version)
	bad := func(hint, format string, args ...any) error {
		h := halt(hint, format, args...)
		h.distrust = true
		return h
	}
	switch {
	case cat.partitioned && !viaRoot:
		return bad("ALTER PUBLICATION "+c.publication()+" SET (publish_via_partition_root = true)",
			"publication %s sends changes of %s as those of its partitions", c.publication(), c.table())
	case !member:
		return bad("dinnerbell setup", "publication %s does not publish table %s", c.publication(), c.table())
	case !insert || !update || !del || !truncate:
		return bad("dinnerbell setup", "publication %s does not publish all of insert, update, delete and truncate", c.publication())
	case filter != "":
		return bad(c.readdSQL(), "publication %s filters the rows of %s", c.publication(), c.table())
	case columns != nil && slices.ContainsFunc(cat.columns, func(col column) bool { return !slices.Contains(columns, col.num) }):
		return bad(c.readdSQL(), "publication %s leaves out one of the columns %s", c.publication(), strings.Join(c.columns(), ", "))
	}
	return nil
}

// readdSQL takes a filter or a column list off the table.
func (c *Config) readdSQL() string {
	return fmt.Sprintf("ALTER PUBLICATION %s DROP TABLE %s; ALTER PUBLICATION %[1]s ADD TABLE %[2]s", c.publication(), c.table())
}

// sameServer makes sure that the replication connection leads to where the
// catalogs were read: a URL may name several hosts, or a balancer.
func sameServer(ctx context.Context, conn *pgconn.PgConn, cat *catalog) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	id, err := pglogrepl.IdentifySystem(ctx, conn)
	if sqlState(err) == codeSyntaxError {
		return fmt.Errorf("identify system: %w: %w", errNoWalsender, err)
	}
	if err != nil {
		return fmt.Errorf("identify system: %w", err)
	}
	return cat.sameAs(id.SystemID, int64(id.Timeline), id.DBName)
}

// sameAs compares what a second connection says with the catalog.
func (cat *catalog) sameAs(systemID string, timeline int64, database string) error {
	s := cat.source
	if systemID != s.SystemID || timeline != s.Timeline || database != s.Database {
		return fmt.Errorf("compare connections: they lead to different servers (system %s timeline %d database %s, and %s %d %s)",
			s.SystemID, s.Timeline, s.Database, systemID, timeline, database)
	}
	return nil
}

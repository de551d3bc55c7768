package source

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/cdc/pgoutput"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

const (
	// minVersion is the first version that sends logical messages, which the
	// barrier needs.
	minVersion = 14_00_00
	// SchemasVersion is the first version whose publications know schemas and
	// column lists.
	SchemasVersion = 15_00_00
)

// noTransaction is a connection's status outside of transactions.
const noTransaction = 'I'

// Catalog describes the server, the table and the publication, all as of one
// moment. It is read by plain queries: functions such as pg_partition_tree, and
// views over them such as pg_publication_tables, take locks and wait behind DDL,
// and they read the catalogs of the present, whatever the transaction sees.
type Catalog struct {
	Source  state.Source
	Version int    // server_version_num
	level   string // wal_level
	standby bool   // it takes neither writes nor slots
	WALEnd  id.LSN // flushed
	// standbyNames is synchronous_standby_names, application the daemon's name as
	// the server has it.
	standbyNames, application string

	table       tableFacts
	Relations   []tableRelation // the relations that hold the rows: the table, or its leaf partitions
	children    []string        // the names of inheritance children
	Columns     []NeededColumn  // see Config.neededColumns; fewer if some columns do not exist
	uniqueKey   bool            // the key columns tell rows apart
	publication publicationFacts
}

// tableFacts is the table's row of pg_class. exists is false if there is no such
// row; then nothing about columns and publication was read either.
type tableFacts struct {
	exists            bool
	kind, persistence string
	identity          string
	schemaUsable      bool // by the role in source.url
	policies          bool // row-level security applies to the role
}

// tableRelation is a table that holds rows.
type tableRelation struct {
	OID               uint32
	name              string // quoted and qualified
	kind, persistence string
	identity          string
	// identityColumns are the columns that updates and deletes carry, unless the
	// identity is FULL, which carries all.
	identityColumns []string
}

// NeededColumn is a needed column.
type NeededColumn struct {
	Name      string
	num       int16
	Type      uint32
	generated bool
	readable  bool // by the role in source.url
}

// publicationFacts describes the publication, and how it publishes the table.
type publicationFacts struct {
	exists   bool
	all      bool // of insert, update, delete and truncate
	viaRoot  bool
	member   bool    // the table is published
	asParent bool    // its changes are sent as those of the table whose partition it is
	filtered bool    // by rows
	columns  []int16 // the numbers of a column list; nil: all
	// columnNames are the names of a column list.
	columnNames []string
}

// Values of pg_class.relkind, relpersistence and relreplident.
// https://www.postgresql.org/docs/current/catalog-pg-class.html
const (
	kindTable       = "r"
	kindPartitioned = "p"
	permanent       = "p"
	temporary       = "t"
	identityDefault = "d"
	identityNothing = "n"
	identityFull    = "f"
)

// IsPartitioned reports whether the table is partitioned.
func (cat *Catalog) IsPartitioned() bool { return cat.table.kind == kindPartitioned }

// ColumnNames returns the names of the needed columns.
func (cat *Catalog) ColumnNames() []string {
	names := make([]string, len(cat.Columns))
	for i := range cat.Columns {
		names[i] = cat.Columns[i].Name
	}
	return names
}

// readCatalog reads everything as of one moment: in the transaction that the
// connection is in, or in a transaction of its own. It judges nothing, and stops
// early where the server is too old, or the table does not exist.
func (db *DB) readCatalog(ctx context.Context, sql *pgx.Conn) (*Catalog, error) {
	ctx, cancel := context.WithTimeout(ctx, QueryTimeout)
	defer cancel()
	if sql.PgConn().TxStatus() == noTransaction {
		tx, err := sql.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
		if err != nil {
			return nil, fmt.Errorf("read catalogs: %w", err)
		}
		defer func() { _ = tx.Rollback(ctx) }() // it only read; a broken connection shows at the next query
	}
	cat := &Catalog{Source: state.Source{Slot: db.cfg.Slot, Publication: db.cfg.Publication, Schema: db.cfg.Schema, Table: db.cfg.Table}}
	cr := &catalogReader{db: db, sql: sql, cat: cat}
	err := cr.readServer(ctx)
	if err != nil || cat.Version < minVersion {
		return cat, err
	}
	if cat.Source.Catalog, err = db.ReadIdentity(ctx, sql, cat.Version); err != nil {
		return cat, err
	}
	for _, step := range []func(context.Context) error{
		cr.readTable, cr.readRelations, cr.readColumns, cr.readKey, cr.readPublication,
	} {
		if err := step(ctx); err != nil || !cat.table.exists {
			return cat, err
		}
	}
	return cat, nil
}

// catalogReader reads the parts of a catalog, one after the other.
type catalogReader struct {
	db  *DB
	sql *pgx.Conn
	cat *Catalog
}

// readServer reads the identity of the server, and whether it can decode at all.
func (cr *catalogReader) readServer(ctx context.Context) error {
	var end string
	// The timeline is in a WAL file's name. A control file would give that of the
	// last checkpoint, which is the old timeline for a while after a promotion.
	err := cr.sql.QueryRow(ctx, `
		SELECT current_setting('server_version_num')::int, current_setting('wal_level'), current_database(),
		       (SELECT system_identifier::text FROM pg_control_system()), pg_is_in_recovery(),
		       CASE WHEN pg_is_in_recovery() THEN 0
		            ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint END,
		       CASE WHEN pg_is_in_recovery() THEN '0/0' ELSE pg_current_wal_flush_lsn()::text END,
		       current_setting('synchronous_standby_names'), current_setting('application_name')`).
		Scan(&cr.cat.Version, &cr.cat.level, &cr.cat.Source.Database, &cr.cat.Source.SystemID, &cr.cat.standby, &cr.cat.Source.Timeline, &end,
			&cr.cat.standbyNames, &cr.cat.application)
	if err != nil {
		return fmt.Errorf("read server's identity: %w", err)
	}
	cr.cat.Source.History = cr.db.history.historyOf(cr.cat.Source.Timeline)
	cr.cat.WALEnd, err = id.ParseLSN(end)
	if err != nil {
		return fmt.Errorf("read server's position: %w", err)
	}
	return nil
}

// readTable finds the table. row_security_active asks for the role, and waits
// for no lock.
func (cr *catalogReader) readTable(ctx context.Context) error {
	t := &cr.cat.table
	err := cr.sql.QueryRow(ctx, `
		SELECT c.oid, c.relkind::text, c.relpersistence::text, c.relreplident::text,
		       coalesce(has_schema_privilege(n.oid, 'USAGE'), true), -- NULL: it was dropped just now
		       c.relrowsecurity AND row_security_active(c.oid)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2`, cr.db.cfg.Schema, cr.db.cfg.Table).
		Scan(&cr.cat.Source.TableOID, &t.kind, &t.persistence, &t.identity, &t.schemaUsable, &t.policies)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read table: %w", err)
	}
	t.exists = true
	return nil
}

// readRelations finds the partitions, or the inheritance children. A partition
// has a replica identity of its own, and that one counts; its columns have other
// numbers than the table's. A deferrable key is no replica identity.
func (cr *catalogReader) readRelations(ctx context.Context) error {
	rows, err := cr.sql.Query(ctx, `
		WITH RECURSIVE tree AS (
		  SELECT $1::oid AS oid
		  UNION SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid WHERE NOT i.inhdetachpending)
		SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname), c.oid, c.relkind::text, c.relpersistence::text, c.relreplident::text,
		       ARRAY(SELECT a.attname::text FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid
		             WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate AND a.attnum = ANY ((i.indkey[0:i.indnkeyatts-1])::int2[])
		               AND CASE c.relreplident WHEN 'i' THEN i.indisreplident WHEN 'd' THEN i.indisprimary ELSE false END)
		FROM tree JOIN pg_class c ON c.oid = tree.oid JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY c.oid`, cr.cat.Source.TableOID)
	if err != nil {
		return fmt.Errorf("read partitions: %w", err)
	}
	var r tableRelation
	_, err = pgx.ForEachRow(rows, []any{&r.name, &r.OID, &r.kind, &r.persistence, &r.identity, &r.identityColumns}, func() error {
		switch {
		case !cr.cat.IsPartitioned() && r.OID != cr.cat.Source.TableOID:
			cr.cat.children = append(cr.cat.children, r.name)
		case r.kind != kindPartitioned:
			cr.cat.Relations = append(cr.cat.Relations, r)
			r.identityColumns = nil // the scan of the next row writes into it
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read partitions: %w", err)
	}
	return nil
}

// readColumns finds the needed columns, by name. It ignores all others, so that the
// table's owner is free to add and drop them.
func (cr *catalogReader) readColumns(ctx context.Context) error {
	rows, err := cr.sql.Query(ctx, `
		SELECT attname::text, attnum, atttypid, attgenerated <> '',
		       coalesce(has_column_privilege(attrelid, attnum, 'SELECT'), true) -- NULL: it was dropped just now
		FROM pg_attribute
		WHERE attrelid = $1 AND attname = ANY($2::text[]) AND attnum > 0 AND NOT attisdropped`,
		cr.cat.Source.TableOID, cr.db.cfg.neededColumns())
	if err != nil {
		return fmt.Errorf("read columns: %w", err)
	}
	found := map[string]NeededColumn{}
	var col NeededColumn
	_, err = pgx.ForEachRow(rows, []any{&col.Name, &col.num, &col.Type, &col.generated, &col.readable}, func() error {
		found[col.Name] = col
		return nil
	})
	if err != nil {
		return fmt.Errorf("read columns: %w", err)
	}
	for _, name := range cr.db.cfg.neededColumns() {
		if col, ok := found[name]; ok {
			cr.cat.Columns = append(cr.cat.Columns, col)
		}
	}
	return nil
}

// readKey finds out whether the key columns tell rows apart: an index of some of
// them is unique, at every moment and for all rows.
func (cr *catalogReader) readKey(ctx context.Context) error {
	var numbers []int16
	for i, col := range cr.cat.Columns {
		if pgoutput.IsKeyColumn(i) {
			numbers = append(numbers, col.num)
		}
	}
	err := cr.sql.QueryRow(ctx, `
		SELECT EXISTS (
		  SELECT FROM pg_index, LATERAL (SELECT (indkey[0:indnkeyatts-1])::int2[] AS key) AS k
		  WHERE indrelid = $1 AND indimmediate AND indisvalid AND indisunique AND indpred IS NULL AND key <@ $2::int2[]
		    AND NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = $1 AND attnum = ANY(key) AND NOT attnotnull))`,
		cr.cat.Source.TableOID, numbers).Scan(&cr.cat.uniqueKey)
	if err != nil {
		return fmt.Errorf("read key: %w", err)
	}
	return nil
}

// readPublication finds the publication and the ways in which it has the table:
// by itself, by its schema, or through a table whose partition it is.
func (cr *catalogReader) readPublication(ctx context.Context) error {
	schemas := "false"
	if cr.cat.Version >= SchemasVersion {
		schemas = "EXISTS (SELECT FROM pg_publication_namespace s WHERE s.pnpubid = p.oid AND s.pnnspid = above.relnamespace)"
	}
	p := &cr.cat.publication
	// to_jsonb reads columns that the catalogs have only since 15.
	err := cr.sql.QueryRow(ctx, `
		WITH RECURSIVE above AS (
		  SELECT oid, relnamespace, relispartition, false AS parent FROM pg_class WHERE oid = $2
		  UNION ALL SELECT c.oid, c.relnamespace, c.relispartition, true
		  FROM above JOIN pg_inherits i ON i.inhrelid = above.oid AND above.relispartition AND NOT i.inhdetachpending JOIN pg_class c ON c.oid = i.inhparent)
		SELECT p.oid, p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate, p.pubviaroot,
		       coalesce(bool_or(m.published), false), coalesce(bool_or(m.published AND m.parent AND p.pubviaroot), false),
		       coalesce(to_jsonb(r)->>'prqual', '') <> '',
		       CASE WHEN jsonb_typeof(to_jsonb(r)->'prattrs') = 'array'
		            THEN ARRAY(SELECT jsonb_array_elements_text(to_jsonb(r)->'prattrs')::int2) END,
		       ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = $2 AND jsonb_typeof(to_jsonb(r)->'prattrs') = 'array'
		             AND to_jsonb(r)->'prattrs' @> to_jsonb(a.attnum))
		FROM pg_publication p
		LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = $2
		CROSS JOIN LATERAL (
		  SELECT parent, p.puballtables OR EXISTS (SELECT FROM pg_publication_rel x WHERE x.prpubid = p.oid AND x.prrelid = above.oid) OR `+schemas+` AS published
		  FROM above) AS m
		WHERE p.pubname = $1
		GROUP BY p.oid, r.oid`, cr.db.cfg.Publication, cr.cat.Source.TableOID).
		Scan(&cr.cat.Source.PublicationOID, &p.all, &p.viaRoot, &p.member, &p.asParent, &p.filtered, &p.columns, &p.columnNames)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read publication: %w", err)
	}
	p.exists = true
	return nil
}

// CheckSameServer makes sure that the replication connection leads to the server of
// the catalogs: a URL may name several hosts, or a balancer.
func CheckSameServer(ctx context.Context, conn *pgconn.PgConn, cat *Catalog) error {
	ctx, cancel := context.WithTimeout(ctx, QueryTimeout)
	defer cancel()
	id, err := pglogrepl.IdentifySystem(ctx, conn)
	if SQLState(err) == codeSyntaxError {
		return fmt.Errorf("identify system: %w: %w", errNoWalsender, err)
	}
	if err != nil {
		return fmt.Errorf("identify system: %w", err)
	}
	return cat.matchServer(id.SystemID, int64(id.Timeline), id.DBName)
}

// matchServer compares the identity that a second connection gave with the
// catalog's.
func (cat *Catalog) matchServer(systemID string, timeline int64, database string) error {
	s := cat.Source
	if systemID != s.SystemID || timeline != s.Timeline || database != s.Database {
		return fmt.Errorf("compare connections: they lead to different servers (system %s timeline %d database %s, and %s %d %s)",
			s.SystemID, s.Timeline, s.Database, systemID, timeline, database)
	}
	return nil
}

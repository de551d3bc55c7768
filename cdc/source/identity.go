package source

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/pgsession"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

// The identity of the source is everything on which the rows in the store depend
// beside the messages of the stream, because it can change in the catalogs without
// a message. [state.Source] keeps it as text, as named items:
//
//	text 1f2e3d4c;table 16400;kind r;columns 1:23,2:25,3:25;labels -;versions 745,745,745;relations 1:-7…;links 0;files 4…;publication 16500;schemas …;published …
//
// The server builds all items but the first, so that the barrier's query carries
// them and only texts are compared. They are read from catalogs alone, without locks.
//
//	text         how values read as text, see package pgsession
//	table        oid
//	kind         of relation
//	columns      number and type of each needed column
//	labels       of enum types among them, or below domains and arrays among them,
//	             which ALTER TYPE … RENAME VALUE changes
//	versions     of the needed columns' rows in pg_attribute
//	relations    the relations that hold the rows: leaf partitions, or the table;
//	             their number, and their oids' hashes in one
//	links        the versions of the rows of pg_inherits that make them partitions, in one hash
//	files        the relations with the numbers of their files, in one hash
//	publication  oid
//	schemas      of the table, if the publication has them, and since when the table is in them
//	published    the versions of the rows by which the publication has the table
const (
	itemText        = "text"
	itemTable       = "table"
	itemKind        = "kind"
	itemColumns     = "columns"
	itemLabels      = "labels"
	itemVersions    = "versions"
	itemRelations   = "relations"
	itemLinks       = "links"
	itemFiles       = "files"
	itemPublication = "publication"
	itemSchemas     = "schemas"
	itemPublished   = "published"
)

// noSchemas is the item of a server before 15, which publishes no schemas. Its
// walsenders remember their first finding about a partition: for one that was
// written while it was detached they send nothing later, although it has been
// attached again. A new walsender reads the same WAL and finds the same, so that
// only a new slot helps.
const noSchemas = "none"

// identityQuery returns a query of one row with the text, for a server of the given
// version. Its arguments are those of identityArgs. before is a list of further
// columns.
//
// A publication has a table by itself, by its schema, or through a table whose
// partition it is. A table that was taken out and put back has a new row in the
// publication's catalog, as has a partition that was detached and attached again;
// writes in between were not sent. Nor are writes sent while the table is in a
// schema that is not published: SET SCHEMA changes the table's row in pg_depend,
// and no other statement does. A partition whose DETACH … CONCURRENTLY is pending
// does not count as one.
func identityQuery(version int, before string) string {
	schemas := "'" + noSchemas + "'"
	if version >= SchemasVersion {
		schemas = `coalesce((SELECT string_agg(s.oid::text, ',' ORDER BY s.oid) FROM pg_publication_namespace s
		      WHERE s.pnpubid = p.oid AND s.pnnspid IN (SELECT relnamespace FROM above)) || '/' ||
		      (SELECT string_agg(d.xmin::text, ',' ORDER BY above.oid) FROM above JOIN pg_depend d ON d.classid = 'pg_class'::regclass
		        AND d.objid = above.oid AND d.objsubid = 0 AND d.refclassid = 'pg_namespace'::regclass), '-')`
	}
	return `
		WITH RECURSIVE t AS (
		  SELECT c.oid, c.relkind, c.relnamespace, c.relispartition
		  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2),
		tree AS (
		  SELECT oid FROM t
		  UNION SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid WHERE NOT i.inhdetachpending),
		above AS (
		  SELECT oid, relnamespace, relispartition, '' AS link FROM t
		  UNION ALL SELECT c.oid, c.relnamespace, c.relispartition, i.xmin::text
		  FROM above JOIN pg_inherits i ON i.inhrelid = above.oid AND above.relispartition AND NOT i.inhdetachpending JOIN pg_class c ON c.oid = i.inhparent)
		SELECT ` + before + `
		  'table ' || coalesce((SELECT oid::text || ';kind ' || relkind::text FROM t), '-') ||
		  (SELECT ';columns ' || coalesce(string_agg(a.attnum::text || ':' || a.atttypid::text, ',' ORDER BY k.at), '-') ||
		          ';labels ' || coalesce(hashtextextended(string_agg((
		             WITH RECURSIVE base AS (SELECT a.atttypid AS oid UNION SELECT CASE y.typbasetype WHEN 0 THEN y.typelem ELSE y.typbasetype END
		               FROM base JOIN pg_type y ON y.oid = base.oid)
		             SELECT string_agg(e.enumlabel::text, ',' ORDER BY e.oid) FROM base JOIN pg_enum e ON e.enumtypid = base.oid),
		             ';' ORDER BY k.at) COLLATE "C", 0)::text, '-') ||
		          ';versions ' || coalesce(string_agg(a.xmin::text, ',' ORDER BY k.at), '-')
		   FROM unnest($3::text[]) WITH ORDINALITY AS k (name, at)
		   JOIN pg_attribute a ON a.attrelid = (SELECT oid FROM t) AND a.attname = k.name::name AND NOT a.attisdropped) ||
		  (SELECT ';relations ' || count(*)::text || ':' || coalesce(bit_xor(hashoidextended(c.oid, 0)), 0)::text ||
		          ';links ' || (SELECT coalesce(bit_xor(hashtextextended((i.inhrelid::text || ':' || i.inhparent::text || ':' || i.xmin::text) COLLATE "C", 0)), 0)::text
		             FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid WHERE NOT i.inhdetachpending) ||
		          ';files ' || coalesce(bit_xor(hashoidextended(c.relfilenode, c.oid::int8)), 0)::text
		   FROM tree JOIN pg_class c ON c.oid = tree.oid WHERE c.relkind <> 'p') ||
		  coalesce((
		    SELECT ';publication ' || p.oid::text || ';schemas ' || ` + schemas + ` || ';published ' || p.xmin::text || '/' ||
		      coalesce((SELECT string_agg(r.oid::text || ':' || r.xmin::text, ',' ORDER BY r.oid) FROM pg_publication_rel r
		                WHERE r.prpubid = p.oid AND r.prrelid IN (SELECT oid FROM above)), '-') || '/' || (SELECT string_agg(link, ',') FROM above)
		    FROM pg_publication p WHERE p.pubname = $4), '')`
}

// identityArgs are the arguments of identityQuery.
func (c *Config) identityArgs() []any {
	return []any{c.Schema, c.Table, c.neededColumns(), c.Publication}
}

// PositionQuery asks for the server's positions together with the identity, in one
// statement, so that the barrier costs one round trip.
type PositionQuery struct {
	sql  string
	args []any
}

// ServerPosition is the answer to a PositionQuery.
type ServerPosition struct {
	Insert, Flush id.LSN
	Identity      string
}

// NewPositionQuery returns the query for a server of the given version.
func (db *DB) NewPositionQuery(version int) PositionQuery {
	return PositionQuery{
		sql:  identityQuery(version, "pg_current_wal_insert_lsn()::text, pg_current_wal_flush_lsn()::text,"),
		args: db.cfg.identityArgs(),
	}
}

// Read asks over sql, for at most QueryTimeout.
func (q *PositionQuery) Read(ctx context.Context, sql *pgx.Conn) (ServerPosition, error) {
	ctx, cancel := context.WithTimeout(ctx, QueryTimeout)
	defer cancel()
	var p ServerPosition
	var insert, flush string
	err := sql.QueryRow(ctx, q.sql, q.args...).Scan(&insert, &flush, &p.Identity)
	if err == nil {
		p.Insert, err = id.ParseLSN(insert)
	}
	if err == nil {
		p.Flush, err = id.ParseLSN(flush)
	}
	if err != nil {
		return ServerPosition{}, fmt.Errorf("read WAL position: %w", err)
	}
	p.Identity = withTextVersion(p.Identity)
	return p, nil
}

// EmitMessage commits a transaction that carries nothing but a logical message. It
// must be a transactional one: its commit flushes the WAL, and is sent at once.
func (db *DB) EmitMessage(ctx context.Context, sql *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, QueryTimeout)
	defer cancel()
	if _, err := sql.Exec(ctx, `SELECT pg_logical_emit_message(true, 'dinnerbell', '')`); err != nil {
		if SQLState(err) == CodeInsufficientPrivilege {
			h := NewHalt("GRANT EXECUTE ON FUNCTION "+emitFunction(sql.PgConn().ParameterStatus("server_version"))+" TO "+pgx.Identifier{sql.Config().User}.Sanitize(), "the role in source.url may not emit logical messages: %v", err)
			h.Heals = true
			return h
		}
		return fmt.Errorf("emit logical message: %w", err)
	}
	return nil
}

// emitFunction names the function that writes a logical message, for a GRANT: since Postgres
// 17 it has another argument.
func emitFunction(serverVersion string) string {
	var major int
	if _, err := fmt.Sscanf(serverVersion, "%d", &major); err == nil && major < 17 {
		return "pg_logical_emit_message(boolean,text,text)"
	}
	return "pg_logical_emit_message(boolean,text,text,boolean)"
}

// withTextVersion puts the item that the server does not know before the server's
// text.
func withTextVersion(text string) string {
	return itemText + " " + pgsession.TextVersion() + ";" + text
}

// ReadIdentity reads the identity as the connection's transaction sees it.
func (db *DB) ReadIdentity(ctx context.Context, sql *pgx.Conn, version int) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, QueryTimeout)
	defer cancel()
	var text string
	if err := sql.QueryRow(ctx, identityQuery(version, ""), db.cfg.identityArgs()...).Scan(&text); err != nil {
		return "", fmt.Errorf("read identity of the source: %w", err)
	}
	return withTextVersion(text), nil
}

// Identity is the items by their names.
type Identity map[string]string

// ParseIdentity reads the text. Items are missing where an older version of
// dinnerbell wrote the text.
func ParseIdentity(text string) Identity {
	items := Identity{}
	for item := range strings.SplitSeq(text, ";") {
		name, value, _ := strings.Cut(item, " ")
		items[name] = value
	}
	return items
}

// HasSameFiles reports whether the rows lie in the same files.
func (was Identity) HasSameFiles(now Identity) bool {
	return was[itemRelations] == now[itemRelations] && was[itemFiles] == now[itemFiles]
}

// Verdict is the consequence of a difference between two identities.
type Verdict uint8

const (
	// RowsCurrent means that the rows are the source's, and the stream goes on.
	RowsCurrent Verdict = iota
	// RowsOutdated means that the stream goes on, but rows are missing or wrong, and the
	// stream will not mend them: new rows are built beside the served ones.
	RowsOutdated
	// StreamLost means that the stream is not the one that the rows came with. It takes a new
	// slot and a snapshot.
	StreamLost
)

// compareItems compares the identity of the rows with the present one. Types,
// numbers and labels of the needed columns decide, and the relations that hold the
// rows. A column's version alone is no evidence: GRANT, SET STATISTICS and SET
// DEFAULT change it. Together with other files it may be ALTER … TYPE … USING,
// which gives every row another value and may leave the type as it was. Other files
// alone are a VACUUM FULL, an ALTER of another column, or a TRUNCATE, which the
// stream sends; it does not send the TRUNCATE of a single partition.
func (was Identity) compareItems(now Identity) (Verdict, string) {
	differ := func(name string) bool { return was[name] != now[name] }
	moved := differ(itemFiles)
	membership := RowsOutdated // of a partition in a table
	if now[itemSchemas] == noSchemas {
		membership = StreamLost
	}
	switch {
	case was[itemKind] == "":
		return RowsOutdated, "an older version of dinnerbell wrote the local state"
	case differ(itemTable):
		return StreamLost, fmt.Sprintf("the table was made again (oid %s, was %s)", now[itemTable], was[itemTable])
	case differ(itemPublication):
		return StreamLost, fmt.Sprintf("the publication was made again (oid %s, was %s)", now[itemPublication], was[itemPublication])
	case differ(itemSchemas) && publishesBySameSchemas(was[itemSchemas], now[itemSchemas]):
		return StreamLost, "the table was in another schema, which may not be published"
	case differ(itemText):
		return RowsOutdated, "this version of dinnerbell reads values under other settings"
	case differ(itemColumns):
		return RowsOutdated, fmt.Sprintf("the needed columns are others (number:type %s, were %s)", now[itemColumns], was[itemColumns])
	case differ(itemLabels):
		return RowsOutdated, "the labels of an enum type were changed"
	case differ(itemRelations):
		return membership, "partitions were attached, detached, made or dropped"
	case differ(itemLinks):
		return membership, "partitions were detached and attached again; what was written meanwhile was not sent"
	case moved && now[itemKind] == kindPartitioned:
		return RowsOutdated, "partitions were truncated or rewritten"
	case moved && differ(itemVersions):
		return RowsOutdated, "needed columns were altered, and all rows written anew"
	case linksAbove(was[itemPublished]) != linksAbove(now[itemPublished]):
		return membership, "the table was attached to another parent or anew; what was written meanwhile may not have been sent"
	case differ(itemSchemas), differ(itemPublished):
		return RowsOutdated, "the publication was changed; what was written meanwhile may not have been sent"
	}
	return RowsCurrent, ""
}

// linksAbove is the part of the item "published" that changes when the table is
// detached from the tables whose partition it is, and attached again.
func linksAbove(published string) string { return published[strings.LastIndexByte(published, '/')+1:] }

// publishesBySameSchemas reports whether the publication has the table by the same
// schemas. If only the time differs since when the table is in them, the stream is
// not to be trusted: a walsender that has met a partition while its table was
// elsewhere sends no change of that partition any more, although the table has come
// back.
func publishesBySameSchemas(was, now string) bool {
	was, _, _ = strings.Cut(was, "/")
	now, _, _ = strings.Cut(now, "/")
	return was == now
}

// CompareSources compares two sources in everything but the slot's position: was is
// the source of the rows, now is read from the catalogs.
func CompareSources(was, now state.Source) (Verdict, string) {
	before, after := ParseIdentity(was.Catalog), ParseIdentity(now.Catalog)
	was.Catalog = now.Catalog
	if was != now {
		return StreamLost, fmt.Sprintf("the source is another one (%+v, was %+v)", now, was)
	}
	return before.compareItems(after)
}

package source

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/postgres"
	"dinnerbell/internal/precondition"
)

// Surroundings is what `doctor` knows of the daemon beside the source's configuration.
type Surroundings struct {
	HaltOnLost bool          // a lost stream halts the daemon (source.on_lost: halt)
	Running    bool          // the daemon of this state.dir runs and answers
	Limit      time.Duration // of each check
}

// Examination is what `doctor` has found out about the source.
type Examination struct {
	Report precondition.Report
	Rows   int64 // of the table, estimated; -1: unknown
}

// connectionCheck is the name of the finding about the connection, which comes first.
const connectionCheck = "source.connection"

// Examine makes every check of the source. A check that cannot be made is Unknown; the
// others are made all the same. ApplicationName of cfg should be the daemon's, so that
// its connections are told from others.
func Examine(ctx context.Context, cfg Config, around Surroundings) Examination {
	all := precondition.Everything
	db, err := Open(cfg)
	if err != nil {
		return Examination{Report: append(precondition.Report{nameFinding(connectionCheck, postgres.NoConnection(ctx, err, nil, "source.url"))},
			precondition.NotMade(preconditions, all, "no connection")...), Rows: -1}
	}
	x := &examination{db: db, facts: checkFacts{db: db, reads: true, around: &around, rows: -1}}
	defer x.closeConn()
	first := x.connectFirst(ctx, around.Limit)
	report := precondition.Report{nameFinding(connectionCheck, first)}
	if first.Level == precondition.Fail {
		return Examination{Report: append(report, precondition.NotMade(preconditions, all, "no connection")...), Rows: -1}
	}
	made, _ := precondition.RunOver(ctx, preconditions, all, around.Limit, x.ensureFacts) // the report has the errors
	return Examination{Report: append(report, made...), Rows: x.facts.rows}
}

func nameFinding(name string, f finding) finding {
	f.Name = name
	return f
}

// examination holds the one connection of an examination. A check that runs out of
// time loses it, and the next check opens another.
type examination struct {
	db    *DB
	facts checkFacts
	gone  error // why there is no connection any more, or no catalog
}

func (x *examination) closeConn() {
	if x.facts.sql != nil {
		CloseConn(x.facts.sql.PgConn())
	}
}

// connectFirst makes the first connection, and returns the finding about it.
func (x *examination) connectFirst(ctx context.Context, limit time.Duration) finding {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	sql, err := x.db.DialSQL(ctx)
	o, configErr := x.db.connConfig(nil)
	if err != nil {
		return postgres.NoConnection(context.WithoutCancel(ctx), errors.Join(err, configErr), o, "source.url")
	}
	x.facts.sql = sql
	began := time.Now()
	if err := sql.Ping(ctx); err != nil {
		return finding{Level: precondition.Fail, Object: "source.url", Found: "the server does not answer: " + err.Error(), Effect: "nothing works"}
	}
	return finding{Object: "source.url", Found: postgres.Describe(sql.PgConn(), o, time.Since(began))}
}

// ensureFacts returns the facts with a connection that works, and the catalogs.
func (x *examination) ensureFacts(ctx context.Context) (*checkFacts, error) {
	if x.gone != nil {
		return nil, x.gone
	}
	if x.facts.sql.IsClosed() {
		sql, err := x.db.DialSQL(ctx)
		if err != nil {
			x.gone = err
			return nil, err
		}
		x.facts.sql = sql
	}
	if x.facts.cat == nil {
		cat, err := x.db.readCatalog(ctx, x.facts.sql)
		if err != nil {
			x.gone = err
			return nil, err
		}
		x.facts.cat, x.facts.rows = cat, readRows(ctx, x.facts.sql, cat)
	}
	return &x.facts, nil
}

// readRows estimates the rows of the table from the server's statistics, and from the
// size of a table that was never analysed; -1: unknown.
func readRows(ctx context.Context, sql *pgx.Conn, cat *Catalog) int64 {
	const bytesPerRow = 100 // of two ids of 36 characters, with the row's header
	oids := make([]uint32, len(cat.Relations))
	for i, r := range cat.Relations {
		oids[i] = r.OID
	}
	var rows int64
	err := sql.QueryRow(ctx, `
		SELECT coalesce(sum(CASE WHEN c.reltuples >= 0 THEN c.reltuples ELSE pg_relation_size(c.oid) / $2::float8 END), 0)::int8
		FROM pg_class c WHERE c.oid = ANY($1::oid[])`, oids, bytesPerRow).Scan(&rows)
	if err != nil || !cat.table.exists {
		return -1
	}
	return rows
}

// What checks that have no finding show.

func (f *checkFacts) showTable() string {
	text := f.db.cfg.QuotedTable()
	if f.rows >= 0 {
		text += fmt.Sprintf(", about %s rows", roundCount(f.rows))
	}
	if n := len(f.cat.Relations); f.cat.IsPartitioned() {
		text += fmt.Sprintf(" in %d partitions", n)
	}
	return text
}

// roundCount writes a count to three digits: 123, 45.6 thousand, 10.2 million.
func roundCount(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.3g billion", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.3g million", float64(n)/1e6)
	case n >= 1e4:
		return fmt.Sprintf("%.3g thousand", float64(n)/1e3)
	}
	return fmt.Sprint(n)
}

func (f *checkFacts) showColumns() string {
	var columns []string
	for _, col := range f.cat.Columns {
		text := col.Name
		if t, ok := f.sql.TypeMap().TypeForOID(col.Type); ok {
			text += " " + t.Name
		}
		if !slices.Contains(columns, text) {
			columns = append(columns, text)
		}
	}
	return strings.Join(columns, ", ") + ", readable"
}

func (f *checkFacts) showIdentity() string {
	return map[string]string{"d": "default", identityFull: "full", "i": "an index"}[f.cat.table.identity]
}

func (f *checkFacts) showPublication() string {
	return f.db.cfg.Publication + ", insert, update, delete and truncate"
}

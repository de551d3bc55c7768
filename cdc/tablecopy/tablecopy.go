package tablecopy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"dinnerbell/cdc/pgoutput"
	"dinnerbell/cdc/source"
	"dinnerbell/internal/failpoint"
	"dinnerbell/internal/postgres"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

const (
	// parallelBytes is the size of a table from which on it is copied over
	// copyConnections. On one machine with two cores that is no faster and no
	// slower, since all is CPU: 3 million rows (312 MB) take 6.6 s over one
	// connection and 6 s over several, 6.4 s of CPU either way. Where each
	// connection carries 20 MB/s, one takes 24 s, two 17 s, four 12 s.
	parallelBytes   = 256 << 20
	copyConnections = 4
	// rangeBytes is how much of a large table one COPY reads: small enough that the
	// connections end at about the same time.
	rangeBytes = 64 << 20
	// copyBatch is how many rows a connection collects before it passes them to the
	// sink, which serves one connection at a time.
	copyBatch = 512
)

// RowSink receives the rows of a copied table, in any order; one call at a time. It
// does not keep the ids. A [state.Loader] is one.
type RowSink interface {
	Add(row id.RowID, restaurant, client id.ID) error
}

// Result describes a copy of the table.
type Result struct {
	Cat           *source.Catalog // as of the snapshot: the rows belong to exactly these catalogs
	Rows          int64
	BadIDs, Nulls int64
}

// Limits bounds the copy of a large table. Tests, which have no large table, set
// it; 0: the constants of the same names.
type Limits struct {
	ParallelBytes, RangeBytes int64
	Connections               int
}

// Request says which rows are copied, and where to.
type Request struct {
	Snapshot string // its exporter keeps it until the copy has ended
	Only     string // a condition in SQL that rows must meet; "": all do
	Sink     RowSink
	Progress *Counter

	Limits Limits

	// For tests; both may be nil.
	Locked func() // the first connection has its lock
	Copied func() // rows have gone to the sink
}

// tableCopy reads the table, as one exported snapshot shows it, into a sink.
type tableCopy struct {
	Request
	db *source.DB

	cat   *source.Catalog
	parts []Part

	mu   sync.Mutex // guards below, and the sink
	done Result
}

// Copy copies the table into the sink over connections of its own, with its
// progress in r.Progress and, every now and then, in the log. An error includes how
// far the copy was; an error that an operator has to mend is a *halt.Error. It
// wraps ErrRewritten if the copied rows may not be those that the snapshot shows.
func Copy(ctx context.Context, db *source.DB, r Request) (Result, error) {
	r.Limits.ParallelBytes = cmp.Or(r.Limits.ParallelBytes, parallelBytes)
	r.Limits.RangeBytes = cmp.Or(r.Limits.RangeBytes, rangeBytes)
	r.Limits.Connections = cmp.Or(r.Limits.Connections, copyConnections)
	c := &tableCopy{Request: r, db: db}
	first, err := c.connectAtSnapshot(ctx)
	if err != nil {
		return Result{}, err
	}
	defer func() { source.CloseConn(first.PgConn()) }()
	if err := c.preparePlan(ctx, first); err != nil {
		return Result{}, c.explainError(err)
	}
	stop := r.Progress.logEvery(progressEvery, db.Config().Logger, db.Config().QuotedTable())
	defer stop()
	if err := c.copyAll(ctx, first); err != nil {
		return Result{}, c.explainError(err)
	}
	if err := c.checkFilesAfter(ctx, first); err != nil {
		return Result{}, c.explainError(err)
	}
	r.Progress.rows.Store(c.done.Rows)
	return c.done, nil
}

// connectAtSnapshot opens a connection that sees the snapshot.
func (c *tableCopy) connectAtSnapshot(ctx context.Context) (*pgx.Conn, error) {
	sql, err := c.db.DialSQL(ctx)
	if err != nil {
		return nil, err
	}
	if err := source.ImportSnapshot(ctx, sql, c.Snapshot); err != nil {
		source.CloseConn(sql.PgConn())
		return nil, err
	}
	return sql, nil
}

// preparePlan reads the catalogs as of the snapshot, takes the lock that reading
// takes, however long that waits, and cuts the table into parts.
func (c *tableCopy) preparePlan(ctx context.Context, sql *pgx.Conn) (err error) {
	if c.cat, err = c.db.Inspect(ctx, sql, true); err != nil {
		return err
	}
	c.done.Cat = c.cat
	list, _ := copyColumns(c.cat.Columns)
	if _, err := sql.Exec(ctx, "SELECT "+strings.Join(list[:], ", ")+" FROM "+fromTable(c.db.Config(), c.cat)+" LIMIT 0"); err != nil {
		return fmt.Errorf("lock table: %w", err)
	}
	if c.Locked != nil {
		c.Locked()
	}
	if err := c.checkFilesBefore(ctx, sql); err != nil {
		return err
	}
	total, err := c.estimateRows(ctx, sql)
	if err != nil {
		return err
	}
	c.Progress.beginCopy(total)
	c.parts, err = PlanParts(ctx, sql, c.db.Config(), c.cat, c.Limits)
	for i := range c.parts {
		c.parts[i].only = c.Only
	}
	return err
}

// copyAll copies all parts, over as many connections as are worthwhile.
func (c *tableCopy) copyAll(ctx context.Context, first *pgx.Conn) error {
	parts := make(chan Part, len(c.parts))
	for _, p := range c.parts {
		parts <- p
	}
	close(parts)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return c.copyRanges(gctx, first, parts) })
	for range min(c.Limits.Connections, len(c.parts)) - 1 {
		g.Go(func() error { return c.copyWithFurther(gctx, parts) })
	}
	return g.Wait()
}

// ErrRewritten reports that the rows lie in other files than when the snapshot was
// taken. A TRUNCATE, and an ALTER TABLE that writes every row anew, ignore
// snapshots: an older snapshot sees an empty table. A partition that was attached
// since is read although it did not belong to the table.
// https://www.postgresql.org/docs/current/mvcc-caveats.html
var ErrRewritten = errors.New("the table was truncated or rewritten, or its partitions changed, after the snapshot was taken")

// checkFilesBefore returns ErrRewritten if reading is of no use. The catalogs show
// the files as of the snapshot, pg_relation_filenode the present ones. Behind the
// lock the files stay until the copy ends.
func (c *tableCopy) checkFilesBefore(ctx context.Context, sql *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, source.QueryTimeout)
	defer cancel()
	oids := make([]uint32, len(c.cat.Relations))
	for i, r := range c.cat.Relations {
		oids[i] = r.OID
	}
	var n int
	err := sql.QueryRow(ctx, `SELECT count(*) FROM pg_class WHERE oid = ANY ($1::oid[]) AND relfilenode IS DISTINCT FROM pg_relation_filenode(oid)`, oids).Scan(&n)
	switch {
	case err != nil:
		return fmt.Errorf("check files of the table: %w", err)
	case n > 0:
		return ErrRewritten
	}
	return nil
}

// checkFilesAfter returns ErrRewritten if the copied rows may not be those of the
// snapshot: partitions may have come and gone all the same. It ends the
// connection's snapshot, to read the present catalogs.
func (c *tableCopy) checkFilesAfter(ctx context.Context, sql *pgx.Conn) error {
	if _, err := sql.Exec(ctx, "ROLLBACK"); err != nil {
		return fmt.Errorf("end snapshot: %w", err)
	}
	now, err := c.db.ReadIdentity(ctx, sql, c.cat.Version)
	if err != nil {
		return err
	}
	if !source.ParseIdentity(c.cat.Source.Catalog).HasSameFiles(source.ParseIdentity(now)) {
		return ErrRewritten
	}
	return nil
}

// copyWithFurther copies parts over a further connection. If the server does not
// give one (it may have reached its limit), the copy goes on without.
func (c *tableCopy) copyWithFurther(ctx context.Context, parts <-chan Part) error {
	sql, err := c.connectAtSnapshot(ctx)
	if err == nil {
		defer source.CloseConn(sql.PgConn())
		err = c.lockTable(ctx, sql)
	}
	if err != nil {
		c.db.Config().Logger.Info("copying over fewer connections", "error", err)
		return nil
	}
	return c.copyRanges(ctx, sql, parts)
}

// lockTable takes the lock that reading takes for a further connection, on the
// table and all partitions, beginning with the table. Taken one by one with the
// parts, the locks would lead to deadlocks with a TRUNCATE or an ALTER TABLE. And
// such a statement queues behind the locks that are held, and every further reader
// behind the statement: a second connection that waited there would wait for the
// first, whose transaction ends with the last part. So lockTable does not wait.
func (c *tableCopy) lockTable(ctx context.Context, sql *pgx.Conn) error {
	if _, err := sql.Exec(ctx, "LOCK TABLE "+fromTable(c.db.Config(), c.cat)+" IN ACCESS SHARE MODE NOWAIT"); err != nil {
		return fmt.Errorf("lock table: %w", err)
	}
	return nil
}

// copyRanges copies parts over one connection until there are no more.
func (c *tableCopy) copyRanges(ctx context.Context, sql *pgx.Conn, parts <-chan Part) error {
	w := &copyWriter{to: c}
	postgres.ExpectLargeRows(sql.PgConn())
	list, integers := copyColumns(c.cat.Columns)
	for part := range parts {
		in := &pgoutput.CopyReader{Integers: integers, Pack: &w.pack, Add: w.addRow}
		query := "COPY (SELECT " + strings.Join(list[:], ", ") + part.fromClause() + ") TO STDOUT (FORMAT binary)"
		if _, err := sql.PgConn().CopyTo(ctx, in, query); err != nil {
			return err
		}
		if !in.Ended {
			return fmt.Errorf("the COPY ended early: %w", pgoutput.ErrMalformed)
		}
		if err := w.flush(); err != nil {
			return err
		}
		c.mu.Lock()
		c.done.Rows += in.Rows
		c.done.BadIDs += in.BadIDs
		c.done.Nulls += in.Nulls
		c.mu.Unlock()
	}
	return nil
}

// copyWriter collects one connection's rows for the sink.
type copyWriter struct {
	to   *tableCopy
	pack id.Packer // holds the ids of the rows
	rows []copiedRow
}

type copiedRow struct {
	row                id.RowID
	restaurant, client id.ID
}

func (w *copyWriter) addRow(row id.RowID, restaurant, client id.ID) error {
	w.rows = append(w.rows, copiedRow{row, restaurant, client})
	if len(w.rows) < copyBatch {
		return nil
	}
	return w.flush()
}

func (w *copyWriter) flush() error {
	w.to.mu.Lock()
	defer w.to.mu.Unlock()
	for i := range w.rows {
		if err := w.to.Sink.Add(w.rows[i].row, w.rows[i].restaurant, w.rows[i].client); err != nil {
			return err
		}
	}
	w.to.Progress.rows.Add(int64(len(w.rows)))
	failpoint.Hit("snapshot/copying")
	w.rows = w.rows[:0]
	w.pack.Reset()
	if w.to.Copied != nil {
		w.to.Copied()
	}
	return nil
}

// explainError turns errors that an operator has to mend into halts, and adds to
// all others how far the copy was.
func (c *tableCopy) explainError(err error) error {
	table := c.db.Config().QuotedTable()
	_, halted := errors.AsType[*source.HaltError](err)
	switch {
	case halted:
		return err
	case source.SQLState(err) == source.CodeInsufficientPrivilege:
		fix := "GRANT SELECT ON " + table + " TO " + c.db.QuotedRole()
		if strings.Contains(err.Error(), "row-level security") {
			fix = "ALTER ROLE " + c.db.QuotedRole() + " BYPASSRLS"
		}
		h := source.NewHalt(fix, "the role in source.url may not read all of %s: %v", table, err)
		h.Heals = true
		return h
	case errors.Is(err, state.ErrDuplicateRow):
		return source.NewHalt("set source.columns.id to a unique key", "key %s of %s is not unique: %v", c.db.Config().QuotedKey(), table, err)
	}
	return fmt.Errorf("copy %s: after %s: %w", table, c.Progress, err)
}

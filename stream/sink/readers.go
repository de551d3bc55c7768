package sink

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Querier runs statements: on one connection, or on one of the Readers.
type Querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Readers is a pool of connections on which all lanes of a service read. A lane
// reads little and rarely, so few connections serve many lanes. The pool connects
// when a statement needs a connection, and closes all connections with the last
// session that uses the pool.
//
// Each statement takes a free connection, and waits for one while all are in use.
// A caller must read rows to the end or close them before the same goroutine runs
// another statement, or that goroutine may wait for itself.
type Readers struct {
	cfg  Config
	name string
	free chan struct{} // a token for each connection that is in use

	mu    sync.Mutex // guards users and idle
	users int
	idle  []idleConn // the connection used last comes last
}

// idleConn is a connection that no statement uses.
type idleConn struct {
	*pgx.Conn
	since time.Time
}

// unchecked is how long a connection may lie idle before its next user checks that
// it is alive. CheckConn waits a millisecond for an error that the server may have
// sent, and each campaign looks its row up: checked every time, that was a third of
// a small campaign's latency.
const unchecked = time.Second

// NewReaders makes an empty pool; instance is part of its application_name.
func NewReaders(cfg Config, instance string) *Readers {
	return &Readers{cfg: cfg, name: "dinnerbell " + instance + " reader", free: make(chan struct{}, cfg.ReaderCount())}
}

// Open adds a user of the pool; the user must call Close.
func (r *Readers) Open() *Readers {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.users++
	return r
}

// Close takes a user off; the last one closes the idle connections.
func (r *Readers) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.users--; r.users == 0 {
		r.closeIdleLocked()
	}
}

func (r *Readers) closeIdleLocked() {
	for _, c := range r.idle {
		CloseConn(c.Conn)
	}
	r.idle = nil
}

func (r *Readers) acquireConn(ctx context.Context) (*pgx.Conn, error) {
	select {
	case r.free <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for a connection to the sink: %w", ctx.Err())
	}
	for {
		conn, since := r.takeIdleConn()
		if conn == nil {
			break
		}
		if time.Since(since) < unchecked || conn.PgConn().CheckConn() == nil { //nolint:staticcheck // Ping would cost a round trip each time; a dead connection that CheckConn misses fails in the statement
			return conn, nil
		}
		CloseConn(conn)
	}
	conn, err := r.cfg.Connect(ctx, r.name)
	if err == nil {
		if err = PlanByKeys(ctx, conn); err != nil {
			CloseConn(conn)
		}
	}
	if err != nil {
		<-r.free
		return nil, err
	}
	return conn, nil
}

func (r *Readers) takeIdleConn() (conn *pgx.Conn, since time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.idle)
	if n == 0 {
		return nil, time.Time{}
	}
	c := r.idle[n-1]
	r.idle = r.idle[:n-1]
	return c.Conn, c.since
}

// releaseConn gives a connection back to the pool. Where the connection has died, the
// idle ones are as old and are closed too.
func (r *Readers) releaseConn(conn *pgx.Conn) {
	r.mu.Lock()
	switch {
	case conn.IsClosed() || conn.PgConn().TxStatus() != 'I':
		CloseConn(conn)
		r.closeIdleLocked()
	case r.users == 0:
		CloseConn(conn)
	default:
		r.idle = append(r.idle, idleConn{conn, time.Now()})
	}
	r.mu.Unlock()
	<-r.free
}

// Exec implements querier.
func (r *Readers) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	conn, err := r.acquireConn(ctx)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	defer r.releaseConn(conn)
	return conn.Exec(ctx, sql, args...)
}

// Query implements querier.
func (r *Readers) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	conn, err := r.acquireConn(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		r.releaseConn(conn)
		return nil, err
	}
	return &releasingRows{Rows: rows, release: sync.OnceFunc(func() { r.releaseConn(conn) })}, nil
}

// QueryRow implements querier.
func (r *Readers) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	conn, err := r.acquireConn(ctx)
	if err != nil {
		return releasingRow{err: err}
	}
	return releasingRow{row: conn.QueryRow(ctx, sql, args...), release: func() { r.releaseConn(conn) }}
}

// releasingRows gives the connection back once the rows are read.
type releasingRows struct {
	pgx.Rows
	release func()
}

// Next implements pgx.Rows.
func (r *releasingRows) Next() bool {
	if r.Rows.Next() {
		return true
	}
	r.release() // the rows have closed themselves
	return false
}

// Close implements pgx.Rows.
func (r *releasingRows) Close() {
	r.Rows.Close()
	r.release()
}

type releasingRow struct {
	row     pgx.Row
	err     error
	release func()
}

// Scan implements pgx.Row.
func (r releasingRow) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	defer r.release()
	return r.row.Scan(dest...)
}

// QueryTexts runs a query for one column of text.
func QueryTexts(ctx context.Context, conn Querier, sql string, args ...any) ([]string, error) {
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

package stream

import (
	"context"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// querier runs statements: a connection, or the readers.
type querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// readers are the connections on which all lanes of a service look things up. A
// lane reads little and now and then, so few connections serve many lanes. They
// are made when they are needed and closed with the last session that uses them.
//
// Statements are independent of each other: each takes a connection that is free,
// and waits for one where all are in use. Rows must be read to the end or closed
// before the same goroutine runs another statement, or it may wait for itself.
type readers struct {
	cfg  SinkConfig
	name string
	free chan struct{} // a token for each connection that is in use

	mu    sync.Mutex // guards what follows
	users int
	idle  []*pgx.Conn // the last one used is the last
}

func newReaders(cfg SinkConfig, instance string) *readers {
	return &readers{cfg: cfg, name: "dinnerbell " + instance + " reader", free: make(chan struct{}, cfg.readers())}
}

// open counts a user; close must follow.
func (r *readers) open() *readers {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.users++
	return r
}

func (r *readers) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.users--; r.users == 0 {
		r.closeIdle()
	}
}

func (r *readers) closeIdle() {
	for _, conn := range r.idle {
		closeConn(conn)
	}
	r.idle = nil
}

func (r *readers) acquire(ctx context.Context) (*pgx.Conn, error) {
	select {
	case r.free <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for a connection to the sink: %w", ctx.Err())
	}
	for {
		conn := r.takeIdle()
		if conn == nil {
			break
		}
		if conn.PgConn().CheckConn() == nil { //nolint:staticcheck // Ping would cost a round trip each time; what this misses fails in the statement
			return conn, nil
		}
		closeConn(conn)
	}
	conn, err := r.cfg.connect(ctx, r.name)
	if err == nil {
		if err = planByKeys(ctx, conn); err != nil {
			closeConn(conn)
		}
	}
	if err != nil {
		<-r.free
		return nil, err
	}
	return conn, nil
}

func (r *readers) takeIdle() *pgx.Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.idle)
	if n == 0 {
		return nil
	}
	conn := r.idle[n-1]
	r.idle = r.idle[:n-1]
	return conn
}

// release gives a connection back. Where one has died the others are as old.
func (r *readers) release(conn *pgx.Conn) {
	r.mu.Lock()
	switch {
	case conn.IsClosed() || conn.PgConn().TxStatus() != 'I':
		closeConn(conn)
		r.closeIdle()
	case r.users == 0:
		closeConn(conn)
	default:
		r.idle = append(r.idle, conn)
	}
	r.mu.Unlock()
	<-r.free
}

// Exec implements querier.
func (r *readers) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	conn, err := r.acquire(ctx)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	defer r.release(conn)
	return conn.Exec(ctx, sql, args...)
}

// Query implements querier.
func (r *readers) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	conn, err := r.acquire(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		r.release(conn)
		return nil, err
	}
	return &readRows{Rows: rows, release: sync.OnceFunc(func() { r.release(conn) })}, nil
}

// QueryRow implements querier.
func (r *readers) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	conn, err := r.acquire(ctx)
	if err != nil {
		return readRow{err: err}
	}
	return readRow{row: conn.QueryRow(ctx, sql, args...), release: func() { r.release(conn) }}
}

// readRows gives the connection back when the rows have been read.
type readRows struct {
	pgx.Rows
	release func()
}

// Next implements pgx.Rows.
func (r *readRows) Next() bool {
	if r.Rows.Next() {
		return true
	}
	r.release() // they have closed themselves
	return false
}

// Close implements pgx.Rows.
func (r *readRows) Close() {
	r.Rows.Close()
	r.release()
}

type readRow struct {
	row     pgx.Row
	err     error
	release func()
}

// Scan implements pgx.Row.
func (r readRow) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	defer r.release()
	return r.row.Scan(dest...)
}

// texts runs a query for one column of text.
func texts(ctx context.Context, conn querier, sql string, args ...any) ([]string, error) {
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

package cdc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"dinnerbell/internal/failpoint"
	"dinnerbell/state"
)

const (
	connectTimeout = 10 * time.Second
	// queryTimeout bounds catalog queries and the barrier's: a connection that
	// does not answer in this time is given up.
	queryTimeout = 10 * time.Second
	// writeTimeout bounds one status message. They are tiny; a server that has
	// not made room for one in this time reads nothing any more.
	writeTimeout = 30 * time.Second
	// closeTimeout bounds the goodbye.
	closeTimeout = 2 * time.Second
)

// sessionSettings undo what a role or a database may have been given for its
// interactive users: a statement_timeout cuts a snapshot, an
// idle_session_timeout the barrier's connection. With synchronous_commit =
// local the barrier's own commit reaches the disk without waiting for standbys.
var sessionSettings = map[string]string{
	"client_encoding":                     "UTF8",
	"statement_timeout":                   "0",
	"lock_timeout":                        "0",
	"idle_in_transaction_session_timeout": "0",
	"idle_session_timeout":                "0", // new in 14, the oldest that is served
	"synchronous_commit":                  "local",
}

// options reads the URL again and gives a connection's options.
func (c *Config) options() (*pgx.ConnConfig, error) {
	url, err := c.URL()
	if err != nil {
		return nil, fmt.Errorf("read source URL: %w", err)
	}
	o, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("parse source URL: %w", err)
	}
	maps.Copy(o.RuntimeParams, sessionSettings)
	o.RuntimeParams["application_name"] = c.ApplicationName
	// The walsender flushes message by message, a COPY every 8 KiB; much fits into
	// one read.
	o.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		return pgproto3.NewFrontend(bufio.NewReaderSize(r, 64<<10), w)
	}
	if o.ConnectTimeout == 0 {
		o.ConnectTimeout = connectTimeout
	}
	return o, nil
}

// dialSQL opens an ordinary connection.
func (c *Config) dialSQL(ctx context.Context) (*pgx.Conn, error) {
	o, err := c.options()
	if err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, o)
	return conn, c.explain(err)
}

// dialReplication opens a connection to a walsender.
func (c *Config) dialReplication(ctx context.Context) (*pgconn.PgConn, error) {
	o, err := c.options()
	if err != nil {
		return nil, err
	}
	o.RuntimeParams["replication"] = "database"
	conn, err := pgconn.ConnectConfig(ctx, &o.Config)
	return conn, c.explain(err)
}

// explain turns what cannot get better by itself into a halt.
func (c *Config) explain(err error) error {
	switch code := sqlState(err); {
	case err == nil:
		return nil
	case code == codeInsufficientPrivilege:
		return halt("ALTER ROLE … REPLICATION", "the role in source.url lacks REPLICATION: %v", err)
	case code == codeUndefinedObject && strings.Contains(err.Error(), "idle_session_timeout"):
		return halt("upgrade Postgres to 14 or newer", "the server is older than Postgres 14")
	case code == codeProtocolViolation && strings.Contains(err.Error(), "startup parameter"):
		return viaPooler(err)
	}
	return fmt.Errorf("connect to Postgres: %w", err)
}

// viaPooler names what does not get better by trying again.
func viaPooler(err error) *HaltError {
	return halt("point source.url at Postgres itself", "source.url goes through a connection pooler, which cannot carry replication: %v", err)
}

// pooled recognises a pooler that took our settings and dropped them, by what
// Postgres says then: a replication command is no SQL to it, and statements that
// were prepared in one transaction are gone in the next.
func pooled(err error) bool {
	switch sqlState(err) {
	case codeUnknownStatement, codeDuplicateStatement:
		return true
	case codeSyntaxError:
		return errors.Is(err, errNoWalsender)
	}
	return false
}

// stream is a replication connection that sends WAL. One goroutine may call
// receive, and one other send: the two halves of a pgproto3 Frontend share
// nothing.
type stream struct {
	conn *pgconn.PgConn
}

// startStream asks for everything from lsn on. It owns conn from here.
func startStream(ctx context.Context, conn *pgconn.PgConn, cfg *Config, lsn state.LSN) (*stream, error) {
	err := pglogrepl.StartReplication(ctx, conn, cfg.Slot, pglogrepl.LSN(lsn), pglogrepl.StartReplicationOptions{
		Mode: pglogrepl.LogicalReplication,
		PluginArgs: []string{
			"proto_version '1'",
			"publication_names '" + strings.ReplaceAll(cfg.publication(), "'", "''") + "'",
			"messages 'true'",
		},
	})
	if err != nil {
		return nil, fmt.Errorf("start replication from %s: %w", lsn, err)
	}
	return &stream{conn: conn}, nil
}

// receive gives the next CopyData payload, valid until the next call. It reads
// without a context, whose watcher would cost more than the message: interrupt
// ends it.
func (s *stream) receive() ([]byte, error) {
	for {
		msg, err := s.conn.Frontend().Receive()
		if err != nil {
			return nil, fmt.Errorf("receive WAL: %w", err)
		}
		switch m := msg.(type) {
		case *pgproto3.CopyData:
			return m.Data, nil
		case *pgproto3.ErrorResponse:
			return nil, fmt.Errorf("receive WAL: %w", pgconn.ErrorResponseToPgError(m))
		case *pgproto3.CopyDone, *pgproto3.CommandComplete:
			return nil, errors.New("receive WAL: the server ended the stream")
		}
	}
}

// interrupt makes receive return, while send still works.
func (s *stream) interrupt() { _ = s.conn.Conn().SetReadDeadline(time.Unix(1, 0)) }

// send tells the server our positions. All are set: pglogrepl takes a zero for
// "as the write position", which would acknowledge what is in memory only.
func (s *stream) send(received, durable state.LSN, reply bool) error {
	if err := s.conn.Conn().SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return fmt.Errorf("send status: %w", err)
	}
	err := pglogrepl.SendStandbyStatusUpdate(context.Background(), s.conn, pglogrepl.StandbyStatusUpdate{
		WALWritePosition: pglogrepl.LSN(max(received, durable)),
		WALFlushPosition: pglogrepl.LSN(durable),
		WALApplyPosition: pglogrepl.LSN(durable),
		ReplyRequested:   reply,
	})
	if err != nil {
		return fmt.Errorf("send status: %w", err)
	}
	failpoint.Hit("acknowledge/sent")
	return nil
}

// closeConn says goodbye, so that the server frees the slot at once.
func closeConn(conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = conn.Close(ctx)
	select {
	case <-conn.CleanupDone():
	case <-ctx.Done():
	}
}

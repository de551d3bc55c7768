package replication

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"dinnerbell/cdc/pgoutput"
	"dinnerbell/cdc/source"
	"dinnerbell/internal/failpoint"
	"dinnerbell/internal/postgres"
	"dinnerbell/state/id"
)

// writeTimeout bounds one status message. The messages are tiny: a server that has
// not made room for one in this time has stopped reading.
const writeTimeout = 30 * time.Second

// Stream is a replication connection that sends WAL. One goroutine may call
// receiveData, and one other sendStatus: the two halves of a pgproto3 Frontend
// share nothing.
type Stream struct {
	conn *pgconn.PgConn
}

// Start asks for everything from lsn on. The stream owns conn from here.
func Start(ctx context.Context, conn *pgconn.PgConn, slot, publication string, lsn id.LSN) (*Stream, error) {
	err := pglogrepl.StartReplication(ctx, conn, slot, pglogrepl.LSN(lsn), pglogrepl.StartReplicationOptions{
		Mode: pglogrepl.LogicalReplication,
		PluginArgs: []string{
			"proto_version '1'",
			"publication_names '" + strings.ReplaceAll(publication, "'", "''") + "'",
			"messages 'true'",
		},
	})
	if err != nil {
		return nil, fmt.Errorf("start replication from %s: %w", lsn, err)
	}
	postgres.ExpectLargeRows(conn) // a row comes with all columns of the publication
	return &Stream{conn: conn}, nil
}

// receiveData returns the next CopyData payload, valid until the next call. It
// reads without a context, whose watcher would cost more than the message:
// Interrupt ends it.
func (s *Stream) receiveData() ([]byte, error) {
	for {
		msg, err := s.conn.Frontend().Receive()
		if err != nil {
			return nil, fmt.Errorf("receive WAL: %w", err)
		}
		switch m := msg.(type) {
		case *pgproto3.CopyData:
			return m.Data, nil
		case *pgproto3.ErrorResponse:
			return nil, &SendError{pgconn.ErrorResponseToPgError(m)}
		case *pgproto3.CopyDone, *pgproto3.CommandComplete:
			return nil, errors.New("receive WAL: the server ended the stream")
		}
	}
}

// Interrupt makes receiveData return, while sendStatus still works.
func (s *Stream) Interrupt() { _ = s.conn.Conn().SetReadDeadline(time.Unix(1, 0)) }

// sendStatus sends the positions to the server. It sets all three: pglogrepl takes
// a zero for "as the write position", which would acknowledge changes that are in
// memory only.
func (s *Stream) sendStatus(received, durable id.LSN, reply bool) error {
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

// SendError is the error of a walsender that failed to decode or to send.
type SendError struct{ Cause error }

// Error names the direction, as other failures of the stream do.
func (e *SendError) Error() string { return "receive WAL: " + e.Cause.Error() }

// Unwrap returns Postgres' error.
func (e *SendError) Unwrap() error { return e.Cause }

// ReadWALSenderTimeout reads the setting of this very walsender: a role may have
// its own. Where it is off, a walsender whose daemon vanished without a word would
// keep the slot, so this walsender gets Postgres' default.
func ReadWALSenderTimeout(ctx context.Context, repl *pgconn.PgConn) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, source.QueryTimeout)
	defer cancel()
	results, err := repl.Exec(ctx, "SELECT CASE WHEN current_setting('wal_sender_timeout') = '0' THEN set_config('wal_sender_timeout', '1min', false) ELSE current_setting('wal_sender_timeout') END").ReadAll()
	if err != nil {
		return 0, fmt.Errorf("read wal_sender_timeout: %w", err)
	}
	if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != 1 {
		return 0, fmt.Errorf("read wal_sender_timeout: %w", pgoutput.ErrMalformed)
	}
	return parseDuration(string(results[0].Rows[0][0])), nil
}

// parseDuration reads a duration as SHOW prints it: "2s", "500ms", "1min", "1h",
// "1d", "0". It takes an unknown form as a short duration, to be safe.
func parseDuration(text string) time.Duration {
	if text == "0" {
		return 0
	}
	var n int64
	var name string
	_, _ = fmt.Sscanf(text, "%d%s", &n, &name) // a text of another form leaves name without a known unit
	unit, known := map[string]time.Duration{"ms": time.Millisecond, "s": time.Second, "min": time.Minute, "h": time.Hour, "d": 24 * time.Hour}[name]
	if !known {
		return time.Second
	}
	return time.Duration(n) * unit
}

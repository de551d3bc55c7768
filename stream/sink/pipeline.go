package sink

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"dinnerbell/stream/record"
)

// Pipeline sends prepared statements and COPYs with their data to Postgres in one
// round trip, in the order in which they are added. pgx's own pipeline cannot carry
// a COPY, and a step's transaction contains one.
//
// The server works on messages in order. At the first error it skips all messages
// up to the next Sync, which Send appends: no statement behind the failed one runs,
// the COMMIT neither.
// https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-PIPELINING
type Pipeline struct {
	conn     *pgx.Conn
	Deadline time.Time
	head     []byte // messages to be sent first
	data     []byte // then this, framed as CopyData
	tail     []byte // then these
	args     pgx.ExtendedQueryBuilder
	sent     []sentStatement // without an answer so far, in order
	Err      error           // the first error; nothing is sent after it

	rowsDropped error // the server has counted fewer rows than were sent; a later error takes precedence
}

// sentStatement is a statement without an answer so far.
type sentStatement struct {
	*Statement
	expectedTag string // the command tag that the answer must carry; "": any
	columns     []any  // pointers for the columns of the answer's row; nil: not read
}

// Statement is one prepared statement; Prepare prepares it once per connection.
type Statement struct {
	Name string
	SQL  string
	// Meanings maps an SQLSTATE of this statement to the error that it stands for.
	Meanings    map[string]error
	WritesRows  bool // the user's constraints and triggers run here; rows that they refuse give ErrRowRefused
	description *pgconn.StatementDescription
}

// ExpectRows turns a statement with RETURNING into one that fails unless it has
// returned as many rows as the SQL expression want: the COMMIT can then be sent
// before anybody has seen the count.
func ExpectRows(want, sql string) string {
	return `WITH hit AS (` + sql + ` RETURNING 1) SELECT 1 / (count(*) = ` + want + `)::int4 FROM hit`
}

// expectCounts is ExpectRows for an UPDATE of campaign rows c from a set u with the
// ordinality n. It returns the counts of the changed rows too, in the order of the set: the
// columns are those of countedRows.resultColumns.
func expectCounts(sql string) string {
	return `WITH hit AS (` + sql + ` RETURNING u.n, c.notified, c.already, coalesce(c.audience, -1) AS audience) SELECT 1 / (count(*) = ` + everyRow + `)::int4,
  array_agg(notified ORDER BY n), array_agg(already ORDER BY n), array_agg(audience ORDER BY n) FROM hit`
}

// OnMiss returns the Meanings of a statement made by ExpectRows: err where the count
// differs.
func OnMiss(err error) map[string]error { return map[string]error{divisionByZero: err} }

// Prepare prepares statements on one connection.
func Prepare(ctx context.Context, conn *pgx.Conn, statements ...*Statement) error {
	for _, st := range statements {
		sd, err := conn.Prepare(ctx, st.Name, st.SQL)
		if err != nil {
			return fmt.Errorf("prepare statement %s: %w", st.Name, err)
		}
		st.description = sd
	}
	return nil
}

// NewPipeline begins a pipeline, which fails unless it is answered by the deadline.
func NewPipeline(until time.Time, conn *pgx.Conn) *Pipeline {
	return &Pipeline{conn: conn, Deadline: until}
}

// CloseOnEnd closes the connection when ctx ends, so that its pipelines fail. stop
// takes that back.
func CloseOnEnd(ctx context.Context, conn *pgx.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = conn.PgConn().Conn().Close() })
}

// Add appends a statement.
func (f *Pipeline) Add(st *Statement, args ...any) {
	if f.Err != nil {
		return
	}
	if err := f.args.Build(f.conn.TypeMap(), st.description, args); err != nil {
		f.Err = fmt.Errorf("%s: %w", st.Name, err)
		return
	}
	bind := pgproto3.Bind{PreparedStatement: st.Name, ParameterFormatCodes: f.args.ParamFormats, Parameters: f.args.ParamValues, ResultFormatCodes: f.args.ResultFormats}
	f.encodeMessage(&bind)
	f.encodeMessage(&pgproto3.Execute{})
	f.sent = append(f.sent, sentStatement{Statement: st})
}

// AddQuery appends a statement that answers with one row. Receive stores the row's columns
// in the pointers; it leaves out the columns whose pointer is nil.
func (f *Pipeline) AddQuery(st *Statement, columns []any, args ...any) {
	f.Add(st, args...)
	if f.Err == nil {
		f.sent[len(f.sent)-1].columns = columns
	}
}

// AddCommand appends a statement that must answer with this command tag.
func (f *Pipeline) AddCommand(st *Statement, tag string) {
	f.Add(st)
	if f.Err == nil {
		f.sent[len(f.sent)-1].expectedTag = tag
	}
}

// Copy appends a COPY … FROM STDIN with its data, framed as CopyData messages. The
// caller must not change frames before Receive returns. Large data is sent at once,
// so that the server works on it meanwhile.
//
// The server must count as many rows as were sent.
func (f *Pipeline) Copy(st *Statement, frames []byte, rows int) {
	f.AddCommand(st, "COPY "+strconv.Itoa(rows))
	if f.Err != nil {
		return
	}
	f.data = frames
	f.encodeMessage(&pgproto3.CopyDone{})
	if len(frames) > record.CopyFrameSize {
		f.Flush()
	}
}

// CopySmall appends a COPY whose data is not framed. It sends nothing yet.
func (f *Pipeline) CopySmall(st *Statement, data []byte) {
	f.Add(st)
	f.encodeMessage(&pgproto3.CopyData{Data: data})
	f.encodeMessage(&pgproto3.CopyDone{})
}

func (f *Pipeline) encodeMessage(msg pgproto3.FrontendMessage) {
	if f.Err != nil {
		return
	}
	if f.data == nil {
		f.head, f.Err = msg.Encode(f.head)
	} else {
		f.tail, f.Err = msg.Encode(f.tail)
	}
}

// Flush writes the messages added so far, with one system call where the connection
// has no TLS.
func (f *Pipeline) Flush() {
	if f.Err != nil {
		return
	}
	socket := f.conn.PgConn().Conn()
	parts := net.Buffers{f.head, f.data, f.tail}
	_ = socket.SetWriteDeadline(f.Deadline) // on a closed connection the write or read below fails
	if _, err := parts.WriteTo(socket); err != nil {
		f.failWith(fmt.Errorf("send: %w", err))
	}
	_ = socket.SetWriteDeadline(time.Time{}) // pgx sets time limits of its own
	f.head, f.data, f.tail = f.head[:0], nil, f.tail[:0]
}

// failWith ends the pipeline. The connection is in the middle of an exchange and
// cannot be used any more.
func (f *Pipeline) failWith(err error) { f.Err = errors.Join(f.Err, err) }

// Send appends a Sync and writes all messages.
func (f *Pipeline) Send() {
	f.encodeMessage(&pgproto3.Sync{})
	f.Flush()
}

// RoundTrip sends the pipeline and receives its answers.
func (f *Pipeline) RoundTrip() error {
	f.Send()
	return f.Receive()
}

// Receive reads all answers after Send. It returns the first error. An error of the
// server's leaves the connection usable, in a failed transaction.
func (f *Pipeline) Receive() error {
	socket := f.conn.PgConn().Conn()
	_ = socket.SetReadDeadline(f.Deadline) // on a closed connection the write or read below fails
	defer func() { _ = socket.SetReadDeadline(time.Time{}) }()
	var refused error
	for f.Err == nil {
		msg, err := f.conn.PgConn().ReceiveMessage(context.Background())
		if err != nil {
			f.failWith(fmt.Errorf("receive: %w", err))
			break
		}
		switch msg := msg.(type) {
		case *pgproto3.DataRow:
			f.storeColumns(msg)
		case *pgproto3.CommandComplete:
			f.completeStatement(msg)
		case *pgproto3.ErrorResponse:
			if refused == nil {
				refused = f.serverError(msg)
			}
		case *pgproto3.ReadyForQuery:
			if refused == nil && len(f.sent) > 0 {
				refused = fmt.Errorf("%s was not answered", f.sent[0].Name)
			}
			f.sent = f.sent[:0]
			return cmp.Or(refused, f.rowsDropped)
		}
	}
	return f.Err
}

// storeColumns stores the row of the oldest statement without an answer.
func (f *Pipeline) storeColumns(msg *pgproto3.DataRow) {
	if len(f.sent) == 0 {
		return
	}
	st, types := f.sent[0], f.conn.TypeMap()
	for i, to := range st.columns {
		if to == nil {
			continue
		}
		typ := st.description.Fields[i].DataTypeOID
		if err := types.Scan(typ, types.FormatCodeForOID(typ), msg.Values[i], to); err != nil {
			f.failWith(fmt.Errorf("%s: read its answer: %w", st.Name, err))
			return
		}
	}
}

// completeStatement checks the answer to the oldest statement without one.
func (f *Pipeline) completeStatement(msg *pgproto3.CommandComplete) {
	if len(f.sent) == 0 {
		f.failWith(fmt.Errorf("an answer too many: %s", msg.CommandTag))
		return
	}
	p := f.sent[0]
	if p.WritesRows && p.expectedTag != string(msg.CommandTag) && bytes.HasPrefix(msg.CommandTag, []byte("COPY ")) {
		f.rowsDropped = fmt.Errorf("%w: %s where %s was sent", ErrRowsDropped, msg.CommandTag, p.expectedTag)
	} else if p.expectedTag != "" && p.expectedTag != string(msg.CommandTag) {
		f.failWith(fmt.Errorf("Postgres answered %s with %s", p.Name, msg.CommandTag)) //nolint:staticcheck // a name
		return
	}
	f.sent = f.sent[1:]
}

// serverError returns the server's error about the oldest statement without an
// answer.
func (f *Pipeline) serverError(msg *pgproto3.ErrorResponse) error {
	err := pgconn.ErrorResponseToPgError(msg)
	if len(f.sent) == 0 {
		return err
	}
	st := f.sent[0].Statement
	if known := st.Meanings[err.Code]; known != nil {
		if err.Detail != "" {
			known = fmt.Errorf("%w: %s", known, err.Detail)
		}
		return fmt.Errorf("%s: %w", st.Name, known)
	}
	if st.WritesRows && RefusesRow(err) {
		return fmt.Errorf("%s: %w: %w", st.Name, ErrRowRefused, err)
	}
	if st.WritesRows {
		return fmt.Errorf("%s: %w", st.Name, WithFunction(err))
	}
	return fmt.Errorf("%s: %w", st.Name, err)
}

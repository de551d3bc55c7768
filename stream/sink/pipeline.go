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

// A flight is what travels to Postgres together, in one round trip: prepared
// statements and COPYs with their data, in the order in which they are added.
// pgx's own pipeline cannot carry a COPY, and a step is a COPY and what belongs
// to it.
//
// The server works on messages in order. At the first error it skips everything
// up to the next Sync, which depart sends, so what follows a statement that failed
// does not happen; a commit neither.
// https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-PIPELINING
type Pipeline struct {
	conn     *pgx.Conn
	Deadline time.Time
	head     []byte // messages that are not sent yet
	data     []byte // then this, framed as CopyData
	tail     []byte // then these
	args     pgx.ExtendedQueryBuilder
	sent     []sentStatement // in order, those whose answer was not read yet
	Err      error           // the first; nothing is sent after it

	rowsDropped error // the server counts fewer rows than were sent; an error behind it says more
}

// sentStatement is one statement under way.
type sentStatement struct {
	*Statement
	expectedTag string // of a command whose tag is looked at; "": any
}

// Statement is prepared once per session.
type Statement struct {
	Name string
	SQL  string
	// Meanings says which error an SQLSTATE of this statement stands for.
	Meanings    map[string]error
	WritesRows  bool // the user's constraints and triggers speak here: what they refuse is ErrRowRefused
	description *pgconn.StatementDescription
}

// ExpectRows turns a statement with RETURNING into one that fails unless it has
// returned as many rows as want says, an SQL expression: the server can then be
// told to commit before anybody has seen the count.
func ExpectRows(want, sql string) string {
	return `WITH hit AS (` + sql + ` RETURNING 1) SELECT 1 / (count(*) = ` + want + `)::int4 FROM hit`
}

// OnMiss is what a statement made by expecting stands for when it fails.
func OnMiss(err error) map[string]error { return map[string]error{divisionByZero: err} }

// Prepare readies statements for one connection.
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

// NewPipeline begins a flight, which fails if it is not over by until.
func NewPipeline(until time.Time, conn *pgx.Conn) *Pipeline {
	return &Pipeline{conn: conn, Deadline: until}
}

// CloseOnEnd closes the connection when ctx ends, so that flights on it fail. stop
// ends that.
func CloseOnEnd(ctx context.Context, conn *pgx.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = conn.PgConn().Conn().Close() })
}

// Add puts a statement on board.
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

// AddCommand is add for a statement that must answer with this command tag.
func (f *Pipeline) AddCommand(st *Statement, tag string) {
	f.Add(st)
	if f.Err == nil {
		f.sent[len(f.sent)-1].expectedTag = tag
	}
}

// Copy puts a COPY … FROM STDIN on board with its data, which is framed as
// CopyData messages and not changed before the answer is there. The data leaves
// at once if it is large, so that the server works on it meanwhile.
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

// CopySmall is copy for data that is not framed, and need not leave early.
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

// Flush writes what is on board, with one system call where the connection has
// no TLS.
func (f *Pipeline) Flush() {
	if f.Err != nil {
		return
	}
	socket := f.conn.PgConn().Conn()
	parts := net.Buffers{f.head, f.data, f.tail}
	_ = socket.SetWriteDeadline(f.Deadline) // a closed connection tells by itself
	if _, err := parts.WriteTo(socket); err != nil {
		f.failWith(fmt.Errorf("send: %w", err))
	}
	_ = socket.SetWriteDeadline(time.Time{}) // pgx sets time limits of its own
	f.head, f.data, f.tail = f.head[:0], nil, f.tail[:0]
}

// failWith ends the flight. The connection is in the middle of something: nothing
// can follow on it.
func (f *Pipeline) failWith(err error) { f.Err = errors.Join(f.Err, err) }

// Send sends everything, with a Sync behind it.
func (f *Pipeline) Send() {
	f.encodeMessage(&pgproto3.Sync{})
	f.Flush()
}

// RoundTrip is a flight there and back.
func (f *Pipeline) RoundTrip() error {
	f.Send()
	return f.Receive()
}

// Receive reads all answers after depart. It returns the first error; an error of
// the server's leaves the connection usable, in a transaction that has failed.
func (f *Pipeline) Receive() error {
	socket := f.conn.PgConn().Conn()
	_ = socket.SetReadDeadline(f.Deadline) // a closed connection tells by itself
	defer func() { _ = socket.SetReadDeadline(time.Time{}) }()
	var refused error
	for f.Err == nil {
		msg, err := f.conn.PgConn().ReceiveMessage(context.Background())
		if err != nil {
			f.failWith(fmt.Errorf("receive: %w", err))
			break
		}
		switch msg := msg.(type) {
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

// completeStatement takes the answer of the first statement that is under way.
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

// serverError is the server's error, of the first statement that is under way.
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

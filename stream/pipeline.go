package stream

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
type flight struct {
	conn  *pgx.Conn
	until time.Time
	head  []byte // messages that are not sent yet
	data  []byte // then this, framed as CopyData
	tail  []byte // then these
	args  pgx.ExtendedQueryBuilder
	sent  []passenger // in order, those whose answer was not read yet
	err   error       // the first; nothing is sent after it

	dropped error // the server counts fewer rows than were sent; an error behind it says more
}

// passenger is one statement under way.
type passenger struct {
	*statement
	tag string // of a command whose tag is looked at; "": any
}

// statement is prepared once per session.
type statement struct {
	name string
	sql  string
	// stands says which error an SQLSTATE of this statement stands for.
	stands map[string]error
	rows   bool // the user's constraints and triggers speak here: what they refuse is errRefused
	sd     *pgconn.StatementDescription
}

// expecting turns a statement with RETURNING into one that fails unless it has
// returned as many rows as want says, an SQL expression: the server can then be
// told to commit before anybody has seen the count.
func expecting(want, sql string) string {
	return `WITH hit AS (` + sql + ` RETURNING 1) SELECT 1 / (count(*) = ` + want + `)::int4 FROM hit`
}

// missed is what a statement made by expecting stands for when it fails.
func missed(err error) map[string]error { return map[string]error{divisionByZero: err} }

// prepare readies statements for one connection.
func prepare(ctx context.Context, conn *pgx.Conn, statements ...*statement) error {
	for _, st := range statements {
		sd, err := conn.Prepare(ctx, st.name, st.sql)
		if err != nil {
			return fmt.Errorf("prepare statement %s: %w", st.name, err)
		}
		st.sd = sd
	}
	return nil
}

// newFlight begins a flight, which fails if it is not over by until.
func newFlight(until time.Time, conn *pgx.Conn) *flight {
	return &flight{conn: conn, until: until}
}

// interrupt closes the connection when ctx ends, so that flights on it fail. stop
// ends that.
func interrupt(ctx context.Context, conn *pgx.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = conn.PgConn().Conn().Close() })
}

// add puts a statement on board.
func (f *flight) add(st *statement, args ...any) {
	if f.err != nil {
		return
	}
	if err := f.args.Build(f.conn.TypeMap(), st.sd, args); err != nil {
		f.err = fmt.Errorf("%s: %w", st.name, err)
		return
	}
	bind := pgproto3.Bind{PreparedStatement: st.name, ParameterFormatCodes: f.args.ParamFormats, Parameters: f.args.ParamValues, ResultFormatCodes: f.args.ResultFormats}
	f.encode(&bind)
	f.encode(&pgproto3.Execute{})
	f.sent = append(f.sent, passenger{statement: st})
}

// addCommand is add for a statement that must answer with this command tag.
func (f *flight) addCommand(st *statement, tag string) {
	f.add(st)
	if f.err == nil {
		f.sent[len(f.sent)-1].tag = tag
	}
}

// copy puts a COPY … FROM STDIN on board with its data, which is framed as
// CopyData messages and not changed before the answer is there. The data leaves
// at once if it is large, so that the server works on it meanwhile.
//
// The server must count as many rows as were sent.
func (f *flight) copy(st *statement, frames []byte, rows int) {
	f.addCommand(st, "COPY "+strconv.Itoa(rows))
	if f.err != nil {
		return
	}
	f.data = frames
	f.encode(&pgproto3.CopyDone{})
	if len(frames) > record.CopyFrameSize {
		f.flush()
	}
}

// copySmall is copy for data that is not framed, and need not leave early.
func (f *flight) copySmall(st *statement, data []byte) {
	f.add(st)
	f.encode(&pgproto3.CopyData{Data: data})
	f.encode(&pgproto3.CopyDone{})
}

func (f *flight) encode(msg pgproto3.FrontendMessage) {
	if f.err != nil {
		return
	}
	if f.data == nil {
		f.head, f.err = msg.Encode(f.head)
	} else {
		f.tail, f.err = msg.Encode(f.tail)
	}
}

// flush writes what is on board, with one system call where the connection has
// no TLS.
func (f *flight) flush() {
	if f.err != nil {
		return
	}
	socket := f.conn.PgConn().Conn()
	parts := net.Buffers{f.head, f.data, f.tail}
	_ = socket.SetWriteDeadline(f.until) // a closed connection tells by itself
	if _, err := parts.WriteTo(socket); err != nil {
		f.fail(fmt.Errorf("send: %w", err))
	}
	_ = socket.SetWriteDeadline(time.Time{}) // pgx sets time limits of its own
	f.head, f.data, f.tail = f.head[:0], nil, f.tail[:0]
}

// fail ends the flight. The connection is in the middle of something: nothing
// can follow on it.
func (f *flight) fail(err error) { f.err = errors.Join(f.err, err) }

// depart sends everything, with a Sync behind it.
func (f *flight) depart() {
	f.encode(&pgproto3.Sync{})
	f.flush()
}

// trip is a flight there and back.
func (f *flight) trip() error {
	f.depart()
	return f.arrive()
}

// arrive reads all answers after depart. It returns the first error; an error of
// the server's leaves the connection usable, in a transaction that has failed.
func (f *flight) arrive() error {
	socket := f.conn.PgConn().Conn()
	_ = socket.SetReadDeadline(f.until) // a closed connection tells by itself
	defer func() { _ = socket.SetReadDeadline(time.Time{}) }()
	var refused error
	for f.err == nil {
		msg, err := f.conn.PgConn().ReceiveMessage(context.Background())
		if err != nil {
			f.fail(fmt.Errorf("receive: %w", err))
			break
		}
		switch msg := msg.(type) {
		case *pgproto3.CommandComplete:
			f.landed(msg)
		case *pgproto3.ErrorResponse:
			if refused == nil {
				refused = f.refusal(msg)
			}
		case *pgproto3.ReadyForQuery:
			if refused == nil && len(f.sent) > 0 {
				refused = fmt.Errorf("%s was not answered", f.sent[0].name)
			}
			f.sent = f.sent[:0]
			return cmp.Or(refused, f.dropped)
		}
	}
	return f.err
}

// landed takes the answer of the first statement that is under way.
func (f *flight) landed(msg *pgproto3.CommandComplete) {
	if len(f.sent) == 0 {
		f.fail(fmt.Errorf("an answer too many: %s", msg.CommandTag))
		return
	}
	p := f.sent[0]
	if p.rows && p.tag != string(msg.CommandTag) && bytes.HasPrefix(msg.CommandTag, []byte("COPY ")) {
		f.dropped = fmt.Errorf("%w: %s where %s was sent", errDropped, msg.CommandTag, p.tag)
	} else if p.tag != "" && p.tag != string(msg.CommandTag) {
		f.fail(fmt.Errorf("Postgres answered %s with %s", p.name, msg.CommandTag)) //nolint:staticcheck // a name
		return
	}
	f.sent = f.sent[1:]
}

// refusal is the server's error, of the first statement that is under way.
func (f *flight) refusal(msg *pgproto3.ErrorResponse) error {
	err := pgconn.ErrorResponseToPgError(msg)
	if len(f.sent) == 0 {
		return err
	}
	st := f.sent[0].statement
	if known := st.stands[err.Code]; known != nil {
		if err.Detail != "" {
			known = fmt.Errorf("%w: %s", known, err.Detail)
		}
		return fmt.Errorf("%s: %w", st.name, known)
	}
	if st.rows && refuses(err) {
		return fmt.Errorf("%s: %w: %w", st.name, errRefused, err)
	}
	if st.rows {
		return fmt.Errorf("%s: %w", st.name, withFunction(err))
	}
	return fmt.Errorf("%s: %w", st.name, err)
}

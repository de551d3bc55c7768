package replication

import (
	"fmt"

	"github.com/jackc/pglogrepl"

	"dinnerbell/cdc/pgoutput"
	"dinnerbell/state/id"
)

// Reader reads a Stream: it decodes the messages and puts them together to
// pieces of transactions. It has one owner.
type Reader struct {
	in     *Stream
	asm    *pgoutput.Assembler
	status *StatusSender
}

// Event is the content of one message. Most messages of a transaction have none.
type Event struct {
	Piece    pgoutput.Piece
	HasPiece bool
	// WALEnd is a position: everything that committed up to it has been sent; 0:
	// the message has no position.
	WALEnd id.LSN
	// Reply: the server asks for an answer at once.
	Reply bool
}

// NewReader returns a reader of in. It counts the messages in status.
func NewReader(in *Stream, asm *pgoutput.Assembler, status *StatusSender) *Reader {
	return &Reader{in: in, asm: asm, status: status}
}

// Next waits for the next message. It returns an error when the stream ends or is
// interrupted. The changes of the event are valid until the next call.
func (r *Reader) Next() (Event, error) {
	r.status.waiting.Store(true)
	data, err := r.in.receiveData()
	r.status.waiting.Store(false)
	if err != nil {
		return Event{}, err
	}
	r.status.messages.Add(1)
	return r.decode(data)
}

// decode reads one CopyData payload of the streaming replication protocol.
// https://www.postgresql.org/docs/current/protocol-replication.html
func (r *Reader) decode(data []byte) (Event, error) {
	msg, err := parseMessage(data)
	if err != nil {
		return Event{}, err
	}
	if msg.wal == nil {
		ev := Event{Reply: msg.reply}
		if !r.asm.InTransaction() { // in the middle of a transaction the position is of no use
			ev.WALEnd = msg.end
		}
		return ev, nil
	}
	var ev Event
	ev.Piece, ev.HasPiece, err = r.asm.Add(msg.wal)
	return ev, err
}

// SkippedIDs returns how many client and restaurant ids cannot be ids, and how many
// are NULL, among all that were read.
func (r *Reader) SkippedIDs() (bad, null int64) { return r.asm.SkippedIDs() }

// IsPast reports whether the stream is in the middle of a transaction whose commit
// record does not start before target. Transactions come in the order of their
// commits.
func (r *Reader) IsPast(target id.LSN) bool {
	return r.asm.InTransaction() && r.asm.CommitLSN >= target
}

// walMessage is a message of a streaming server: WAL data, or a keepalive with the
// position up to which it has sent.
type walMessage struct {
	wal   []byte // nil: a keepalive
	end   id.LSN
	reply bool // the server asks for an answer at once
}

// parseMessage reads one CopyData payload; wal is a view of it.
func parseMessage(data []byte) (walMessage, error) {
	if len(data) == 0 {
		return walMessage{}, fmt.Errorf("read empty CopyData: %w", pgoutput.ErrMalformed)
	}
	switch data[0] {
	case pglogrepl.XLogDataByteID:
		x, err := pglogrepl.ParseXLogData(data[1:])
		if err != nil {
			return walMessage{}, fmt.Errorf("read WAL data: %w", err)
		}
		return walMessage{wal: x.WALData}, nil
	case pglogrepl.PrimaryKeepaliveMessageByteID:
		k, err := pglogrepl.ParsePrimaryKeepaliveMessage(data[1:])
		if err != nil {
			return walMessage{}, fmt.Errorf("read keepalive: %w", err)
		}
		return walMessage{end: id.LSN(k.ServerWALEnd), reply: k.ReplyRequested}, nil
	}
	return walMessage{}, fmt.Errorf("read CopyData %q: %w", data[0], pgoutput.ErrMalformed)
}

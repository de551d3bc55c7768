package pgoutput

import (
	"fmt"
	"time"
	"unsafe"

	"dinnerbell/state/id"
)

// A transaction that takes more memory is handed out in parts.
const (
	MaxPartChanges = 8192
	maxPartBytes   = 4 << 20
)

// Piece is a whole transaction, or a part of a large one: then Partial is set in
// all of its pieces, and End is zero in all but the last.
type Piece struct {
	Changes []id.Change // valid until the next Add
	Bytes   int         // memory that changes take, roughly
	End     id.LSN
	Partial bool
	// CommitTime is the time of the commit, by the server's clock, where End is set.
	CommitTime time.Time
}

// epoch is the begin of Postgres' time, 2000-01-01, in microseconds of Unix time.
const epoch = 946_684_800_000_000

// txState is the state of the stream between the Begin and the Commit of a
// transaction.
type txState uint8

const (
	outsideTransaction txState = iota
	wholeTransaction           // no part of the transaction was handed out yet
	partialTransaction         // a part of the transaction was handed out
	skippedTransaction         // the transaction was applied before
)

// Assembler puts messages together to transactions. It is as pure as the decoder.
//
// It skips whole transactions that are already in the local state: those whose
// commit record starts before from, the end LSN of the last one applied. It never
// looks at the LSN of a row: a change's own LSN lies before that of commits which
// were sent earlier.
type Assembler struct {
	dec  messageDecoder
	from id.LSN

	tx txState
	// CommitLSN is where the commit record of the transaction begun last starts.
	CommitLSN id.LSN

	changes []id.Change // of the transaction, since the last part
	bytes   int         // the memory that changes take
}

// NewAssembler returns an assembler for a table and its needed columns, in the
// order of the columns' constants. It skips the transactions that ended up to from.
func NewAssembler(table uint32, columns []string, from id.LSN) *Assembler {
	return &Assembler{dec: newMessageDecoder(table, columns), from: from}
}

// InTransaction reports whether a Begin has come whose Commit has not.
func (a *Assembler) InTransaction() bool { return a.tx != outsideTransaction }

// SkippedIDs returns how many client and restaurant ids cannot be ids, and how many
// are NULL, among all that were read.
func (a *Assembler) SkippedIDs() (bad, null int64) { return a.dec.badIDs, a.dec.nulls }

// Add decodes a message; with ok, p is to be applied.
func (a *Assembler) Add(msg []byte) (p Piece, ok bool, err error) {
	var ev messageEvent
	before := len(a.changes)
	a.changes, ev, err = a.dec.decodeMessage(msg, a.changes)
	if err != nil {
		return Piece{}, false, err
	}
	switch ev.kind {
	case kindBegin:
		if a.InTransaction() {
			return Piece{}, false, fmt.Errorf("begin inside a transaction: %w", ErrMalformed)
		}
		a.tx, a.CommitLSN = wholeTransaction, ev.lsn
		if ev.lsn < a.from {
			a.tx = skippedTransaction
		}
	case kindChange:
		if !a.InTransaction() {
			return Piece{}, false, fmt.Errorf("change outside of a transaction: %w", ErrMalformed)
		}
		if a.tx == skippedTransaction {
			a.changes = a.changes[:before]
			break
		}
		a.bytes += changeMemory(&a.changes[before])
		if len(a.changes) >= MaxPartChanges || a.bytes >= maxPartBytes {
			a.tx = partialTransaction
			return a.takePiece(0), true, nil
		}
	case kindCommit:
		if !a.InTransaction() {
			return Piece{}, false, fmt.Errorf("commit outside of a transaction: %w", ErrMalformed)
		}
		if a.tx != skippedTransaction {
			p, ok = a.takePiece(ev.lsn), true
			p.CommitTime = time.UnixMicro(epoch + ev.at)
		}
		a.tx = outsideTransaction
		return p, ok, nil
	case kindOther: // no change
	}
	return Piece{}, false, nil
}

// takePiece hands out the collected changes. It uses the slice again: the queue
// copies it, which costs less than a new slice per transaction.
func (a *Assembler) takePiece(end id.LSN) Piece {
	p := Piece{Changes: a.changes, Bytes: a.bytes, End: end, Partial: a.tx == partialTransaction}
	a.changes, a.bytes = a.changes[:0], 0
	return p
}

// changeMemory is the memory that a change takes.
func changeMemory(c *id.Change) int {
	return int(unsafe.Sizeof(*c)) + len(c.Row) + len(c.OldRow) + len(c.Restaurant) + len(c.Client)
}

package state

import (
	"encoding/json"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"dinnerbell/state/id"
)

// Batch is any number of whole source transactions, or one part of a
// transaction that is too large to be held at once.
type Batch struct {
	Changes []id.Change
	// End is the end LSN of the last whole transaction in the batch. There may
	// be no changes: then it is a position the server told in a keepalive.
	// Zero: a part; the transaction goes on in the next batch.
	End id.LSN
}

// Source says which table of which server the state mirrors, through what. A
// position means nothing without it.
type Source struct {
	SystemID string `json:"system_id"`
	Timeline int64  `json:"timeline"`
	// History tells where the timelines before this one ended. Two standbys that
	// were promoted apart have one number and two histories.
	History        string `json:"history,omitempty"`
	Database       string `json:"database"`
	Slot           string `json:"slot"`
	Publication    string `json:"publication"`
	PublicationOID uint32 `json:"publication_oid"`
	Schema         string `json:"schema"`
	Table          string `json:"table"`
	TableOID       uint32 `json:"table_oid"`
	// Catalog changes with anything else that lets the stream and the store part
	// company: columns and types, the versions of the publication's catalog rows.
	Catalog string `json:"catalog"`
}

// Apply makes a batch visible to readers, as one write. It is durable only
// after [Store.Sync]. Applying the same transactions again from an earlier
// point gives the same rows: every change reads the row it replaces, so both
// indexes agree whatever comes.
//
// A transaction may come in parts: batches with End zero, then one with its
// end LSN, perhaps without changes; nothing may come between them. Until the
// last, readers see the state before the first. After a break in the middle,
// call [Store.Rewind] and send the transaction from its start.
//
// A batch of whole transactions that ends at or before [Store.EndLSN] does nothing.
func (s *Store) Apply(b *Batch) error {
	done, err := s.acquire()
	if err != nil {
		return err
	}
	defer done()
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if skip, err := s.isAppliedLocked(b); skip || err != nil {
		return err
	}
	if err := s.disk.checkBatch(b); err != nil {
		return err
	}
	if err := s.changes.collectChanges(changeTarget{s.db, s.written.gen, s.tx.isRepeated()}, b.Changes); err != nil {
		return s.checkDamage(err)
	}
	if s.touched != nil {
		s.touched.addChanges(&s.changes)
	}
	return s.checkDamage(s.commitChangesLocked(b.End))
}

// isAppliedLocked reports whether b holds nothing new: the store has applied it, or
// it is a position without changes while a torn transaction has still to come
// again.
func (s *Store) isAppliedLocked(b *Batch) (bool, error) {
	if len(b.Changes) == 0 && (s.tx == tornTransaction || s.tx == outsideTransaction && b.End == 0) {
		return true, nil
	}
	if b.End == 0 || b.End > s.written.end {
		return false, nil
	}
	if s.tx.InTransaction() {
		return false, fmt.Errorf("apply up to %s at %s: %w", b.End, s.written.end, ErrBehind)
	}
	return true, nil
}

// Rewind tells that the stream begins again at [Store.EndLSN]: if parts of a
// transaction were applied, it comes again from its first. Readers keep seeing
// the state before it.
func (s *Store) Rewind() {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	s.tx = s.tx.rewound()
}

// commitChangesLocked writes the collected changes and the position, and shows them to
// readers if end is one.
func (s *Store) commitChangesLocked(end id.LSN) error {
	next := s.written
	next.torn = end == 0
	if end != 0 {
		next.end = end
	}
	batch := s.db.NewBatch()
	defer batch.Close()
	if err := s.changes.writeTo(batch, &next); err != nil {
		return fmt.Errorf("collect batch: %w", err)
	}
	if err := batch.Set(keyState, next.encodeRecord(), nil); err != nil {
		return fmt.Errorf("collect batch: %w", err)
	}
	if end == 0 {
		s.beginPartLocked()
	}
	if err := batch.Commit(pebble.NoSync); err != nil {
		return fmt.Errorf("commit batch: %w", err)
	}
	s.written = next
	if end == 0 {
		return nil
	}
	s.tx = outsideTransaction
	return s.showRecord(next)
}

// beginPartLocked keeps readers at the present state, from the first part of a
// transaction on.
func (s *Store) beginPartLocked() {
	if s.tx.holdsReaders() {
		return
	}
	before := s.db.NewSnapshot()
	s.mu.Lock()
	s.view.beforeTransaction = before
	s.mu.Unlock()
	s.tx = s.tx.withPart()
}

// showRecord lets readers see what r says is written.
func (s *Store) showRecord(r stateRecord) error {
	s.mu.Lock()
	before := s.view.beforeTransaction
	s.view.beforeTransaction, s.view.stateRecord = nil, r
	s.mu.Unlock()
	if before == nil {
		return nil
	}
	// Iterators that were made from the snapshot hold their own files.
	return before.Close()
}

// Sync makes everything durable that was applied before the call, and returns
// the end LSN that is durable then. It does nothing when nothing is new.
func (s *Store) Sync() (id.LSN, error) {
	done, err := s.acquire()
	if err != nil {
		return 0, err
	}
	defer done()
	v := s.currentView()
	if v.end == v.durable {
		return v.durable, nil
	}
	// Pebble's log is one sequence: when this record is on disk, so is all before.
	if err := s.db.LogData(nil, pebble.Sync); err != nil {
		return v.durable, fmt.Errorf("sync state: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.view.gen == v.gen { // else a load took over, with a position of its own
		s.view.durable = max(s.view.durable, v.end)
	}
	return s.view.durable, nil
}

// Follow notes, durably, that the rows are those of src from here on: the same
// table under another name of its history, such as the timeline of a promoted
// standby. The caller knows that both sources agree up to [Store.EndLSN].
//
// It is refused with [ErrTorn] while a transaction lies there in parts, or may
// come again: whether src has that one is not known.
func (s *Store) Follow(src Source) error {
	done, err := s.acquire()
	if err != nil {
		return err
	}
	defer done()
	text, err := json.Marshal(src)
	if err != nil {
		return fmt.Errorf("encode source: %w", err)
	}
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if s.tx.InTransaction() || !s.currentView().loaded {
		return fmt.Errorf("follow another source at %s: %w", s.written.end, ErrTorn)
	}
	if err := s.db.Set(keySource, text, pebble.Sync); err != nil {
		return s.checkDamage(fmt.Errorf("write source: %w", err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.view.src, s.view.durable = src, s.view.end // the write took along all before it
	return nil
}

// txState says how the stored rows stand to the transactions of the source. Only
// a transaction that is too large for one batch is ever applied in parts.
type txState uint8

const (
	// outsideTransaction: the rows are those of a whole transaction's end.
	outsideTransaction txState = iota
	// insideTransaction: this process applied parts of a transaction and not yet its
	// end. view.before is set: readers see the rows before it.
	insideTransaction
	// repeatedTransaction: the transaction comes again from its first part, over
	// parts of it that were applied before. view.before is set.
	repeatedTransaction
	// tornTransaction: a crash came between the parts of a transaction, which will
	// come again. Readers see its first parts: nothing remembers the rows before it.
	tornTransaction
)

// InTransaction reports whether parts of a transaction are in the store and its
// end is not. The state record says the same (record.torn).
func (t txState) InTransaction() bool { return t != outsideTransaction }

// isRepeated reports whether the next change may have been applied before.
func (t txState) isRepeated() bool { return t == repeatedTransaction || t == tornTransaction }

// holdsReaders reports whether readers are kept at the rows before the transaction.
func (t txState) holdsReaders() bool { return t == insideTransaction || t == repeatedTransaction }

// withPart returns the state once a part was applied and readers are held.
func (t txState) withPart() txState {
	switch t {
	case outsideTransaction:
		return insideTransaction
	case tornTransaction:
		return repeatedTransaction
	default:
		return t
	}
}

// rewound returns the state once the stream begins again at the last whole
// transaction.
func (t txState) rewound() txState {
	if t == insideTransaction {
		return repeatedTransaction
	}
	return t
}

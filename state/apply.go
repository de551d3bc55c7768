package state

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2"

	"dinnerbell/state/id"
)

// Batch is any number of whole source transactions, or one part of a
// transaction that is too large to be held at once.
type Batch struct {
	Changes []id.Change
	// End is the end LSN of the last whole transaction in the batch. In a batch
	// without changes it is a position that the server sent in a keepalive. Zero: the
	// batch is a part of a transaction, which goes on in the next batch.
	End id.LSN
	// Transactions divide the changes, for the subscription log; the last one ends at
	// End. nil: they are of one transaction whose commit time is not known.
	Transactions []TransactionEnd
}

// TransactionEnd is the end of a transaction in a batch. If the transaction is too large
// for one batch, the batch with its last part has it.
type TransactionEnd struct {
	Changes int       // number of its changes in the batch
	End     id.LSN    // where its commit record ends
	Time    time.Time // of the commit, by the clock of the source
}

// Source names the table that the state mirrors: its server and its table, the slot
// and the publication. A position means nothing without it.
type Source struct {
	SystemID string `json:"system_id"`
	Timeline int64  `json:"timeline"`
	// History lists where the timelines before this one ended. Two standbys that were
	// promoted independently have the same timeline number and different histories.
	History        string `json:"history,omitempty"`
	Database       string `json:"database"`
	Slot           string `json:"slot"`
	Publication    string `json:"publication"`
	PublicationOID uint32 `json:"publication_oid"`
	Schema         string `json:"schema"`
	Table          string `json:"table"`
	TableOID       uint32 `json:"table_oid"`
	// Catalog changes with everything else that makes the stream and the store
	// disagree: columns and types, the versions of the publication's catalog rows.
	Catalog string `json:"catalog"`
}

// TimelineID names the stream in which positions count: two sources with the same id
// agree about every LSN.
func (s *Source) TimelineID() string {
	return fmt.Sprintf("%s/%d/%016x", s.SystemID, s.Timeline, xxhash.Sum64String(s.History))
}

// Apply makes a batch visible to readers, as one write. The batch is durable only
// after [Store.Sync]. To apply the same transactions again from an earlier point
// gives the same rows: every change reads the row that it replaces, so that both
// indexes always agree.
//
// A transaction may come in parts: batches with End zero, then one with its end
// LSN, perhaps without changes. No other batch may come between them. Until the last
// part, readers see the state before the first. After a break in the middle, call
// [Store.Rewind] and send the transaction from its start.
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
	if err := s.collectBatch(b); err != nil {
		return s.checkDamage(err)
	}
	if s.touched != nil {
		s.touched.addChanges(&s.changes)
	}
	return s.checkDamage(s.commitChangesLocked(b.End))
}

// collectBatch collects the effects of the changes and, if there is a log, its entries.
func (s *Store) collectBatch(b *Batch) error {
	target := changeTarget{db: s.db, gen: s.written.gen, repeated: s.tx.isRepeated()}
	if !s.logw.isOn() {
		return s.changes.collectChanges(target, b.Changes)
	}
	log := &s.logw.build
	log.reset(s.written.end, len(b.Transactions) <= 1)
	target.log = log
	return s.changes.collectTransactions(target, b, s.logw.parts > 0)
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

// Rewind notes that the stream begins again at [Store.EndLSN]: a transaction of which
// parts were applied comes again from its first part. Readers still see the state
// before the transaction.
func (s *Store) Rewind() {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	s.tx = s.tx.rewound()
}

// commitChangesLocked writes the collected changes with the position end and shows
// them to readers. With end zero, the changes are a part, which readers do not see.
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
	if s.logw.isOn() {
		if err := s.logw.addBatch(batch, s.written, next, end, s.o.now().Unix()); err != nil {
			return fmt.Errorf("collect log: %w", err)
		}
		if s.logw.next.rec.floor != s.logw.rec.floor {
			s.showLogFloor()
		}
	}
	if end == 0 {
		s.beginPartLocked()
	}
	if err := batch.Commit(pebble.NoSync); err != nil {
		s.logw.forgetTail()
		return fmt.Errorf("commit batch: %w", err)
	}
	s.written, s.logw.logState = next, s.logw.next
	if end == 0 {
		return nil
	}
	s.tx = outsideTransaction
	return s.showRecord(next)
}

// beginPartLocked keeps readers at the state before the first part of a transaction.
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

// showRecord lets readers see the rows and the position of r.
func (s *Store) showRecord(r stateRecord) error {
	s.mu.Lock()
	before := s.view.beforeTransaction
	s.view.beforeTransaction, s.view.stateRecord = nil, r
	s.view.logLast = s.logw.last
	s.mu.Unlock()
	s.notifyWatchers()
	if before == nil {
		return nil
	}
	// Iterators that were made from the snapshot hold their own files.
	return before.Close()
}

// Sync makes durable what was applied before the call, and returns the end LSN that
// is durable then. It does nothing when nothing is new.
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
	if s.view.gen == v.gen { // else a load took over, with its own position
		s.view.durable = max(s.view.durable, v.end)
	}
	return s.view.durable, nil
}

// Follow records durably that the rows mirror src from here on: the same table with
// a new history, for example on the timeline of a promoted standby. The caller knows
// that both sources agree up to [Store.EndLSN].
//
// Follow returns [ErrTorn] while parts of a transaction are in the store, or while a
// transaction may come again: nobody knows whether src has that transaction.
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
	s.view.src, s.view.durable = src, s.view.end // earlier writes lie before this one in the log
	return nil
}

// txState is where the stored rows stand between the begin and the end of a
// transaction of the source. Only a transaction that is too large for one batch is
// ever applied in parts.
type txState uint8

const (
	// outsideTransaction: the rows are those at the end of a transaction.
	outsideTransaction txState = iota
	// insideTransaction: this process applied parts of a transaction and not yet its
	// end. view.before is set: readers see the rows before it.
	insideTransaction
	// repeatedTransaction: the transaction comes again from its first part, over
	// parts of it that were applied before. view.before is set.
	repeatedTransaction
	// tornTransaction: a crash came between the parts of a transaction, which will
	// come again. Readers see its first parts: the rows before it are lost.
	tornTransaction
)

// InTransaction reports whether parts of a transaction are in the store and its end
// is not. On disk the state record has the same bit (stateRecord.torn).
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

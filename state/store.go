// Package state is dinnerbell's durable local store: the subscriptions as of one position
// of the Postgres log, in the order in which the join reads them, and a cache of delivered
// pairs. Package cdc writes it, package stream reads it, and it can always be rebuilt.
package state

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"dinnerbell/state/id"
)

// Store is an open state directory. All methods may be called from any
// goroutine. Writers take turns; readers never wait for them, nor for the disk.
type Store struct {
	dir         string
	o           Options
	log         *slog.Logger
	lock        io.Closer
	instance    string
	db          *pebble.DB
	pebbleOpts  *pebbleOptions
	checkpoints checkpoints
	aside       AsideStore // the store that Open set aside
	damage      damageReport
	disk        diskReserve

	// closeMu: every call holds it shared and Close holds it exclusively, because a call
	// on a closed Pebble panics.
	closeMu sync.RWMutex
	closed  bool

	// writeMu makes writers take turns and guards the fields below.
	writeMu sync.Mutex
	// written is the state record as it stands in the store. While a
	// transaction is applied in parts it is ahead of view.record.
	written stateRecord
	tx      txState
	changes changeSet
	logw    logWriter
	nextGen uint32
	loading bool
	// touched collects the rows that are changed, for [Frozen.Mend]; nil while nothing
	// is frozen.
	touched *touchedRows

	// mu guards view.
	mu   sync.RWMutex
	view readerView

	// watchMu guards the channels of WatchApplied.
	watchMu  sync.Mutex
	watchers []chan struct{}
}

// readerView is the state that readers see, that of a whole transaction.
type readerView struct {
	stateRecord
	// durable is the end LSN that is certain to survive a crash.
	durable id.LSN
	src     Source
	loaded  bool
	// logFloor, logSince and logHistory are where the subscription log begins, see
	// logRecord.
	logFloor   id.LSN
	logSince   int64
	logHistory uint64
	// logLast is the end of the last transaction that has entries, or a later position.
	logLast id.LSN
	// beforeTransaction is the store before the first part of the transaction that is
	// being applied in parts; nil while none is.
	beforeTransaction *pebble.Snapshot
}

// rowReaderLocked returns the reader of the view's rows. The caller holds s.mu.
func (s *Store) rowReaderLocked() pebble.Reader {
	if s.view.beforeTransaction != nil {
		return s.view.beforeTransaction
	}
	return s.db
}

// acquire admits a call to the open store. The caller calls done at its end; done is nil
// with an error.
func (s *Store) acquire() (done func(), err error) {
	s.closeMu.RLock()
	if s.closed {
		s.closeMu.RUnlock()
		return nil, ErrClosed
	}
	return s.closeMu.RUnlock, nil
}

// Close closes the store and releases the directory. Close scans and loaders before.
// Batches that were applied but not synced are kept as well.
func (s *Store) Close() error {
	s.closeMu.Lock()
	defer s.closeMu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	var errs []error
	if s.view.beforeTransaction != nil {
		errs = append(errs, s.view.beforeTransaction.Close())
		s.view.beforeTransaction = nil
	}
	errs = append(errs, s.db.Close(), s.lock.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close state: %w", err)
	}
	return nil
}

func (s *Store) currentView() readerView {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.view
}

// Instance returns the id of this state directory: random, and the same at each Open. A
// copied or cloned directory gets a new id at its first Open, so that no two directories
// in use have the same id. An object that bears the id, in Postgres for example, and was
// not made by this process, was left behind by an earlier process.
func (s *Store) Instance() string { return s.instance }

// Source returns the source that the state mirrors; ok is false until a first load was
// finished. Until then, rows and positions mean nothing.
func (s *Store) Source() (src Source, ok bool) {
	v := s.currentView()
	return v.src, v.loaded
}

// Disk returns how much room there is; false where the file system does not report it.
func (s *Store) Disk() (Disk, bool) { return s.disk.measureDisk() }

// Size returns the bytes of the store's files, without those that only checkpoints hold; 0
// for a closed store.
func (s *Store) Size() int64 {
	done, err := s.acquire()
	if err != nil {
		return 0
	}
	defer done()
	return int64(s.db.Metrics().DiskSpaceUsage())
}

// EndLSN returns the end of the last transaction that readers see. A crash may set it
// back to [Store.DurableLSN]; a load that began earlier may set it back too.
func (s *Store) EndLSN() id.LSN { return s.currentView().end }

// DurableLSN returns the end LSN up to which everything is on disk and may be
// acknowledged to Postgres.
func (s *Store) DurableLSN() id.LSN { return s.currentView().durable }

// Subscriptions returns the number of rows with both ids, duplicates included.
func (s *Store) Subscriptions() int64 { return s.currentView().rows }

// Torn reports whether a crash came between the parts of a transaction, so that readers
// see half of it. The state ends with the Apply that ends the transaction, which Postgres
// sends again from [Store.EndLSN].
func (s *Store) Torn() bool { return s.currentView().torn }

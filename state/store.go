// Package state is dinnerbell's durable local store: the subscriptions as of one
// position of the Postgres log, in the order in which the join reads them, and
// a cache of what was already delivered. It is written by package cdc, read by
// package stream, and can always be rebuilt.
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
	aside       AsideStore // what Open set aside
	damage      damageReport
	disk        diskReserve

	// closeMu is held shared by every call and exclusively by Close, so that none
	// meets a closed Pebble, which panics.
	closeMu sync.RWMutex
	closed  bool

	// writeMu makes writers take turns and guards what follows.
	writeMu sync.Mutex
	// written is the state record as it stands in the store. While a
	// transaction is applied in parts it is ahead of view.record.
	written stateRecord
	tx      txState
	changes changeSet
	nextGen uint32
	loading bool
	// touched takes note of what is applied, for [Frozen.Mend]; nil: for nobody.
	touched *touchedRows

	// mu guards what readers see.
	mu   sync.RWMutex
	view readerView
}

// readerView is what readers see: one whole-transaction state.
type readerView struct {
	stateRecord
	// durable is the end LSN that is certain to survive a crash.
	durable id.LSN
	src     Source
	loaded  bool
	// beforeTransaction is the store as it was before the first part of the transaction
	// that is being applied; nil when none is.
	beforeTransaction *pebble.Snapshot
}

// rowReaderLocked is where the view's rows are read.
func (s *Store) rowReaderLocked() pebble.Reader {
	if s.view.beforeTransaction != nil {
		return s.view.beforeTransaction
	}
	return s.db
}

// acquire admits a call. done must be called at its end; it is nil with an error.
func (s *Store) acquire() (done func(), err error) {
	s.closeMu.RLock()
	if s.closed {
		s.closeMu.RUnlock()
		return nil, ErrClosed
	}
	return s.closeMu.RUnlock, nil
}

// Close releases the directory. Scans and loaders must have been closed. What
// was applied but not synced is kept as well.
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

// Instance returns the id of this state directory: random, and the same at each
// Open. A directory that was copied or cloned gets an id of its own at its first
// Open, so no two directories in use have the same: whatever bears the id, in
// Postgres say, and is not of this process, was left by a process that is gone.
func (s *Store) Instance() string { return s.instance }

// Source tells what the state mirrors; ok is false until a first load has been
// finished. Without one the rows and positions mean nothing.
func (s *Store) Source() (src Source, ok bool) {
	v := s.currentView()
	return v.src, v.loaded
}

// Disk returns how much room there is; false where the file system cannot tell.
func (s *Store) Disk() (Disk, bool) { return s.disk.measureDisk() }

// EndLSN is the end of the last transaction that readers see. A crash may set
// it back to [Store.DurableLSN]; a load that was begun earlier may too.
func (s *Store) EndLSN() id.LSN { return s.currentView().end }

// DurableLSN is the end LSN up to which everything is on disk: what may be
// acknowledged to Postgres.
func (s *Store) DurableLSN() id.LSN { return s.currentView().durable }

// Subscriptions is the number of rows with both ids, duplicates included.
func (s *Store) Subscriptions() int64 { return s.currentView().rows }

// Torn says that a crash came between the parts of a transaction, so readers
// see half of it. It ends with the Apply that ends the transaction, which
// Postgres sends again from [Store.EndLSN].
func (s *Store) Torn() bool { return s.currentView().torn }

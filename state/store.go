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
	dir        string
	o          Options
	log        *slog.Logger
	lock       io.Closer
	instance   string
	db         *pebble.DB
	pebbleOpts *pebbleOptions
	kept       checkpoints
	aside      Aside // what Open set aside
	damage     damage
	disk       diskReserve

	// life is held shared by every call and exclusively by Close, so that none
	// meets a closed Pebble, which panics.
	life   sync.RWMutex
	closed bool

	// writeMu makes writers take turns and guards what follows.
	writeMu sync.Mutex
	// written is the state record as it stands in the store. While a
	// transaction is applied in parts it is ahead of view.record.
	written record
	tx      txState
	changes changeset
	nextGen uint32
	loading bool
	// touched takes note of what is applied, for [Frozen.Mend]; nil: for nobody.
	touched *touched

	// mu guards what readers see.
	mu   sync.RWMutex
	view view
}

// view is what readers see: one whole-transaction state.
type view struct {
	record
	// durable is the end LSN that is certain to survive a crash.
	durable id.LSN
	src     Source
	loaded  bool
	// before is the store as it was before the first part of the transaction
	// that is being applied; nil when none is.
	before *pebble.Snapshot
}

// reader is where the view's rows are read.
func (s *Store) reader() pebble.Reader {
	if s.view.before != nil {
		return s.view.before
	}
	return s.db
}

// use admits a call. done must be called at its end; it is nil with an error.
func (s *Store) use() (done func(), err error) {
	s.life.RLock()
	if s.closed {
		s.life.RUnlock()
		return nil, ErrClosed
	}
	return s.life.RUnlock, nil
}

// Close releases the directory. Scans and loaders must have been closed. What
// was applied but not synced is kept as well.
func (s *Store) Close() error {
	s.life.Lock()
	defer s.life.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	var errs []error
	if s.view.before != nil {
		errs = append(errs, s.view.before.Close())
		s.view.before = nil
	}
	errs = append(errs, s.db.Close(), s.lock.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close state: %w", err)
	}
	return nil
}

func (s *Store) current() view {
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
	v := s.current()
	return v.src, v.loaded
}

// Disk returns how much room there is; false where the file system cannot tell.
func (s *Store) Disk() (Disk, bool) { return s.disk.measure() }

// EndLSN is the end of the last transaction that readers see. A crash may set
// it back to [Store.DurableLSN]; a load that was begun earlier may too.
func (s *Store) EndLSN() id.LSN { return s.current().end }

// DurableLSN is the end LSN up to which everything is on disk: what may be
// acknowledged to Postgres.
func (s *Store) DurableLSN() id.LSN { return s.current().durable }

// Subscriptions is the number of rows with both ids, duplicates included.
func (s *Store) Subscriptions() int64 { return s.current().rows }

// Torn says that a crash came between the parts of a transaction, so readers
// see half of it. It ends with the Apply that ends the transaction, which
// Postgres sends again from [Store.EndLSN].
func (s *Store) Torn() bool { return s.current().torn }

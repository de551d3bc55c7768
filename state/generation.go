package state

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"dinnerbell/state/id"
)

// Generation is a finished load beside the rows that are served. The caller applies the
// same transactions to both, and the generation takes over at one position. It has one
// owner. Nobody reads its rows before, and no record on disk names them: after a crash
// the old rows are served, and Open removes the generation.
type Generation struct {
	s       *Store
	src     Source
	r       stateRecord // what [Generation.Flip] writes
	changes changeSet
	ended   bool
}

// EndLSN returns the position of the load, or the end of the last transaction that was
// applied since.
func (g *Generation) EndLSN() id.LSN { return g.r.end }

// Rows returns the number of subscriptions.
func (g *Generation) Rows() int64 { return g.r.rows }

// Apply applies whole transactions to the generation, or one part of a transaction: each
// once, in the order of the log. Nothing is durable before Flip.
func (g *Generation) Apply(b *Batch) error {
	done, err := g.s.acquire()
	if err != nil {
		return err
	}
	defer done()
	if g.ended {
		return ErrClosed
	}
	if err := g.s.disk.checkRoom(0); err != nil {
		return err
	}
	if err := g.changes.collectChanges(changeTarget{db: g.s.db, gen: g.r.gen}, b.Changes); err != nil {
		return g.s.checkDamage(err)
	}
	next := g.r
	next.torn = b.End == 0
	next.end = max(next.end, b.End)
	batch := g.s.db.NewBatch()
	defer batch.Close()
	if err := g.changes.writeTo(batch, &next); err != nil {
		return fmt.Errorf("collect batch: %w", err)
	}
	if err := batch.Commit(pebble.NoSync); err != nil {
		return g.s.checkDamage(fmt.Errorf("commit batch: %w", err))
	}
	g.r = next
	return nil
}

// Flip lets the generation take over at end, durably and in one write. The old rows,
// which must mirror the source over as of the same position, are deleted in the same
// write; a scan that was made before still reads them. The stream from the source
// continues without a gap: the caller knows that it fits the new rows as well.
//
// The caller keeps writers out from the moment at which the generation has reached end.
// Flip returns [ErrNotThere] and changes nothing if the store stands at another position
// or in the middle of a transaction. After any other error the generation is dropped.
func (g *Generation) Flip(end id.LSN, over Source) error {
	if g.ended {
		return ErrClosed
	}
	err := g.takeOver(end, &over)
	if errors.Is(err, ErrNotThere) {
		return err
	}
	return g.finish(err)
}

// finish ends the generation after takeOver returned err.
func (g *Generation) finish(err error) error {
	if err != nil {
		return g.s.checkDamage(errors.Join(err, g.Drop()))
	}
	g.ended = true
	g.s.endLoad()
	return nil
}

// Drop removes the rows of the generation. After Flip it does nothing.
func (g *Generation) Drop() error {
	if g.ended {
		return nil
	}
	g.ended = true
	defer g.s.endLoad()
	done, err := g.s.acquire()
	if err != nil {
		return nil // the store is closed: the next Open removes them
	}
	defer done()
	for _, space := range loadSpaces {
		start, end := genSpan(space, g.r.gen)
		if err := g.s.dropSpan(start, end); err != nil {
			return fmt.Errorf("remove rows of an unfinished load: %w", err)
		}
	}
	return nil
}

// takeOver makes the generation the one that is read and written. Its rows are durable
// with this write: the tables were ingested, and later changes stand before it in the
// same log. The same write deletes the old rows; after a crash before it, Open removes
// the new rows. over is nil where the positions need no check.
func (g *Generation) takeOver(end id.LSN, over *Source) error {
	s := g.s
	done, err := s.acquire()
	if err != nil {
		return err
	}
	defer done()
	text, err := json.Marshal(g.src)
	if err != nil {
		return fmt.Errorf("encode source: %w", err)
	}
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if over != nil {
		if err := g.checkPositionsLocked(end, over); err != nil {
			return err
		}
	}
	r := g.r
	r.end, r.logged = end, s.logw.isOn()
	batch := s.db.NewBatch()
	defer batch.Close()
	errs := []error{batch.Set(keySource, text, nil), batch.Set(keyState, r.encodeRecord(), nil)}
	for _, space := range loadSpaces {
		from, to := genSpan(space, s.written.gen)
		errs = append(errs, batch.DeleteRange(from, to, nil))
	}
	before := s.currentView()
	if s.logw.isOn() {
		history, handled := g.continueLog(&before, end)
		errs = append(errs, s.logw.restart(batch, r, history, handled, s.o.now().Unix()))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("collect flip: %w", err)
	}
	// A reader between the commit and the new view would look for the old generation in
	// the new store.
	s.mu.Lock()
	err = batch.Commit(pebble.Sync)
	if err != nil {
		s.mu.Unlock()
		return fmt.Errorf("commit flip: %w", err)
	}
	s.logw.logState = s.logw.next
	s.view = readerView{
		stateRecord: r, durable: r.end, src: g.src, loaded: true,
		logFloor: s.logw.rec.floor, logSince: s.logw.rec.since, logHistory: s.logw.rec.history, logLast: r.end,
	}
	s.mu.Unlock()
	s.written, s.tx = r, outsideTransaction
	s.notifyWatchers()
	if before.beforeTransaction != nil {
		return before.beforeTransaction.Close()
	}
	return nil
}

// continueLog returns the history of the log behind the takeover at end, and the last
// position of it up to which a reader may have handled the log before.
func (g *Generation) continueLog(before *readerView, end id.LSN) (history uint64, handled id.LSN) {
	switch {
	case before.src.TimelineID() != g.src.TimelineID():
		return 0, end
	case end < before.end: // the source was set back, or the load began earlier
		var random [historyLen]byte
		_, _ = rand.Read(random[:]) // it never fails
		return max(1, binary.BigEndian.Uint64(random[:])), end
	}
	return before.logHistory, max(end, before.logFloor)
}

// checkPositionsLocked checks the conditions of [Generation.Flip]. The caller holds
// writeMu.
func (g *Generation) checkPositionsLocked(end id.LSN, over *Source) error {
	s := g.s
	switch v := s.currentView(); {
	case !v.loaded || v.src != *over:
		return fmt.Errorf("the state mirrors %+v now: %w", v.src, ErrStale)
	case s.tx.InTransaction() || g.r.torn || s.written.end > end || g.r.end > end:
		return fmt.Errorf("flip at %s with the state at %s and the new rows at %s: %w", end, s.written.end, g.r.end, ErrNotThere)
	}
	return nil
}

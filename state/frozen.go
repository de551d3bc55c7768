package state

import (
	"context"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2"

	"dinnerbell/state/id"
)

// Frozen is the rows as they stood at one whole-transaction position, to be
// compared with the source, and mended. It has one owner, who closes it before
// the store; there is one at a time. It pins files.
type Frozen struct {
	s    *Store
	snap *pebble.Snapshot
	src  Source
	r    record
	// drift is what the state record is off by; set by Tally.
	drift record
	// touched are the rows that were applied since. Guarded by Store.writeMu.
	touched *touched
}

// Freeze holds the present rows. It returns [ErrNotThere] in the middle of a
// transaction, and [ErrStale] while there are no rows yet.
func (s *Store) Freeze() (*Frozen, error) {
	done, err := s.use()
	if err != nil {
		return nil, err
	}
	defer done()
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	v := s.current()
	switch {
	case !v.loaded:
		return nil, fmt.Errorf("freeze rows: there are none yet: %w", ErrStale)
	case s.tx.InTransaction():
		return nil, fmt.Errorf("freeze rows in the middle of a transaction: %w", ErrNotThere)
	case s.touched != nil:
		return nil, errors.New("freeze rows: they are frozen already")
	}
	s.touched = newTouched()
	return &Frozen{s: s, snap: s.db.NewSnapshot(), src: v.src, r: s.written, touched: s.touched}, nil
}

// Source is what the rows mirror.
func (f *Frozen) Source() Source { return f.src }

// Close lets go of the rows.
func (f *Frozen) Close() error {
	if f.snap == nil {
		return nil
	}
	f.s.writeMu.Lock()
	f.s.touched = nil
	f.s.writeMu.Unlock()
	snap := f.snap
	f.snap = nil
	if err := snap.Close(); err != nil {
		return fmt.Errorf("close frozen rows: %w", err)
	}
	return nil
}

// Tally adds all rows up, apart from those in without. About a second for three
// million rows.
func (f *Frozen) Tally(ctx context.Context, without map[id.RowID]struct{}) (*Tally, error) {
	t, all, err := tally(ctx, f.snap, f.r.gen, without)
	if err != nil {
		return nil, f.s.check(err)
	}
	f.drift = record{rows: all.rows - f.r.rows, sum: all.sum - f.r.sum}
	return t, nil
}

// Miscounted says that the stored number of subscriptions, or the fingerprint
// of all rows, is not that of the rows that Tally found.
func (f *Frozen) Miscounted() bool { return f.drift != record{} }

// touched remembers which rows were written, with a few too many: ids share
// bits. Then a row is taken for touched and is looked at another time.
type touched struct {
	bits [1 << 17]uint64
	all  bool
}

func newTouched() *touched { return &touched{} }

func (t *touched) slot(id id.RowID) (word, bit uint64) {
	h := xxhash.Sum64String(string(id)) % (64 * uint64(len(t.bits)))
	return h / 64, 1 << (h % 64)
}

// add takes note of what a batch changes.
func (t *touched) add(c *changeset) {
	t.all = t.all || c.truncated
	for i := range c.effects {
		word, bit := t.slot(c.effects[i].id)
		t.bits[word] |= bit
	}
}

func (t *touched) has(id id.RowID) bool {
	word, bit := t.slot(id)
	return t.all || t.bits[word]&bit != 0
}

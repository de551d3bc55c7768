package state

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Mend brings the rows in which f differs from the source to what the source
// has, in both indexes, as one durable write; and the number of subscriptions
// and the fingerprint with them, from those that [Frozen.Tally] found. A row
// that was applied since f was made is left alone: what was found of it is no
// longer so. It returns how many were mended.
//
// It returns [ErrNotThere] in the middle of a transaction and [ErrStale] if
// other rows are served by now; nothing is changed then.
func (f *Frozen) Mend(differences []Difference) (mended int, err error) {
	s := f.s
	done, err := s.use()
	if err != nil {
		return 0, err
	}
	defer done()
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	switch {
	case f.snap == nil:
		return 0, ErrClosed
	case s.written.gen != f.r.gen:
		return 0, fmt.Errorf("mend rows: %w", ErrStale)
	case s.tx.InTransaction():
		return 0, fmt.Errorf("mend rows in the middle of a transaction: %w", ErrNotThere)
	}
	if err := s.room(); err != nil {
		return 0, err
	}
	next := s.written
	next.rows += f.drift.rows
	next.sum += f.drift.sum
	batch := s.db.NewBatch()
	defer batch.Close()
	for i := range differences {
		d := &differences[i]
		if f.touched.has(d.Row) {
			continue
		}
		if err := d.mend(batch, &next); err != nil {
			return 0, fmt.Errorf("collect mended rows: %w", err)
		}
		mended++
	}
	if err := batch.Set(keyState, next.encode(), nil); err != nil {
		return 0, fmt.Errorf("collect mended rows: %w", err)
	}
	if err := batch.Commit(pebble.Sync); err != nil {
		return 0, s.check(fmt.Errorf("commit mended rows: %w", err))
	}
	if mended > 0 || f.Miscounted() { // a checkpoint with a wrong count is refused by a restore
		s.kept.mends.Add(1)
	}
	f.drift = record{}
	s.written = next
	s.mu.Lock()
	s.view.record, s.view.durable = next, next.end // all before it is in the same log
	s.mu.Unlock()
	return mended, nil
}

// mend writes what the row should be, and counts it in r.
func (d *Difference) mend(batch *pebble.Batch, r *record) error {
	var errs []error
	rowKey := appendRowKey(nil, r.gen, d.Row)
	want := row{d.Source.Restaurant, d.Source.Client, d.InSource}
	if d.InRows {
		sum, _ := row{d.Stored.Restaurant, d.Stored.Client, true}.fingerprint(d.Row, nil)
		r.sum -= sum
	}
	if want.stored {
		sum, _ := want.fingerprint(d.Row, nil)
		r.sum += sum
		errs = append(errs, batch.Set(rowKey, want.appendValue(nil), nil))
	} else {
		errs = append(errs, batch.Delete(rowKey, nil))
	}
	r.rows -= int64(len(d.Joins))
	for _, p := range d.extraJoins() {
		errs = append(errs, batch.Delete(appendJoinKey(nil, r.gen, p.Restaurant, p.Client, d.Row), nil))
	}
	if want.subscribed() {
		r.rows++
		errs = append(errs, batch.Set(appendJoinKey(nil, r.gen, want.restaurant, want.client, d.Row), nil, nil))
	}
	return errors.Join(errs...)
}

package state

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"dinnerbell/state/id"
)

// rowVandal writes behind the store's back: it adds and removes keys of the generation
// that is served, without the state record.
type rowVandal struct {
	t     testing.TB
	s     *Store
	batch *pebble.Batch
}

func damaged(t testing.TB, s *Store, do func(d *rowVandal)) {
	t.Helper()
	d := &rowVandal{t: t, s: s, batch: s.db.NewBatch()}
	do(d)
	if err := d.batch.Commit(pebble.Sync); err != nil {
		t.Fatal(err)
	}
}

func (d *rowVandal) check(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *rowVandal) dropRow(id id.RowID) {
	d.check(d.batch.Delete(appendRowKey(nil, d.s.written.gen, id), nil))
}

func (d *rowVandal) setRow(id id.RowID, r storedRow) {
	d.check(d.batch.Set(appendRowKey(nil, d.s.written.gen, id), r.appendValue(nil), nil))
}

func (d *rowVandal) dropJoin(id id.RowID, r storedRow) {
	d.check(d.batch.Delete(appendJoinKey(nil, d.s.written.gen, r.restaurant, r.client, id), nil))
}

func (d *rowVandal) setJoin(id id.RowID, r storedRow) {
	d.check(d.batch.Set(appendJoinKey(nil, d.s.written.gen, r.restaurant, r.client, id), nil, nil))
}

// compareWithModel compares the frozen rows with m, first as sums, then row by row.
func compareWithModel(t testing.TB, f *Frozen, m modelRows, without map[id.RowID]struct{}) []Difference {
	t.Helper()
	want := &Tally{}
	each := func(add func(id.RowID, id.ID, id.ID) error) {
		for id, r := range m {
			if _, left := without[id]; left {
				continue
			}
			if err := add(id, r.restaurant, r.client); err != nil {
				t.Fatal(err)
			}
		}
	}
	each(want.Add)
	got, err := f.Tally(t.Context(), without)
	if err != nil {
		t.Fatal(err)
	}
	parts, _ := want.Differing(got)
	c := f.Compare(parts, without)
	each(c.Add)
	found, err := c.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if (len(parts) > 0) != (len(found) > 0) {
		t.Fatalf("%d parts differ, %d rows", len(parts), len(found))
	}
	return found
}

// freezeRows is Freeze, closed after the test.
func freezeRows(t testing.TB, s *Store) *Frozen {
	t.Helper()
	f, err := s.Freeze()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// filledStore returns a store that holds n rows of mixed ids, and the rows.
func filledStore(t testing.TB, o Options, n int) (*Store, modelRows) {
	t.Helper()
	s, m := openStore(t, "state", o), modelRows{}
	restaurants := makeIDs(3, 1)
	for i, client := range makeIDs(n, 2) {
		rowID := rowN(i - n/4)
		switch i % 5 {
		case 1:
			rowID = id.PackRow(fmt.Sprintf("key:%d", i))
		case 2:
			rowID = id.PackRow(client.Text())
		}
		m[rowID] = storedRow{restaurants[i%3], client, true}
		if i%9 == 0 {
			m[rowID] = storedRow{"", client, true}
		}
	}
	if err := beginGeneration(t, s, m, Source{}, 5).takeOver(5, nil); err != nil {
		t.Fatal(err)
	}
	s.endLoad()
	return s, m
}

// Every fault that one index or the other can have is found, named and mended, and
// nothing else is changed.
func TestMend(t *testing.T) { //nolint:tparallel // the cases follow each other on one store
	t.Parallel()
	o := testOptions()
	o.fs = vfs.NewMem()
	s, m := filledStore(t, o, 300)
	x := storedRow{packID(t, "wrong place"), packID(t, "wrong client"), true}
	sub, null := rowN(-20), rowN(-66) // -66 is number 9
	if !m[sub].isSubscription() || m[null].isSubscription() || !m[null].stored {
		t.Fatal("the rows are not what the cases need")
	}
	r := m[sub]
	strange := id.PackRow("no such row")
	for _, c := range []struct {
		name string
		do   func(d *rowVandal)
		id   id.RowID
		want []string
	}{
		{"row missing", func(d *rowVandal) { d.dropRow(sub) }, sub, []string{"rows missing"}},
		{"row extra", func(d *rowVandal) { d.setRow(strange, x) }, strange, []string{"rows extra"}},
		{"row with NULL missing", func(d *rowVandal) { d.dropRow(null) }, null, []string{"rows missing"}},
		{"row flipped", func(d *rowVandal) { d.setRow(sub, x) }, sub, []string{"rows different"}},
		{"row lost its client", func(d *rowVandal) { d.setRow(sub, storedRow{r.restaurant, "", true}) }, sub, []string{"rows different"}},
		{"join missing", func(d *rowVandal) { d.dropJoin(sub, r) }, sub, []string{"join missing"}},
		{"join extra", func(d *rowVandal) { d.setJoin(strange, x) }, strange, []string{"join extra"}},
		{"join extra beside the right one", func(d *rowVandal) { d.setJoin(sub, x) }, sub, []string{"join extra"}},
		{"join of a NULL", func(d *rowVandal) { d.setJoin(null, x) }, null, []string{"join extra"}},
		{"join flipped", func(d *rowVandal) { d.dropJoin(sub, r); d.setJoin(sub, x) }, sub, []string{"join different"}},
		{"both missing", func(d *rowVandal) { d.dropRow(sub); d.dropJoin(sub, r) }, sub, []string{"rows missing", "join missing"}},
		{"both extra", func(d *rowVandal) { d.setRow(strange, x); d.setJoin(strange, x) }, strange, []string{"rows extra", "join extra"}},
		{"both flipped", func(d *rowVandal) { d.setRow(sub, x); d.dropJoin(sub, r); d.setJoin(sub, x) }, sub, []string{"rows different", "join different"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			damaged(t, s, c.do)
			f := freezeRows(t, s)
			found := compareWithModel(t, f, m, nil)
			if len(found) != 1 || found[0].Row != c.id {
				t.Fatalf("found %+v, want row %s alone", found, c.id.Text())
			}
			var got []string
			for _, fault := range found[0].Faults() {
				got = append(got, fault.Index+" "+fault.What)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("found %v, want %v", got, c.want)
			}
			if left := compareWithModel(t, f, m, map[id.RowID]struct{}{c.id: {}}); len(left) != 0 {
				t.Errorf("found %+v among the rows without it", left)
			}
			if n, err := f.Mend(found); n != 1 || err != nil {
				t.Errorf("mended %d, %v", n, err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			checkRows(t, s, m)
			checkSound(t, s, m)
		})
	}
}

// checkSound checks that nothing differs and that the counts are right.
func checkSound(t testing.TB, s *Store, m modelRows) {
	t.Helper()
	if err := s.CheckRows(t.Context()); err != nil {
		t.Error(err)
	}
	f := freezeRows(t, s)
	if found := compareWithModel(t, f, m, nil); len(found) != 0 || f.Miscounted() {
		t.Errorf("%+v differ, miscounted %v", found, f.Miscounted())
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// A wrong number of subscriptions is found and mended too, even if all rows are right.
func TestMendCount(t *testing.T) {
	t.Parallel()
	o := testOptions()
	o.fs = vfs.NewMem()
	s, m := filledStore(t, o, 100)
	s.written.rows += 7
	s.written.sum++
	checkpoint(t, s, CauseTimed) // no restore would accept this checkpoint
	f := freezeRows(t, s)
	if found := compareWithModel(t, f, m, nil); len(found) != 0 || !f.Miscounted() {
		t.Fatalf("found %+v, miscounted %v", found, f.Miscounted())
	}
	if n, err := f.Mend(nil); n != 0 || err != nil {
		t.Fatalf("mended %d, %v", n, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if s.Subscriptions() != m.subscriptions() {
		t.Errorf("%d subscriptions, want %d", s.Subscriptions(), m.subscriptions())
	}
	if newest, ok := s.NewestCheckpoint(); ok {
		t.Errorf("%+v counts still", newest)
	}
	checkSound(t, s, m)
}

// Mend skips rows that the stream has written since Freeze, although they look as they
// did; the next verification finds the faults that are left.
func TestMendLeavesWhatWasWritten(t *testing.T) {
	t.Parallel()
	o := testOptions()
	o.fs = vfs.NewMem()
	s, m := filledStore(t, o, 100)
	x := storedRow{packID(t, "x"), packID(t, "y"), true}
	extra, flipped, moved := id.PackRow("extra"), rowN(-20), rowN(-15)
	was := m[moved]
	damaged(t, s, func(d *rowVandal) {
		d.setRow(extra, x)
		d.setRow(flipped, x)
		d.dropJoin(moved, was)
	})
	f := freezeRows(t, s)
	found := compareWithModel(t, f, m, nil)
	if len(found) != 3 {
		t.Fatalf("found %+v", found)
	}
	// The source inserts the row that was extra in the store, and updates another row to
	// the value that was stored wrongly: both leave the row index as it was.
	changes := []id.Change{
		{Op: id.Insert, Row: extra, Restaurant: x.restaurant, Client: x.client},
		{Op: id.Update, Row: flipped, Restaurant: x.restaurant, Client: x.client},
		{Op: id.Delete, Row: moved},
	}
	for _, c := range changes {
		m.apply(c)
	}
	applyChanges(t, s, 0, changes...)
	if _, err := f.Mend(found); !errors.Is(err, ErrNotThere) {
		t.Errorf("in the middle of a transaction: %v, want ErrNotThere", err)
	}
	applyChanges(t, s, 9)
	if n, err := f.Mend(found); n != 0 || err != nil {
		t.Errorf("mended %d, %v; all were written since", n, err)
	}
	if _, err := s.Freeze(); err == nil {
		t.Error("frozen twice")
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = freezeRows(t, s)
	found = compareWithModel(t, f, m, nil)
	if n, err := f.Mend(found); n != len(found) || n == 0 || err != nil {
		t.Errorf("mended %d of %d, %v", n, len(found), err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	checkSound(t, s, m)
	checkRows(t, s, m)

	f = freezeRows(t, s)
	loadRows(t, s, 10, makeIDs(1, 1), 20)
	if _, err := f.Mend(nil); !errors.Is(err, ErrStale) {
		t.Errorf("after another load: %v, want ErrStale", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// A crash at any write of a repair leaves the rows either as they were or mended, with
// the right count.
func TestMendCrash(t *testing.T) {
	t.Parallel()
	rec := &crashRecorder{mem: vfs.NewCrashableMem(), r: rand.New(rand.NewPCG(3, 3))}
	s, m := filledStore(t, crashOptions(errorfs.Wrap(rec.mem, errorfs.InjectorFunc(rec.record))), 120)
	damaged(t, s, func(d *rowVandal) {
		for i, id := range slices.Sorted(maps.Keys(m)) {
			switch r := m[id]; {
			case i%4 == 0:
				d.dropRow(id)
			case i%4 == 1 && r.isSubscription():
				d.dropJoin(id, r)
			}
		}
	})
	f := freezeRows(t, s)
	found := compareWithModel(t, f, m, nil)
	first := len(rec.crashes)
	if n, err := f.Mend(found); n != len(found) || err != nil {
		t.Fatal(n, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	applyChanges(t, s, 10) // a write behind it
	if _, err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	seen := map[int]int{}
	for _, c := range rec.crashes[first:] {
		crashed := openStore(t, "state", crashOptions(c.disk))
		noQuarantine(t, c)
		f := freezeRows(t, crashed)
		left := compareWithModel(t, f, m, nil)
		seen[len(left)]++
		if len(left) == 0 && f.Miscounted() {
			t.Errorf("crash at write %d: mended, but miscounted", c.write)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("crashes by rows that differ: %v", seen)
	if len(seen) != 2 || seen[0] == 0 || seen[len(found)] == 0 {
		t.Errorf("found %v rows that differ after crashes, want 0 or all %d", seen, len(found))
	}
}

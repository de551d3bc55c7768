package state

import (
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dinnerbell/state/id"
)

// beginGeneration loads a generation with the rows of m as of end, which is not served
// yet.
func beginGeneration(t testing.TB, s *Store, m modelRows, src Source, end id.LSN) *Generation {
	t.Helper()
	l, err := s.NewGeneration()
	if err != nil {
		t.Fatal(err)
	}
	for id, r := range m {
		if err := l.Add(id, r.restaurant, r.client); err != nil {
			t.Fatal(err)
		}
	}
	g, err := l.Load(src, end)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// TestGenerationCrash crashes at every write while a generation is loaded
// beside the served one, follows some transactions behind, and takes over. After the
// crash one of the two is there, whole, at a position that was promised.
func TestGenerationCrash(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 77)
	h := makeHistory(w, 25)
	h.flips = true
	rec := &crashRecorder{mem: vfs.NewCrashableMem(), r: w.r}
	s, err := Open("state", crashOptions(rec.fs()))
	if err != nil {
		t.Fatal(err)
	}
	rec.store.Store(s)
	if err := beginGeneration(t, s, nil, Source{}, 0).Flip(0, Source{}); !errors.Is(err, ErrStale) {
		t.Fatalf("flip in a store without rows: %v, want ErrStale", err)
	}
	loadRows(t, s, 0, nil, 0)
	flipped := followAndFlip(t, rec, s, h)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	before, after := 0, 0
	for _, c := range rec.crashes {
		if c.write < flipped {
			before++
		} else {
			after++
		}
		if c.durable > 0 || c.loaded {
			checkCrash(t, c, h, w)
		}
	}
	t.Logf("%d crashes before the flip, %d after", before, after)
}

// followAndFlip applies h, with a generation that begins at 100 and takes over
// at 200. It returns the number of the write after the flip.
func followAndFlip(t *testing.T, rec *crashRecorder, s *Store, h *batchHistory) (flipped int) {
	t.Helper()
	var g *Generation
	var pending []*Batch
	for i := range h.batches {
		b := &h.batches[i]
		if err := s.Apply(b); err != nil {
			t.Fatal(err)
		}
		if g != nil {
			pending = append(pending, b)
		}
		for len(pending) > 3 || b.End == 200 && len(pending) > 0 {
			if err := g.Apply(pending[0]); err != nil {
				t.Fatal(err)
			}
			pending = pending[1:]
		}
		switch {
		case b.End == 100:
			g = beginGeneration(t, s, h.at[100], Source{Slot: "bench"}, 100)
		case b.End == 200:
			if err := g.Flip(200, g.src); err != nil {
				t.Fatal(err)
			}
			g, flipped = nil, len(rec.crashes)
		case i%4 == 3:
			if _, err := s.Sync(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if flipped == 0 || g != nil {
		t.Fatal("the generation was not flipped")
	}
	return flipped
}

// TestFlipRefused: a generation takes over only at a position where both stand, between
// transactions, and from the source beside which it was loaded. A refused generation can
// try again.
func TestFlipRefused(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), testOptions())
	w, m := newWorld(t, 3), modelRows{}
	src := Source{SystemID: "1"}
	g := beginGeneration(t, s, nil, src, 5)
	if err := g.takeOver(5, nil); err != nil {
		t.Fatal(err)
	}
	if err := g.finish(nil); err != nil {
		t.Fatal(err)
	}
	g = beginGeneration(t, s, nil, src, 5)
	if _, err := s.NewGeneration(); !errors.Is(err, ErrLoading) {
		t.Errorf("a load beside a generation: %v, want ErrLoading", err)
	}
	refused := func(what string, end id.LSN) {
		t.Helper()
		if err := g.Flip(end, g.src); !errors.Is(err, ErrNotThere) {
			t.Errorf("%s: %v, want ErrNotThere", what, err)
		}
	}
	changes := w.transaction(m, 20, true)
	applyChanges(t, s, 10, changes...)
	refused("the state is ahead of the position", 5)
	applyChanges(t, s, 0, changes...)
	refused("the state is in the middle of a transaction", 10)
	applyChanges(t, s, 20, changes...)
	for _, b := range []Batch{{Changes: changes, End: 10}, {Changes: changes}} {
		if err := g.Apply(&b); err != nil {
			t.Fatal(err)
		}
	}
	refused("the new rows are in the middle of a transaction", 20)
	if err := g.Apply(&Batch{End: 20}); err != nil {
		t.Fatal(err)
	}
	refused("the new rows are ahead of the position", 15)
	if err := g.Flip(25, g.src); err != nil {
		t.Fatal(err)
	}
	if s.EndLSN() != 25 || s.DurableLSN() != 25 {
		t.Errorf("end %s, durable %s; want 0/19", s.EndLSN(), s.DurableLSN())
	}
	checkModel(t, s, m, w.restaurants)
	checkRows(t, s, m)
	if err := errors.Join(g.Apply(&Batch{End: 30}), g.Flip(30, g.src)); !errors.Is(err, ErrClosed) {
		t.Errorf("after the flip: %v, want ErrClosed", err)
	}
}

// TestGenerationDropped: a dropped generation leaves nothing behind, and the served rows
// stay.
func TestGenerationDropped(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), testOptions())
	loadRows(t, s, 50, makeIDs(2, 1), 7)
	rows := modelRows{}
	for i, c := range makeIDs(30, 4) {
		rows[rowN(i)] = storedRow{c, c, true}
	}
	g := beginGeneration(t, s, rows, Source{SystemID: "other"}, 9)
	if err := g.Flip(9, g.src); !errors.Is(err, ErrStale) {
		t.Errorf("flip to another source: %v, want ErrStale", err)
	}
	if err := errors.Join(g.Drop(), g.Drop()); err != nil {
		t.Fatal(err)
	}
	loadRows(t, s, 20, makeIDs(2, 1), 8)
	served, _ := s.Source()
	g = beginGeneration(t, s, rows, Source{SystemID: "other"}, 9)
	if err := g.Flip(9, served); err != nil {
		t.Errorf("flip over the source that is served: %v", err)
	}
	if now, _ := s.Source(); now.SystemID != "other" || s.Subscriptions() != int64(len(rows)) {
		t.Errorf("the state is of %+v with %d subscriptions", now, s.Subscriptions())
	}
	loadRows(t, s, 20, makeIDs(2, 1), 10)
	if s.Subscriptions() != 20 {
		t.Errorf("%d subscriptions, want the next load's 20", s.Subscriptions())
	}
	if err := s.CheckRows(t.Context()); err != nil {
		t.Error(err)
	}
}

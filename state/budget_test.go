package state

import (
	"math/rand/v2"
	"testing"

	"dinnerbell/internal/budget"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state/id"
)

// The allocations of the store for each change that it applies, and for each row of a
// load.
func TestAllocations(t *testing.T) {
	if envtest.RaceDetector {
		t.Skip("the race detector allocates as well")
	}
	const rows = 2000
	s := openStore(t, t.TempDir(), testOptions())
	restaurants := makeIDs(20, 1)
	loadRows(t, s, 1, restaurants, 1)
	r := rand.New(rand.NewPCG(3, 3))
	batch := Batch{End: 1}
	for i := range rows {
		batch.Changes = append(batch.Changes, id.Change{Op: id.Insert, Row: rowN(10 + i), Restaurant: restaurants[i%20], Client: randomUUID(4, r)})
	}
	// The load comes first: Pebble flushes applied batches in the background, which
	// allocates at any moment.
	l, err := s.NewGeneration()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Abort(); err != nil {
			t.Error(err)
		}
	}()
	budget.Check(t, "allocs_load", testing.AllocsPerRun(5, func() {
		for i := range batch.Changes {
			ch := &batch.Changes[i]
			if err := l.Add(ch.Row, ch.Restaurant, ch.Client); err != nil {
				t.Fatal(err)
			}
		}
	})/rows)
	budget.Check(t, "allocs_apply", testing.AllocsPerRun(5, func() {
		batch.End++
		for i := range batch.Changes { // each row moves
			batch.Changes[i].Restaurant = restaurants[(i+int(batch.End))%20]
		}
		if err := s.Apply(&batch); err != nil {
			t.Fatal(err)
		}
	})/rows)
}

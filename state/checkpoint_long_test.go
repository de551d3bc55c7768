package state

import (
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state/id"
)

// TestLongCheckpointOfTenMillion holds checkpoints to their budget: with ten million
// subscriptions a checkpoint takes less than a second, and a restore, which reads all
// rows, less than five.
func TestLongCheckpointOfTenMillion(t *testing.T) {
	envtest.Long(t)
	const rows, makeIn, restoreIn = 10_000_000, time.Second, 5 * time.Second
	dir := t.TempDir()
	o := Options{ReserveBytes: -1}
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	restaurants := makeIDs(2000, 1)
	loadRows(t, s, rows, restaurants, 10)
	for range 3 { // the first has the fewest files, churn makes more of them
		began := time.Now()
		m := checkpoint(t, s, CauseAsked)
		took := time.Since(began)
		t.Logf("made in %s: %d files, %d MB", took.Round(time.Millisecond), len(m.Files), m.Bytes()>>20)
		if took > makeIn {
			t.Errorf("made in %s, want %s", took, makeIn)
		}
		for i, client := range makeIDs(100_000, uint64(m.EndLSN)) {
			applyChanges(t, s, s.EndLSN()+1, id.Change{Op: id.Update, Row: rowN(1 + i*97), Restaurant: restaurants[i%2000], Client: client})
		}
	}
	m := checkpoint(t, s, CauseAsked)
	closeStore(t, s)
	began := time.Now()
	if _, _, err := Restore(t.Context(), dir, m.ID, o); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	t.Logf("restored in %s", took.Round(time.Millisecond))
	if took > restoreIn {
		t.Errorf("restored in %s, want %s", took, restoreIn)
	}
	if s = openStore(t, dir, o); s.Subscriptions() != m.Subscriptions || s.EndLSN() != m.EndLSN {
		t.Errorf("restored %d rows at %s, want %d at %s", s.Subscriptions(), s.EndLSN(), m.Subscriptions, m.EndLSN)
	}
}

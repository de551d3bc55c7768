package state

import (
	"bytes"
	"context"
	"slices"
	"testing"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state/id"
)

// TestDiskBudget holds the store to 64 bytes on disk per subscription with UUID
// ids, 2,000 restaurants and a serial key, after a load and after churn.
func TestDiskBudget(t *testing.T) {
	t.Parallel()
	const budget = 64
	rows := 200_000
	if envtest.RaceDetector {
		rows = 40_000
	}
	s := openStore(t, t.TempDir(), testOptions())
	restaurants := makeIDs(2000, 1)
	loadRows(t, s, rows, restaurants, 1)
	if per := perRow(t, s); per > budget {
		t.Errorf("after a load: %.1f bytes per subscription, want at most %d", per, budget)
	} else {
		t.Logf("after a load: %.1f bytes", per)
	}
	fresh := makeIDs(rows/10, 5)
	var changes []id.Change
	for i := range fresh {
		changes = append(changes, id.Change{Op: id.Update, Row: rowN(i*10 + 1), Restaurant: restaurants[i%2000], Client: fresh[i]})
	}
	for batch := range slices.Chunk(changes, 2000) {
		applyChanges(t, s, s.EndLSN()+1, batch...)
	}
	if err := s.db.Compact(context.Background(), []byte{0}, bytes.Repeat([]byte{0xff}, 8), false); err != nil {
		t.Fatal(err)
	}
	if per := perRow(t, s); per > budget {
		t.Errorf("after updates and compaction: %.1f bytes per subscription, want at most %d", per, budget)
	} else {
		t.Logf("after updates and compaction: %.1f bytes", per)
	}
}

// perRow returns the size of all live tables per subscription.
func perRow(t *testing.T, s *Store) float64 {
	t.Helper()
	total := s.db.Metrics().Total()
	return float64(total.TablesSize) / float64(s.Subscriptions())
}

package state

import (
	"fmt"
	"testing"

	"dinnerbell/state/id"
)

// A subscription is found by its two ids, with its rows and no others.
func TestLookUp(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), testOptions())
	loader, err := s.NewGeneration()
	if err != nil {
		t.Fatal(err)
	}
	for n, pair := range [][2]string{{"r", "client"}, {"r", "client"}, {"r", "client2"}, {"r2", "client"}, {"r", "Client"}} {
		if err := loader.Add(rowN(n+1), packID(t, pair[0]), packID(t, pair[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := loader.Finish(Source{Slot: "test"}, 7); err != nil {
		t.Fatal(err)
	}
	applyChanges(t, s, 8, id.Change{Op: id.Delete, Row: rowN(5)})
	for pair, want := range map[[2]string]string{
		{"r", "client"}: "[1 2]", {"r2", "client"}: "[4]", {"r", "client2"}: "[3]", {"r", "Client"}: "[]", {"r", "clien"}: "[]", {"r3", "client"}: "[]",
	} {
		found, err := s.LookUp(packID(t, pair[0]), packID(t, pair[1]), 10)
		rows := []string{}
		for _, row := range found.IDs {
			rows = append(rows, row.Text())
		}
		if err != nil || fmt.Sprint(rows) != want || found.End != 8 {
			t.Errorf("%v: rows %v as of %s, %v; want %s", pair, rows, found.End, err, want)
		}
	}
	if found, err := s.LookUp(packID(t, "r"), packID(t, "client"), 1); err != nil || len(found.IDs) != 1 {
		t.Errorf("with a limit: %v, %v", found, err)
	}
}

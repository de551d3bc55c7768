package state

import (
	"errors"
	"testing"

	"dinnerbell/state/id"
)

// TestFollow: the new source and all that was applied before it are on disk;
// with a transaction in parts it is refused.
func TestFollow(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := Open(dir, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	first, second := Source{SystemID: "1", Timeline: 1}, Source{SystemID: "1", Timeline: 2, History: "1 0/A;"}
	if err := s.Follow(second); !errors.Is(err, ErrTorn) {
		t.Errorf("without rows: %v, want ErrTorn", err)
	}
	g := begin(t, s, nil, first, 5)
	if err := g.finish(g.takeOver(5, nil)); err != nil {
		t.Fatal(err)
	}
	apply(t, s, 0, id.Change{Op: id.Insert, Row: rowN(1), Restaurant: packID(t, "r"), Client: packID(t, "c")})
	if err := s.Follow(second); !errors.Is(err, ErrTorn) {
		t.Errorf("in the middle of a transaction: %v, want ErrTorn", err)
	}
	apply(t, s, 10)
	if src, _ := s.Source(); src != first || s.DurableLSN() != 5 {
		t.Errorf("source %+v, durable %s; want the first and 0/5", src, s.DurableLSN())
	}
	if err := s.Follow(second); err != nil {
		t.Fatal(err)
	}
	if src, _ := s.Source(); src != second || s.DurableLSN() != 10 {
		t.Errorf("source %+v, durable %s; want the second and 0/A", src, s.DurableLSN())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, testOptions())
	if src, ok := s.Source(); !ok || src != second || s.EndLSN() != 10 {
		t.Errorf("opened again: source %+v at %s", src, s.EndLSN())
	}
}

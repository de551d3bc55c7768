package state

import (
	"errors"
	"testing"

	"dinnerbell/state/id"
)

// TestTxState follows a transaction in parts through a break of the connection and
// through a crash.
func TestTxState(t *testing.T) {
	t.Parallel()
	type step struct {
		name string
		do   func(txState) txState
		want txState
	}
	part := func(s txState) txState { return s.withPart() }
	rewind := func(s txState) txState { return s.rewound() }
	for name, path := range map[string]struct {
		from  txState
		steps []step
	}{
		"in one go":    {outsideTransaction, []step{{"rewind", rewind, outsideTransaction}, {"part", part, insideTransaction}, {"part", part, insideTransaction}}},
		"after break":  {insideTransaction, []step{{"rewind", rewind, repeatedTransaction}, {"rewind", rewind, repeatedTransaction}, {"part", part, repeatedTransaction}}},
		"after crash":  {tornTransaction, []step{{"rewind", rewind, tornTransaction}, {"part", part, repeatedTransaction}, {"part", part, repeatedTransaction}}},
		"crash, break": {tornTransaction, []step{{"part", part, repeatedTransaction}, {"rewind", rewind, repeatedTransaction}}},
	} {
		s := path.from
		for i, step := range path.steps {
			if s = step.do(s); s != step.want {
				t.Errorf("%s: step %d, %s: state %d, want %d", name, i, step.name, s, step.want)
			}
		}
	}
	for s, want := range map[txState][3]bool{
		outsideTransaction:  {false, false, false},
		insideTransaction:   {true, false, true},
		repeatedTransaction: {true, true, true},
		tornTransaction:     {true, true, false},
	} {
		if got := [3]bool{s.InTransaction(), s.isRepeated(), s.holdsReaders()}; got != want {
			t.Errorf("state %d: in a transaction, repeated, holds readers: %v, want %v", s, got, want)
		}
	}
}

// TestFollow: after Follow the new source and all batches before it are on disk; in the
// middle of a transaction Follow is refused.
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
	g := beginGeneration(t, s, nil, first, 5)
	if err := g.finish(g.takeOver(5, nil)); err != nil {
		t.Fatal(err)
	}
	applyChanges(t, s, 0, id.Change{Op: id.Insert, Row: rowN(1), Restaurant: packID(t, "r"), Client: packID(t, "c")})
	if err := s.Follow(second); !errors.Is(err, ErrTorn) {
		t.Errorf("in the middle of a transaction: %v, want ErrTorn", err)
	}
	applyChanges(t, s, 10)
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

package state

import "testing"

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

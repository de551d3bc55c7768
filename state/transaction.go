package state

// txState says how the stored rows stand to the transactions of the source. Only
// a transaction that is too large for one batch is ever applied in parts.
type txState uint8

const (
	// outsideTransaction: the rows are those of a whole transaction's end.
	outsideTransaction txState = iota
	// insideTransaction: this process applied parts of a transaction and not yet its
	// end. view.before is set: readers see the rows before it.
	insideTransaction
	// repeatedTransaction: the transaction comes again from its first part, over
	// parts of it that were applied before. view.before is set.
	repeatedTransaction
	// tornTransaction: a crash came between the parts of a transaction, which will
	// come again. Readers see its first parts: nothing remembers the rows before it.
	tornTransaction
)

// InTransaction reports whether parts of a transaction are in the store and its
// end is not. The state record says the same (record.torn).
func (t txState) InTransaction() bool { return t != outsideTransaction }

// isRepeated reports whether the next change may have been applied before.
func (t txState) isRepeated() bool { return t == repeatedTransaction || t == tornTransaction }

// holdsReaders reports whether readers are kept at the rows before the transaction.
func (t txState) holdsReaders() bool { return t == insideTransaction || t == repeatedTransaction }

// withPart returns the state once a part was applied and readers are held.
func (t txState) withPart() txState {
	switch t {
	case outsideTransaction:
		return insideTransaction
	case tornTransaction:
		return repeatedTransaction
	default:
		return t
	}
}

// rewound returns the state once the stream begins again at the last whole
// transaction.
func (t txState) rewound() txState {
	if t == insideTransaction {
		return repeatedTransaction
	}
	return t
}

package network

import (
	"errors"
	"sync/atomic"
)

// errCut is the error of a pump that cuts the connection.
var errCut = errors.New("cut on purpose")

// answerTrap swallows as many answers as it was armed for.
type answerTrap struct {
	Armed  atomic.Int64
	Sprung atomic.Int64 // how many answers it swallowed
}

// loseNext reports whether this answer is one to swallow.
func (t *answerTrap) loseNext() bool {
	for {
		n := t.Armed.Load()
		if n <= 0 {
			return false
		}
		if t.Armed.CompareAndSwap(n, n-1) {
			t.Sprung.Add(1)
			return true
		}
	}
}

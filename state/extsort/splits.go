package extsort

import "math/bits"

// splitTree divides keys into ranges by splitters, which are a sample of the keys.
// It is a tree of numbers: each node compares eight bytes, so that keys with a long
// prefix in common cost no more comparisons than others. A splitter is compared as
// far as it differs from the other splitters, up to maxDigits bytes.
type splitTree struct {
	before int          // number of splitters before all splitters of this node
	values []uint64     // the splitters' eight bytes at this depth, ascending, each once
	upto   []int        // by value: number of splitters up to the last one with the value
	below  []*splitTree // by value: the splitters that share the value; nil if there is one
}

// newSplitTree returns the tree of sorted splitters that share their first depth
// bytes. before is the number of splitters before them.
func newSplitTree(splitters [][]byte, depth, before int) *splitTree {
	s := &splitTree{before: before}
	for from := 0; from < len(splitters); {
		value, to := digitsAt(splitters[from], depth), from+1
		for to < len(splitters) && digitsAt(splitters[to], depth) == value {
			to++
		}
		var below *splitTree
		if to > from+1 && depth+8 < maxDigits {
			below = newSplitTree(splitters[from:to], depth+8, before+from)
		}
		s.values, s.upto, s.below = append(s.values, value), append(s.upto, before+to), append(s.below, below)
		from = to
	}
	return s
}

// findRange returns the number of key's range: the number of splitters that do not
// sort after key. It never decreases while keys ascend.
func (s *splitTree) findRange(key []byte) int {
	for depth := 0; ; depth += 8 {
		value := digitsAt(key, depth)
		if len(s.values) == 0 || value < s.values[0] {
			return s.before
		}
		at := 0 // index of the last value that is not greater
		for n := len(s.values); n > 1; {
			half := n / 2
			// Without a branch: the processor would mispredict every second one.
			_, above := bits.Sub64(value, s.values[at+half], 0)
			at += half & int(above-1)
			n -= half
		}
		if s.values[at] != value || s.below[at] == nil {
			return s.upto[at]
		}
		s = s.below[at]
	}
}

package extsort

import "math/bits"

// splitTree divides keys into ranges, by splitters that are a sample of them. It is
// a tree of numbers: eight bytes at a time decide, so that keys of one restaurant
// cost no more comparisons than others. A splitter counts as far as it is needed
// to tell it from the others, deepest bytes at most.
type splitTree struct {
	before int          // splitters below all of this node
	values []uint64     // of the splitters' bytes at this depth, ascending
	upto   []int        // splitters up to, and with, those of a value
	below  []*splitTree // of those that are alike in it; nil if it decides
}

// newSplitTree makes the tree of sorted splitters that are alike up to depth.
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

// findRange is the number of the range that key is in: of the splitters that are not
// above it. Keys that ascend never descend in it.
func (s *splitTree) findRange(key []byte) int {
	for depth := 0; ; depth += 8 {
		value := digitsAt(key, depth)
		if len(s.values) == 0 || value < s.values[0] {
			return s.before
		}
		at := 0 // of the last value that is not above
		for n := len(s.values); n > 1; {
			half := n / 2
			// Without a jump, of which every second would be guessed wrongly.
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

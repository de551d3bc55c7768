package extsort

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// alikeKeys makes n keys of which many begin alike, some are prefixes of others,
// and some come twice.
func alikeKeys(r *rand.Rand, n int) [][]byte {
	beginnings := []string{"", "a", "a\x00", strings.Repeat("r", 7), strings.Repeat("r", 8), strings.Repeat("r", 17), strings.Repeat("x", maxDigits-1), strings.Repeat("x", 3*maxDigits)}
	keys := make([][]byte, n)
	for i := range keys {
		key := []byte(beginnings[r.IntN(len(beginnings))])
		for range r.IntN(4) * r.IntN(8) {
			key = append(key, "\x00\x01ab\xff"[r.IntN(5)])
		}
		keys[i] = key
	}
	return keys
}

// Any number of keys come out in order, with any prefixes in common.
func TestKeyBagSorts(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(5, 2))
	var buffer KeyBuffer
	for _, n := range []int{0, 1, 2, 3, 100, minRadix - 1, minRadix, 5000, 1} {
		for _, prefix := range []string{"", "p", strings.Repeat("p", 30)} {
			buffer.clearKeys()
			keys := alikeKeys(r, n)
			for i := range keys {
				keys[i] = append([]byte(prefix), keys[i]...)
				buffer.Add(keys[i])
			}
			slices.SortFunc(keys, bytes.Compare)
			sorted := buffer.Sorted()
			if len(sorted) != n {
				t.Fatalf("%d keys are %d when sorted", n, len(sorted))
			}
			for i, e := range sorted {
				if got := buffer.Key(e.Entry); !bytes.Equal(got, keys[i]) {
					t.Fatalf("%d keys: number %d is %q, want %q", n, i, got, keys[i])
				}
			}
		}
	}
}

// The numbers of ranges ascend with the keys, whether the keys are like the sample or not.
// A sample is divided evenly.
func TestSplits(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(6, 2))
	for _, n := range []int{0, 1, 2, 7, 255} {
		for try := range 20 {
			sample := alikeKeys(r, n)
			if try%2 == 0 {
				for i := range sample {
					sample[i] = fmt.Appendf(nil, "restaurant-%08d", r.IntN(1e6))
				}
			}
			slices.SortFunc(sample, bytes.Compare)
			s, keys := newSplitTree(sample, 0, 0), append(alikeKeys(r, 2000), sample...)
			slices.SortFunc(keys, bytes.Compare)
			for i, last := 0, 0; i < len(keys); i++ {
				at := s.findRange(keys[i])
				if at < last || at > n {
					t.Fatalf("%d splitters: %q is in range %d, the key before it in %d", n, keys[i], at, last)
				}
				last = at
			}
		}
	}
	buffer := KeyBuffer{}
	for i := range 16_000 {
		buffer.Add(fmt.Appendf(nil, "restaurant %016x row %d", r.Uint64(), i))
	}
	p := NewRanges(nil, &buffer, 1<<30)
	for i := range 16_000 {
		if err := p.Add(buffer.Key(uint32(i))); err != nil {
			t.Fatal(err)
		}
	}
	if len(p.ranges) != maxRanges {
		t.Fatalf("%d ranges, want %d", len(p.ranges), maxRanges)
	}
	for i := range p.ranges {
		if n := p.ranges[i].keys; n < 60 || n > 65 {
			t.Errorf("range %d has %d keys of its sample, want 62 or 63", i, n)
		}
	}
}

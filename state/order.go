package state

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
)

// ranked is the number of an entry, and a number of the same order as a part of
// its key.
type ranked struct {
	sort  uint64
	entry uint32
}

// order sorts entries by their keys, which may begin alike: eight bytes at a
// time are compared as a number, and what is alike in them by the next eight.
// Its memory is used again.
type order struct {
	list  []ranked
	spare []ranked // what sort moves list to and from
}

const (
	// deepest is how many bytes are compared as numbers; keys that are alike in
	// them are compared as they are.
	deepest = 64
	// fewest is the number of entries from which on radix is worth it.
	fewest = 256
)

// sort gives n entries in the order of their keys, which begin alike for skip
// bytes. The list holds until the next call.
func (o *order) sort(n, skip int, key func(entry uint32) []byte) []ranked {
	o.list = slices.Grow(o.list[:0], n)[:n]
	o.spare = slices.Grow(o.spare[:0], n)[:n]
	for i := range o.list {
		o.list[i].entry = uint32(i)
	}
	o.from(o.list, o.spare, skip, skip+deepest, key)
	return o.list
}

// from sorts entries whose keys are alike up to depth.
func (o *order) from(list, spare []ranked, depth, limit int, key func(entry uint32) []byte) {
	for alike := true; alike; depth += 8 {
		if len(list) < 2 {
			return
		}
		if depth >= limit {
			slices.SortFunc(list, func(a, b ranked) int { return bytes.Compare(key(a.entry), key(b.entry)) })
			return
		}
		for i := range list {
			list[i].sort = digits(key(list[i].entry), depth)
			alike = alike && list[i].sort == list[0].sort
		}
	}
	sortRanked(list, spare)
	for from := 0; from < len(list); {
		to := from + 1
		for to < len(list) && list[to].sort == list[from].sort {
			to++
		}
		o.from(list[from:to], spare[from:to], depth, limit, key)
		from = to
	}
}

// sortRanked sorts by the numbers. spare is as long as list.
func sortRanked(list, spare []ranked) {
	less := func(a, b ranked) int { return cmp.Compare(a.sort, b.sort) }
	switch {
	case len(list) < fewest:
		slices.SortFunc(list, less)
	case !slices.IsSortedFunc(list, less):
		radix(list, spare)
	}
}

// radix sorts by each byte of the numbers, from the last to the first; bytes
// that are the same in all of them are passed over. It takes a tenth of the
// time that comparing takes.
func radix(list, spare []ranked) {
	var counts [8][256]uint32
	for _, r := range list {
		for digit := range counts {
			counts[digit][byte(r.sort>>(8*digit))]++
		}
	}
	from, to := list, spare
	for digit := range counts {
		count := &counts[digit]
		if count[byte(from[0].sort>>(8*digit))] == uint32(len(from)) {
			continue
		}
		at := uint32(0)
		for value, n := range count {
			count[value], at = at, at+n
		}
		for _, r := range from {
			value := byte(r.sort >> (8 * digit))
			to[count[value]] = r
			count[value]++
		}
		from, to = to, from
	}
	if &from[0] != &list[0] {
		copy(list, from)
	}
}

// digits is the eight bytes of key from at on as a number of the same order.
// Zero padding can make it equal for different keys, never disordered.
func digits(key []byte, at int) uint64 {
	if len(key) >= at+8 {
		return binary.BigEndian.Uint64(key[at:])
	}
	var b [8]byte
	if at < len(key) {
		copy(b[:], key[at:])
	}
	return binary.BigEndian.Uint64(b[:])
}

package extsort

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
)

// RankedEntry is the number of an entry, and eight bytes of its key as a number
// that sorts like them.
type RankedEntry struct {
	sort  uint64
	Entry uint32
}

// Sorter sorts entries by their keys, which may have long prefixes in common: it
// compares eight bytes at a time as a number, and entries that are equal in these
// by the next eight. It uses its memory again.
type Sorter struct {
	list  []RankedEntry
	spare []RankedEntry // as long as list; the radix sort moves entries between the two
}

const (
	// maxDigits is how many bytes are compared as numbers. Keys that are equal in
	// them are compared as byte strings.
	maxDigits = 64
	// minRadix is the number of entries from which on a radix sort is faster.
	minRadix = 256
)

// Sort returns n entries in the order of their keys, which share their first skip
// bytes. The list holds until the next call.
func (o *Sorter) Sort(n, skip int, key func(entry uint32) []byte) []RankedEntry {
	o.list = slices.Grow(o.list[:0], n)[:n]
	o.spare = slices.Grow(o.spare[:0], n)[:n]
	for i := range o.list {
		o.list[i].Entry = uint32(i)
	}
	o.sortFrom(o.list, o.spare, skip, skip+maxDigits, key)
	return o.list
}

// sortFrom sorts entries whose keys share their first depth bytes.
func (o *Sorter) sortFrom(list, spare []RankedEntry, depth, limit int, key func(entry uint32) []byte) {
	for alike := true; alike; depth += 8 {
		if len(list) < 2 {
			return
		}
		if depth >= limit {
			slices.SortFunc(list, func(a, b RankedEntry) int { return bytes.Compare(key(a.Entry), key(b.Entry)) })
			return
		}
		for i := range list {
			list[i].sort = digitsAt(key(list[i].Entry), depth)
			alike = alike && list[i].sort == list[0].sort
		}
	}
	sortRanked(list, spare)
	for from := 0; from < len(list); {
		to := from + 1
		for to < len(list) && list[to].sort == list[from].sort {
			to++
		}
		o.sortFrom(list[from:to], spare[from:to], depth, limit, key)
		from = to
	}
}

func compareSort(a, b RankedEntry) int { return cmp.Compare(a.sort, b.sort) }

// sortRanked sorts by the numbers. spare is as long as list.
func sortRanked(list, spare []RankedEntry) {
	switch {
	case len(list) < minRadix:
		slices.SortFunc(list, compareSort)
	case !slices.IsSortedFunc(list, compareSort):
		radixSort(list, spare)
	}
}

// radixSort sorts by single bytes of the numbers, from the last to the first, and
// leaves out bytes that are the same in all numbers. It takes a tenth of the time
// of a sort by comparison. The first four bytes that differ distinguish nearly all
// numbers: the rest is sorted by comparison.
func radixSort(list, spare []RankedEntry) {
	var differ uint64
	for _, r := range list {
		differ |= r.sort ^ list[0].sort
	}
	var shifts []int // the last byte first
	for shift := 56; shift >= 0 && len(shifts) < 4; shift -= 8 {
		if byte(differ>>shift) != 0 {
			shifts = append(shifts, shift)
		}
	}
	slices.Reverse(shifts)
	from, to := list, spare
	for _, shift := range shifts {
		var counts [256]uint32
		for _, r := range from {
			counts[byte(r.sort>>shift)]++
		}
		at := uint32(0)
		for value, n := range counts {
			counts[value], at = at, at+n
		}
		for _, r := range from {
			value := byte(r.sort >> shift)
			to[counts[value]] = r
			counts[value]++
		}
		from, to = to, from
	}
	if &from[0] != &list[0] {
		copy(list, from)
	}
	sortAlike(list, shifts[0])
}

// sortAlike sorts entries that lie together because their numbers differ only in
// bits below shift.
func sortAlike(list []RankedEntry, shift int) {
	for from := 0; from < len(list); {
		to, sorted := from+1, true
		for to < len(list) && list[to].sort>>shift == list[from].sort>>shift {
			sorted = sorted && list[to-1].sort <= list[to].sort
			to++
		}
		if !sorted {
			slices.SortFunc(list[from:to], compareSort)
		}
		from = to
	}
}

// digitsAt returns the eight bytes of key from at on as a number that sorts like
// them. Zero padding can make the numbers of different keys equal, but never puts
// them into the wrong order.
func digitsAt(key []byte, at int) uint64 {
	if len(key) >= at+8 {
		return binary.BigEndian.Uint64(key[at:])
	}
	var b [8]byte
	if at < len(key) {
		copy(b[:], key[at:])
	}
	return binary.BigEndian.Uint64(b[:])
}

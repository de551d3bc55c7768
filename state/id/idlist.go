package id

import (
	"slices"
	"unsafe"
)

// List is a list of packed ids in one piece of memory. It is used again after
// Reset and then allocates nothing. The zero value is an empty list. It has one
// owner at a time.
type List struct {
	arena []byte
	ends  []uint32
}

// Len is the number of ids.
func (l *List) Len() int { return len(l.ends) }

// Grow makes room for n more ids of a UUID's size.
func (l *List) Grow(n int) {
	l.arena, l.ends = slices.Grow(l.arena, n*uuidPackLen), slices.Grow(l.ends, n)
}

// At returns the i-th id as a view into the list: it holds until Reset. Clone
// it (strings.Clone) to keep it longer.
func (l *List) At(i int) ID {
	start := uint32(0)
	if i > 0 {
		start = l.ends[i-1]
	}
	b := l.arena[start:l.ends[i]]
	return ID(unsafe.String(unsafe.SliceData(b), len(b))) //nolint:gosec // the arena is not written below its end before Reset
}

// Append adds a valid id. A list holds up to 4 GiB.
func (l *List) Append(id ID) {
	l.arena = append(l.arena, id...)
	l.ends = append(l.ends, uint32(len(l.arena)))
}

// AppendBytes is Append for an id that lies in a key.
func (l *List) AppendBytes(id []byte) {
	l.arena = append(l.arena, id...)
	l.ends = append(l.ends, uint32(len(l.arena)))
}

// Reset empties the list and keeps its memory.
func (l *List) Reset() { l.arena, l.ends = l.arena[:0], l.ends[:0] }

// Bytes is all ids one after the other, as [Read] reads them: a view that
// holds until Reset.
func (l *List) Bytes() []byte { return l.arena }

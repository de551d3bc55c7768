package extsort

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
)

// Keys that begin alike are divided into ranges first, each of which the caller
// sorts in memory later: to merge sorted runs of such keys would take a comparison
// of whole keys on each of several levels. The bounds of the ranges are guessed
// from a sample. A wrong guess costs time only: a range that does not fit into
// memory is sorted in runs.
//
// All ranges share one file. Its blocks are those of a run; each holds keys of one
// range, without values.
const (
	maxRanges = 256
	// minSample is the smallest number of sample keys for which a range is made.
	minSample = 16
)

// Ranges divide keys into ranges and write them to a file. They have one owner.
type Ranges struct {
	f      File
	at     int64 // end of the file
	tree   *splitTree
	ranges []Range
	block  int // a block ends behind the key that reaches this size
}

// Range is one range of keys on disk.
type Range struct {
	buf    []byte // header and block, not written yet
	blocks []rangeBlock
	keys   int64
	bytes  int64 // of the blocks
}

// rangeBlock locates a block in the file, its header included.
type rangeBlock struct {
	at   int64
	size int
}

// NewRanges returns ranges that take f over. The keys of sample, which it sorts,
// determine the bounds. Buffers for all ranges take memory bytes.
func NewRanges(f File, sample *KeyBuffer, memory int) *Ranges {
	n := max(min(maxRanges, len(sample.spans)/minSample), 1)
	p := &Ranges{f: f, ranges: make([]Range, n), block: memory / n}
	splitters := make([][]byte, 0, n-1)
	sorted := sample.Sorted()
	for i := 1; i < n; i++ {
		splitters = append(splitters, sample.Key(sorted[i*len(sorted)/n].Entry))
	}
	p.tree = newSplitTree(splitters, 0, 0)
	return p
}

// Add appends a key to its range.
func (p *Ranges) Add(key []byte) error {
	d := &p.ranges[p.tree.findRange(key)]
	if d.buf == nil {
		d.buf = make([]byte, runHeader, runHeader+p.block+p.block/8)
	}
	d.buf = append(binary.AppendUvarint(d.buf, uint64(len(key))), key...)
	d.keys++
	if len(d.buf) < runHeader+p.block {
		return nil
	}
	return p.flushRange(d)
}

func (p *Ranges) flushRange(d *Range) error {
	if len(d.buf) <= runHeader {
		return nil
	}
	sealBlock(d.buf)
	if _, err := p.f.Write(d.buf); err != nil {
		return fmt.Errorf("write range of keys: %w", err)
	}
	d.blocks = append(d.blocks, rangeBlock{p.at, len(d.buf)})
	p.at, d.bytes = p.at+int64(len(d.buf)), d.bytes+int64(len(d.buf))
	d.buf = d.buf[:runHeader]
	return nil
}

// All returns the ranges, in the order of their keys.
func (p *Ranges) All() []Range { return p.ranges }

// Reader returns a reader of the ranges whose buffers take limit bytes. Call it
// after Finish.
func (p *Ranges) Reader(limit int) RangeReader { return RangeReader{f: p.f, limit: limit} }

// Close closes the file.
func (p *Ranges) Close() error { return p.f.Close() }

// Size returns how many bytes of the file the range takes.
func (d *Range) Size() int64 { return d.bytes }

// Finish writes the keys that are still in buffers, and releases the buffers.
func (p *Ranges) Finish() error {
	for i := range p.ranges {
		if err := p.flushRange(&p.ranges[i]); err != nil {
			return err
		}
		p.ranges[i].buf = nil
	}
	return nil
}

// KeyBuffer holds keys in memory and sorts them. The zero value is empty.
type KeyBuffer struct {
	arena  []byte
	spans  []keySpan
	sorter Sorter
}

type keySpan struct{ at, end uint32 }

// spanBytes is the memory that a key takes beside the arena once the buffer is
// sorted.
const spanBytes = 8 + 2*16

func (b *KeyBuffer) clearKeys() { b.arena, b.spans = b.arena[:0], b.spans[:0] }

func (b *KeyBuffer) memorySize() int { return len(b.arena) + spanBytes*len(b.spans) }

// Key returns the i-th key that was added, as a view.
func (b *KeyBuffer) Key(i uint32) []byte {
	s := b.spans[i]
	return b.arena[s.at:s.end]
}

// Add appends a copy of key.
func (b *KeyBuffer) Add(key []byte) {
	at := uint32(len(b.arena))
	b.arena = append(b.arena, key...)
	b.spans = append(b.spans, keySpan{at, uint32(len(b.arena))})
}

// readBlock appends the keys of a block.
func (b *KeyBuffer) readBlock(f File, block rangeBlock) error {
	from := len(b.arena)
	b.arena = slices.Grow(b.arena, block.size)[:from+block.size]
	data := b.arena[from:]
	if _, err := f.ReadAt(data, block.at); err != nil {
		return fmt.Errorf("read range of keys: %w", err)
	}
	size, sum := parseBlockHeader(data)
	if data = data[runHeader:]; size != len(data) || crc32.Checksum(data, castagnoli) != sum {
		return fmt.Errorf("read range of keys: %w", ErrDamaged)
	}
	for at := from + runHeader; len(data) > 0; {
		n, m := binary.Uvarint(data)
		if m <= 0 || n > uint64(len(data)-m) {
			return fmt.Errorf("read range of keys: %w", ErrDamaged)
		}
		b.spans = append(b.spans, keySpan{uint32(at + m), uint32(at + m + int(n))})
		at, data = at+m+int(n), data[m+int(n):]
	}
	return nil
}

// Sorted returns the numbers of the keys, in the order of the keys. The list holds
// until the next call.
func (b *KeyBuffer) Sorted() []RankedEntry {
	return b.sorter.Sort(len(b.spans), b.commonPrefixLen(), b.Key)
}

// commonPrefixLen returns the length of the longest prefix that all keys share.
func (b *KeyBuffer) commonPrefixLen() int {
	if len(b.spans) == 0 {
		return 0
	}
	first := b.Key(0)
	for i := range b.spans {
		if key := b.Key(uint32(i)); !bytes.HasPrefix(key, first) {
			first = first[:commonPrefix(first, key)]
		}
	}
	return len(first)
}

func commonPrefix(a, b []byte) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// RangeReader reads ranges back. Goroutines may share it.
type RangeReader struct {
	f     File
	limit int // bytes of memory that a buffer may take
}

// EachBuffer reads the keys of a range into buffer and calls do each time that buffer is
// full, and at the end.
func (r *RangeReader) EachBuffer(d *Range, buffer *KeyBuffer, do func() error) error {
	buffer.clearKeys()
	for i, block := range d.blocks {
		if err := buffer.readBlock(r.f, block); err != nil {
			return err
		}
		if i+1 < len(d.blocks) && buffer.memorySize() < r.limit {
			continue
		}
		if err := do(); err != nil {
			return err
		}
		buffer.clearKeys()
	}
	return nil
}

// FitsBuffer reports whether all keys of a range fit into one buffer.
func (r *RangeReader) FitsBuffer(d *Range) bool {
	return d.bytes+spanBytes*d.keys < int64(r.limit)
}

package extsort

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
)

// A load's join keys are divided into ranges, each of which is sorted in memory
// later and written into tables as it is: sorted runs of them would have to be
// merged with a comparison of whole keys for each of several levels, for the keys
// of one restaurant begin alike. The ranges are guessed from the first chunk. A
// wrong guess, as where restaurants come one after the other, costs time only: a
// range that is too large is sorted in runs.
//
// All ranges share a file of blocks as in a run, each of one range; the
// records have no values.
const (
	maxRanges = 256
	// minSample is how many rows of the first chunk a range stands for at least.
	minSample = 16
)

// Ranges are the ranges and their file, which is written by one goroutine.
type Ranges struct {
	f      File
	at     int64 // end of the file
	tree   *splitTree
	ranges []Range
	block  int // a block ends behind the record that reaches this
}

// Range is one range.
type Range struct {
	buf    []byte // header and block, not written yet
	blocks []rangeBlock
	keys   int64
	bytes  int64 // of the blocks
}

// rangeBlock is where a block lies, with its header.
type rangeBlock struct {
	at   int64
	size int
}

// NewRanges divides by the keys of a sample, which it sorts. Buffers take
// memory bytes.
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

// Reader returns a reader of the ranges whose bags take limit bytes. Call it after
// end.
func (p *Ranges) Reader(limit int) RangeReader { return RangeReader{f: p.f, limit: limit} }

// Close closes the file.
func (p *Ranges) Close() error { return p.f.Close() }

// Size is how many bytes of the file the range takes.
func (d *Range) Size() int64 { return d.bytes }

// Finish writes what is left of all ranges and gives their buffers back.
func (p *Ranges) Finish() error {
	for i := range p.ranges {
		if err := p.flushRange(&p.ranges[i]); err != nil {
			return err
		}
		p.ranges[i].buf = nil
	}
	return nil
}

// KeyBuffer holds keys in memory and sorts them.
type KeyBuffer struct {
	arena []byte
	spans []keySpan
	order Sorter
}

type keySpan struct{ at, end uint32 }

// spanBytes is what a key takes beside the arena once the bag is sorted.
const spanBytes = 8 + 2*16

func (b *KeyBuffer) clearKeys() { b.arena, b.spans = b.arena[:0], b.spans[:0] }

func (b *KeyBuffer) memorySize() int { return len(b.arena) + spanBytes*len(b.spans) }

func (b *KeyBuffer) Key(i uint32) []byte {
	s := b.spans[i]
	return b.arena[s.at:s.end]
}

func (b *KeyBuffer) Add(key []byte) {
	at := uint32(len(b.arena))
	b.arena = append(b.arena, key...)
	b.spans = append(b.spans, keySpan{at, uint32(len(b.arena))})
}

// readBlock adds the keys of a block.
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

// Sorted gives the keys in order.
func (b *KeyBuffer) Sorted() []RankedEntry {
	return b.order.Sort(len(b.spans), b.commonPrefixLen(), b.Key)
}

// commonPrefixLen is how many bytes all keys begin with alike.
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

// RangeReader reads ranges back. It may be shared.
type RangeReader struct {
	f     File
	limit int // what a bag may take
}

// EachBuffer calls do with bags of all keys of a range, each as large as it may be.
func (r *RangeReader) EachBuffer(d *Range, bag *KeyBuffer, do func() error) error {
	bag.clearKeys()
	for i, block := range d.blocks {
		if err := bag.readBlock(r.f, block); err != nil {
			return err
		}
		if i+1 < len(d.blocks) && bag.memorySize() < r.limit {
			continue
		}
		if err := do(); err != nil {
			return err
		}
		bag.clearKeys()
	}
	return nil
}

// FitsBuffer says whether a range is one bag.
func (r *RangeReader) FitsBuffer(d *Range) bool {
	return d.bytes+spanBytes*d.keys < int64(r.limit)
}

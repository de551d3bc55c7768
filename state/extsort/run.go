package extsort

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// A run is a sequence of sorted records on disk. One process writes it once and
// reads it once. It is a part of a plain file (see Runs), because to build a table
// of Pebble's and to iterate over it costs several times as much:
//
//	┌────────────┬─────────┬────────┐
//	│ length u32 │ crc u32 │ block  │   again and again; the checksum is CRC-32C
//	└────────────┴─────────┴────────┘
//	block: ┌───────────────┬─────────────────┬─────┬───────┐
//	       │ key length uv │ value length uv │ key │ value │   again and again
//	       └───────────────┴─────────────────┴─────┴───────┘
//
// Values may be empty.
const (
	runBlock  = 64 << 10 // a block ends behind the record that reaches this size
	runHeader = 4 + 4
)

// RunWriter writes the records of one run.
type RunWriter struct {
	f       io.Writer
	written int64
	buf     []byte // header and block that is not written yet
}

func newRunWriter(f io.Writer) *RunWriter {
	return &RunWriter{f: f, buf: make([]byte, runHeader, runHeader+runBlock+runBlock/8)}
}

// Add appends a record. Keys must ascend.
func (w *RunWriter) Add(key, value []byte) error {
	w.buf = binary.AppendUvarint(w.buf, uint64(len(key)))
	w.buf = binary.AppendUvarint(w.buf, uint64(len(value)))
	w.buf = append(append(w.buf, key...), value...)
	if len(w.buf) >= runHeader+runBlock {
		return w.flushBlock()
	}
	return nil
}

// flushBlock writes the block that is being filled; the last one ends the run. It
// does not sync: a sort that a crash interrupts begins anew.
func (w *RunWriter) flushBlock() error {
	if len(w.buf) == runHeader {
		return nil
	}
	sealBlock(w.buf)
	n, err := w.f.Write(w.buf)
	w.written += int64(n)
	w.buf = w.buf[:runHeader]
	return err
}

// sealBlock fills in the header, for which buf has room before the block.
func sealBlock(buf []byte) {
	block := buf[runHeader:]
	binary.BigEndian.PutUint32(buf, uint32(len(block)))
	binary.BigEndian.PutUint32(buf[4:], crc32.Checksum(block, castagnoli))
}

// parseBlockHeader returns the length of a block and its checksum.
func parseBlockHeader(header []byte) (size int, sum uint32) {
	return int(binary.BigEndian.Uint32(header)), binary.BigEndian.Uint32(header[4:])
}

// runReader reads a run from its beginning.
type runReader struct {
	f           io.Reader
	block       []byte // the block that is being read; records are views of it
	rest        []byte // the part of block behind the current record
	key         []byte // of the current record; nil at the end of the run
	value       []byte
	firstDigits uint64 // digitsAt(key, 0)
}

// nextRecord moves to the next record.
func (r *runReader) nextRecord() error {
	if len(r.rest) == 0 {
		if end, err := r.readBlock(); end || err != nil {
			r.key, r.value = nil, nil
			return err
		}
	}
	keyLen, n := binary.Uvarint(r.rest)
	valueLen, m := binary.Uvarint(r.rest[max(n, 0):])
	if n <= 0 || m <= 0 || keyLen+valueLen > uint64(len(r.rest)-n-m) {
		return fmt.Errorf("read sorted run: %w", ErrDamaged)
	}
	from := r.rest[n+m:]
	r.key, r.value, r.rest = from[:keyLen], from[keyLen:keyLen+valueLen], from[keyLen+valueLen:]
	r.firstDigits = digitsAt(r.key, 0)
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrDamaged means that a file of the sort does not hold the bytes that were written to
// it a moment ago. No stored data is affected.
var ErrDamaged = errors.New("what was written a moment ago reads otherwise; check the disk")

// readBlock reads the next block into memory; end is true behind the last one.
func (r *runReader) readBlock() (end bool, err error) {
	var header [runHeader]byte
	if _, err := io.ReadFull(r.f, header[:]); errors.Is(err, io.EOF) {
		return true, nil
	} else if err != nil {
		return false, fmt.Errorf("read sorted run: %w", err)
	}
	size, sum := parseBlockHeader(header[:])
	if cap(r.block) < size {
		r.block = make([]byte, size)
	}
	r.block = r.block[:size]
	if _, err := io.ReadFull(r.f, r.block); err != nil {
		return false, fmt.Errorf("read sorted run: %w", err)
	}
	if crc32.Checksum(r.block, castagnoli) != sum {
		return false, fmt.Errorf("read sorted run: %w", ErrDamaged)
	}
	r.rest = r.block
	return false, nil
}

// isBefore reports whether r's current record sorts before other's. Readers at the
// end of their run sort last.
func (r *runReader) isBefore(other *runReader) bool {
	switch {
	case r.key == nil || other.key == nil:
		return other.key == nil && r.key != nil
	case r.firstDigits != other.firstDigits:
		return r.firstDigits < other.firstDigits
	}
	return bytes.Compare(r.key, other.key) < 0
}

// runMerger reads runs as one sorted sequence. It is a loser tree: each node of a
// tree over the readers remembers the reader that lost the comparison there, so
// that the next record is found with one comparison for each level.
//
// Where runs hardly overlap, for example where rows come in the order of their
// keys, one reader wins again and again. Then the winner is compared only with the
// best of the other readers.
type runMerger struct {
	readers   []*runReader
	loserTree []int      // index of a reader by node, from 1; loserTree[0] is the winner
	streak    int        // how many times in a row the winner has won
	rival     *runReader // the best of the other readers; nil: not determined yet
}

// longStreak is the number of wins in a row from which on the rival is determined.
const longStreak = 4

// newRunMerger returns a merger of at least one run, at its first record.
func newRunMerger(runs []io.Reader) (*runMerger, error) {
	m := &runMerger{loserTree: make([]int, len(runs))}
	for _, f := range runs {
		r := &runReader{f: f}
		m.readers = append(m.readers, r)
		if err := r.nextRecord(); err != nil {
			return nil, err
		}
	}
	m.loserTree[0] = m.playNode(1)
	return m, nil
}

// playNode compares the readers below a node and returns the index of the winner.
// The leaves are the nodes from len(readers) on.
func (m *runMerger) playNode(node int) int {
	if node >= len(m.readers) {
		return node - len(m.readers)
	}
	winner, loser := m.playNode(2*node), m.playNode(2*node+1)
	if m.readers[loser].isBefore(m.readers[winner]) {
		winner, loser = loser, winner
	}
	m.loserTree[node] = loser
	return winner
}

// currentRecord returns the current record, valid until the next call of
// nextRecord. The key is nil at the end.
func (m *runMerger) currentRecord() (key, value []byte) {
	r := m.readers[m.loserTree[0]]
	return r.key, r.value
}

// nextRecord moves to the next record.
func (m *runMerger) nextRecord() error {
	winner := m.loserTree[0]
	r := m.readers[winner]
	if err := r.nextRecord(); err != nil {
		return err
	}
	if m.rival != nil && r.isBefore(m.rival) {
		return nil
	}
	for node := (winner + len(m.readers)) / 2; node > 0; node /= 2 {
		if m.readers[m.loserTree[node]].isBefore(m.readers[winner]) {
			winner, m.loserTree[node] = m.loserTree[node], winner
		}
	}
	m.rival = nil
	if m.loserTree[0] != winner {
		m.loserTree[0], m.streak = winner, 0
	} else if m.streak++; m.streak >= longStreak {
		m.rival = m.runnerUp()
	}
	return nil
}

// runnerUp returns the best of the other readers: the best of those that lost
// against the winner itself. It is nil where the winner is the only reader.
func (m *runMerger) runnerUp() (best *runReader) {
	for node := (m.loserTree[0] + len(m.readers)) / 2; node > 0; node /= 2 {
		if r := m.readers[m.loserTree[node]]; best == nil || r.isBefore(best) {
			best = r
		}
	}
	return best
}

package extsort

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// A run is a sorted part of a load on disk, written once and read once by the
// same process. It is a part of a plain file (Runs), because building a table
// and iterating over it costs several times as much as this:
//
//	┌────────────┬─────────┬────────┐
//	│ length u32 │ crc u32 │ block  │   again and again; the checksum is CRC-32C
//	└────────────┴─────────┴────────┘
//	block: ┌───────────────┬─────────────────┬─────┬───────┐
//	       │ key length uv │ value length uv │ key │ value │   again and again
//	       └───────────────┴─────────────────┴─────┴───────┘
//
// Keys come without the keyspace and the generation.
const (
	runBlock  = 64 << 10 // a block ends behind the record that reaches this
	runHeader = 4 + 4
)

// RunWriter writes a run.
type RunWriter struct {
	f       io.Writer
	written int64
	buf     []byte // header and block
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

// flushBlock ends the run. It is not synced: a load that is cut begins anew.
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

// sealBlock fills in the header that a block was left room for.
func sealBlock(buf []byte) {
	block := buf[runHeader:]
	binary.BigEndian.PutUint32(buf, uint32(len(block)))
	binary.BigEndian.PutUint32(buf[4:], crc32.Checksum(block, castagnoli))
}

// parseBlockHeader is the length of a block and its checksum.
func parseBlockHeader(header []byte) (size int, sum uint32) {
	return int(binary.BigEndian.Uint32(header)), binary.BigEndian.Uint32(header[4:])
}

// runReader reads a run from its beginning.
type runReader struct {
	f           io.Reader
	block       []byte // of this the records are views
	rest        []byte // of the block
	key         []byte // of the record that it stands on; nil: it is at the end
	value       []byte
	firstDigits uint64 // its first digits
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

// ErrDamaged is no ErrCorrupt: the store is none the worse for it.
var ErrDamaged = errors.New("what was written a moment ago reads otherwise; check the disk")

// readBlock reads the next block.
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

// isBefore orders readers by the records that they stand on, those at their end
// last.
func (r *runReader) isBefore(other *runReader) bool {
	switch {
	case r.key == nil || other.key == nil:
		return other.key == nil && r.key != nil
	case r.firstDigits != other.firstDigits:
		return r.firstDigits < other.firstDigits
	}
	return bytes.Compare(r.key, other.key) < 0
}

// runMerger reads runs as one sorted sequence. It is a tournament: in each node of
// a tree over the readers lies the one that lost there, so that the next record
// is found with one comparison for each level.
//
// Where runs hardly overlap, as where rows come in the order of their keys, one
// reader wins again and again. The best of the others is then all that it has to
// be compared with.
type runMerger struct {
	readers   []*runReader
	loserTree []int      // by node, from 1; the root's winner is losers[0]
	streak    int        // how often the winner has won
	rival     *runReader // the best of the others; nil: it was not looked for
}

// longStreak is from when on the rival is looked for.
const longStreak = 4

// newRunMerger reads the runs, at least one, and stands on the first record.
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

// playNode holds the tournament below a node and returns the winner. The leaves are
// the nodes from len(readers) on.
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

// currentRecord is the record that it stands on, valid until the next move; the key is
// nil at the end.
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

// runnerUp is the best of those that the winner has beaten itself, and so of all
// others; nil if there are none.
func (m *runMerger) runnerUp() (best *runReader) {
	for node := (m.loserTree[0] + len(m.readers)) / 2; node > 0; node /= 2 {
		if r := m.readers[m.loserTree[node]]; best == nil || r.isBefore(best) {
			best = r
		}
	}
	return best
}

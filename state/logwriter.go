package state

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"dinnerbell/state/id"
)

// LogOptions bound the subscription log.
type LogOptions struct {
	// Bytes is how much the log holds, counted as it is written; 0: there is no log.
	Bytes int64
	// Age is how long entries stay; 0: for ever.
	Age time.Duration
	// KeepBytes of the newest entries stay whatever their age.
	KeepBytes int64
}

const (
	// logSegments is how many segments the log has at its full size or age. One more
	// segment is under way. The log is trimmed by whole segments, and holds at least
	// this part less than it may.
	logSegments = 64
	// minSegmentBytes keeps the segments of a small log from being tiny.
	minSegmentBytes = 64 << 10
	// defaultPieceBytes is the size at which the entries of one transaction are cut into
	// pieces, and at which small blobs are written again as one, so that the number of
	// keys is bounded too. It is about that of a block of a table: a value is one block at
	// least, and Pebble looks for a flipped bit in a time that grows with the square of the
	// block.
	defaultPieceBytes = 32 << 10
	// minMerged is how many small blobs are worth a merge.
	minMerged = 4
)

// logWriter writes the log in the batches that write the rows. Its lock is the store's
// writeMu.
type logWriter struct {
	o     LogOptions
	build logBuilder
	logState
	next logState // what a batch under way makes of logState
	// tail are the transactions of the last blobs, and small their keys, until they
	// become one blob.
	tail  []byte
	small []id.LSN
	blob  []byte // scratch
	value []byte // scratch
}

// logState is what the log is, beside its entries.
type logState struct {
	rec       logRecord
	segments  []logSegment // without the one under way, oldest first
	total     int64        // bytes of segments
	bytes     int64        // of the segment under way
	began     int64        // when that began
	tailFlags byte
	// last is the end of the last batch with entries, or a later position.
	last id.LSN
	// parts is how many parts of the transaction under way are in the log.
	parts uint32
	// dropped: the log does not hold all parts of the transaction under way.
	dropped bool
}

func (l *logWriter) isOn() bool { return l.o.Bytes > 0 }

// segmentBytes returns the size at which a segment ends.
func (l *logWriter) segmentBytes() int64 {
	return max(min(minSegmentBytes, l.o.Bytes/4), l.o.Bytes/logSegments)
}

// addBatch adds the collected entries and the record to a batch that brings the store
// from the state record now to next. It leaves the new state in l.next.
func (l *logWriter) addBatch(batch *pebble.Batch, now, next stateRecord, end id.LSN, clock int64) error {
	l.next = l.logState
	var err error
	if end == 0 {
		err = l.addPart(batch, now.end, clock)
	} else {
		err = l.addEnd(batch, now.end, end, clock)
	}
	if err == nil {
		err = l.trimSegments(batch, clock)
	}
	if err == nil && (end == 0 || l.next.rec != l.rec) {
		err = l.writeRecord(batch, next)
	}
	if err != nil {
		l.forgetTail()
	}
	return err
}

// forgetTail leaves the last small blobs as they are.
func (l *logWriter) forgetTail() { l.tail, l.small = l.tail[:0], l.small[:0] }

func (l *logWriter) writeRecord(batch *pebble.Batch, of stateRecord) error {
	l.value = l.next.rec.appendRecord(l.value[:0], of)
	return batch.Set(keyLogRecord, l.value, nil)
}

// addPart adds the entries of a part of the transaction that begins at the position from.
func (l *logWriter) addPart(batch *pebble.Batch, from id.LSN, clock int64) error {
	if l.build.isEmpty() {
		return nil
	}
	err := l.addPieces(batch, from, clock)
	if rest := l.build.transactions(); err == nil && len(rest) > 0 {
		err = l.addPiece(batch, from, rest, clock)
	}
	return err
}

// addPieces adds the pieces of a transaction that are already cut.
func (l *logWriter) addPieces(batch *pebble.Batch, from id.LSN, clock int64) error {
	at := 0
	for _, cut := range l.build.cuts {
		if err := l.addPiece(batch, from, l.build.buf[at:cut], clock); err != nil {
			return err
		}
		at = cut
	}
	return nil
}

// addPiece adds the next blob of a transaction that is not at its end. If the log cannot
// hold the transaction, it is dropped.
func (l *logWriter) addPiece(batch *pebble.Batch, from id.LSN, piece []byte, clock int64) error {
	n := &l.next
	if n.dropped {
		return nil
	}
	if n.parts == 0 && n.bytes > 0 {
		if err := l.endSegment(batch, from, clock); err != nil {
			return err
		}
	}
	l.forgetTail()
	n.parts++
	if err := l.setBlob(batch, from, n.parts, l.build.flags, piece, clock); err != nil {
		return err
	}
	if n.bytes <= l.o.Bytes {
		return nil
	}
	n.dropped = true
	return l.dropEntries(batch, from, clock)
}

// addEnd adds the entries of whole transactions, or those of the last part.
func (l *logWriter) addEnd(batch *pebble.Batch, from, end id.LSN, clock int64) error {
	if err := l.addPieces(batch, from, clock); err != nil {
		return err
	}
	n := &l.next
	dropped, parts := n.dropped, n.parts
	n.dropped, n.parts = false, 0
	if dropped || parts > 0 || len(l.build.transactions()) > 0 {
		n.last = end
	}
	var err error
	if dropped {
		err = l.dropEntries(batch, end, clock)
	} else if len(l.build.transactions()) > 0 {
		err = l.addToTail(batch, clock)
	}
	if err != nil {
		return err
	}
	spread := int64(l.o.Age/time.Second) / logSegments
	if n.bytes >= l.segmentBytes() || n.bytes > 0 && l.o.Age > 0 && clock-n.began > spread {
		return l.endSegment(batch, end, clock)
	}
	return nil
}

// addToTail adds whole transactions as a blob of their own.
func (l *logWriter) addToTail(batch *pebble.Batch, clock int64) error {
	transactions := l.build.transactions()
	if len(l.small) == 0 {
		l.next.tailFlags = 0
	}
	l.next.tailFlags |= l.build.flags
	l.tail, l.small = append(l.tail, transactions...), append(l.small, l.build.first)
	err := l.setBlob(batch, l.build.first, 0, l.build.flags, transactions, clock)
	if err == nil && len(l.tail) >= l.build.pieceBytes {
		err = l.mergeTail(batch, clock)
	}
	return err
}

// mergeTail writes the last blobs again as one, if they are small.
func (l *logWriter) mergeTail(batch *pebble.Batch, clock int64) error {
	defer l.forgetTail()
	count := len(l.small)
	if count < minMerged {
		return nil
	}
	first, last := l.small[0], l.small[count-1]
	if err := batch.DeleteRange(appendLogKey(nil, first, 1), appendLogKey(nil, last, 1), nil); err != nil {
		return err
	}
	l.next.bytes -= int64(len(l.tail)) + int64(count)*blobSize(0)
	return l.setBlob(batch, first, 0, l.next.tailFlags, l.tail, clock)
}

// blobSize is what a blob counts in the size of the log.
func blobSize(transactions int) int64 {
	return int64(transactions + blobHeadLen + blobSumLen + logKeyLen + keyOverhead)
}

func (l *logWriter) setBlob(batch *pebble.Batch, lsn id.LSN, part uint32, flags byte, transactions []byte, clock int64) error {
	if l.next.bytes == 0 {
		l.next.began = clock
	}
	l.next.bytes += blobSize(len(transactions))
	l.blob = appendBlob(l.blob[:0], flags, transactions)
	key := appendLogKey(make([]byte, 0, logKeyLen), lsn, part)
	return batch.Set(key, l.blob, nil)
}

// endSegment ends the segment under way at the end of a transaction.
func (l *logWriter) endSegment(batch *pebble.Batch, end id.LSN, clock int64) error {
	if err := l.mergeTail(batch, clock); err != nil {
		return err
	}
	n := &l.next
	g := logSegment{end: end, bytes: n.bytes, at: clock}
	n.segments = append(slices.Clip(n.segments), g)
	n.total += g.bytes
	n.bytes = 0
	return batch.Set(segmentKey(end), g.encodeSegment(), nil)
}

// trimSegments drops the oldest segments that are too much or too old.
func (l *logWriter) trimSegments(batch *pebble.Batch, clock int64) error {
	n, old := &l.next, 0
	total := n.total
	for _, g := range n.segments {
		size := total + n.bytes
		aged := l.o.Age > 0 && clock-g.at > int64(l.o.Age/time.Second) && size-g.bytes >= l.o.KeepBytes
		if size <= l.o.Bytes && !aged {
			break
		}
		total -= g.bytes
		old++
	}
	return l.dropSegments(batch, old)
}

// dropSegments drops the oldest count segments.
func (l *logWriter) dropSegments(batch *pebble.Batch, count int) error {
	if count == 0 {
		return nil
	}
	n := &l.next
	last := n.segments[count-1]
	n.total -= totalBytes(n.segments[:count])
	n.segments = n.segments[count:]
	n.raiseFloor(last.end, last.at)
	return errors.Join(
		batch.DeleteRange([]byte{spaceLog}, appendLogKey(nil, last.end, 1), nil),
		batch.DeleteRange([]byte{spaceLogSegment}, segmentKey(last.end+1), nil))
}

// dropEntries drops everything that is in the log; floor is the position from which on
// the log goes on.
func (l *logWriter) dropEntries(batch *pebble.Batch, floor id.LSN, clock int64) error {
	n := &l.next
	n.segments, n.total, n.parts = nil, 0, 0
	l.forgetTail()
	n.bytes = 0
	n.raiseFloor(floor, clock)
	return batch.DeleteRange([]byte{spaceLog}, []byte{spaceLogSegment + 1}, nil)
}

func (n *logState) raiseFloor(floor id.LSN, since int64) {
	n.rec.floor, n.rec.since = max(n.rec.floor, floor), max(n.rec.since, since)
}

// restart drops the log in a batch that writes the state record next. Nobody knows which pairs
// differ in the new rows, so that even readers that handled all entries must not go on.
// handled is the last position of the history that readers may have handled.
func (l *logWriter) restart(batch *pebble.Batch, next stateRecord, history uint64, handled id.LSN, clock int64) error {
	l.next = l.logState
	l.next.dropped = false
	l.next.rec.floor, l.next.rec.history = 0, history // the positions of another history may be higher
	return errors.Join(l.dropEntries(batch, handled+1, clock), l.writeRecord(batch, next), batch.Set(keyState, next.encodeRecord(), nil))
}

// moveLog adds to batch what brings the log of a restored checkpoint from the state record
// was to r, which differs in the position. The log goes on if it is complete up to logEnd,
// and r stands there.
func moveLog(db *pebble.DB, batch *pebble.Batch, was, r stateRecord, logEnd id.LSN) error {
	value, err := getCopy(db, keyLogRecord)
	if err != nil || value == nil {
		return err
	}
	rec, fits := parseLogRecord(value, was)
	if !fits || logEnd != r.end {
		return batch.Delete(keyLogRecord, nil) // Open begins a new log
	}
	return batch.Set(keyLogRecord, rec.appendRecord(nil, r), nil)
}

// open reads the log of a store at the state record r. It begins a new log where the log
// has a hole.
func (l *logWriter) open(db *pebble.DB, r stateRecord, clock int64) (fits bool, err error) {
	value, err := getCopy(db, keyLogRecord)
	if err != nil {
		return false, err
	}
	rec, fits := parseLogRecord(value, r)
	if fits {
		l.rec = rec
		if err = l.readSegments(db); err == nil {
			err = l.readLastSegment(db, r.end)
		}
		if fits = !errors.Is(err, errBadLog); err != nil && fits {
			return false, err
		}
	}
	if fits {
		return true, nil
	}
	batch := db.NewBatch()
	defer batch.Close()
	l.logState = logState{}
	r.logged = true
	if err := errors.Join(l.restart(batch, r, rec.history, r.end, clock), batch.Commit(pebble.NoSync)); err != nil {
		return false, fmt.Errorf("begin subscription log: %w", err)
	}
	l.logState = l.next
	return value == nil, nil
}

func (l *logWriter) readSegments(db *pebble.DB) error {
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte{spaceLogSegment}, UpperBound: []byte{spaceLogSegment + 1}})
	if err != nil {
		return fmt.Errorf("read log segments: %w", err)
	}
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		var g logSegment
		g, err = parseSegment(it.Key(), it.Value())
		l.segments = append(l.segments, g)
	}
	l.total = totalBytes(l.segments)
	return errors.Join(err, it.Close())
}

// readLastSegment measures the segment under way, and counts the parts of a transaction
// that a crash has cut, at the position end.
func (l *logWriter) readLastSegment(db *pebble.DB, end id.LSN) error {
	from := id.LSN(0)
	l.began = l.rec.since
	if n := len(l.segments); n > 0 {
		from, l.began = l.segments[n-1].end, l.segments[n-1].at
	}
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: appendLogKey(nil, from, 1), UpperBound: []byte{spaceLog + 1}})
	if err != nil {
		return fmt.Errorf("read end of the log: %w", err)
	}
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		var lsn id.LSN
		var part uint32
		lsn, part, err = parseLogKey(it.Key())
		if part > 0 && lsn == end {
			l.parts = part
		}
		value := it.LazyValue()
		l.bytes += blobSize(value.Len() - blobHeadLen - blobSumLen)
	}
	return errors.Join(err, it.Close())
}

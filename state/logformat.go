package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"time"

	"dinnerbell/state/id"
)

// The subscription log is a record of which pairs (restaurant, client) came and went with
// which transaction of the source. Its keys and values:
//
//	key                                     value
//	┌────┬─────────┬──────────┐
//	│ 08 │ lsn u64 │ part u32 │            blob, see below
//	└────┴─────────┴──────────┘
//	┌────┬─────────┐                        ┌───────────┬────────┐
//	│ 09 │ end u64 │                        │ bytes u64 │ at i64 │ a segment, see logWriter
//	└────┴─────────┘                        └───────────┴────────┘
//
// A blob with part 0 holds transactions in the order of their end LSNs; lsn is the end
// of the first. A transaction that is applied in parts, or has many entries, has blobs for
// the parts before the last: there lsn is the position before the transaction, and part
// counts from 1. The blobs of parts belong to the first transaction of the next blob with part 0, so nobody
// can read them before the last part is written.
//
//	blob         │ flags │ transaction … │ crc u32 │
//	transaction  │ mark │ end │ time │ entries │ bytes │ entry … │
//	entry        │ head │ restaurant │ client │
//
// The numbers of a transaction are varints. end is 0 in the blob of a part; time is the
// commit time in microseconds, 0: unknown. Where the mark is 1, both are differences to
// the transaction before. An id is left out where the head says that it is that of the
// entry before.
//
// Both spaces lie before those of the rows. A new row mostly has the highest id of all. As
// long as nothing lies behind the rows, its key is beyond the last key of every table in
// Pebble, and the read before its write looks into none of them: behind the rows, the log
// made that read two and a half times as expensive, and a change by half.
const (
	spaceLog        = 0x08
	spaceLogSegment = 0x09
)

// LogKind is what a transaction did to a pair.
type LogKind uint8

// The kinds of entries.
const (
	// LogAppeared: a row has the pair that did not have it before. Another row may have
	// had it; and after a crash in the middle of a large transaction, so may the row.
	LogAppeared LogKind = iota + 1
	// LogGone: a row does not have the pair any more. Another row may still have it.
	LogGone
	// LogTruncated: the table was emptied. The entry has no ids.
	LogTruncated
)

// String returns a word for the kind.
func (k LogKind) String() string {
	switch k {
	case LogAppeared:
		return "appeared"
	case LogGone:
		return "gone"
	case LogTruncated:
		return "truncated"
	}
	return fmt.Sprintf("LogKind(%d)", uint8(k))
}

// LogEntry is one entry of the subscription log.
type LogEntry struct {
	// End is the end LSN of the transaction, Time its commit time, by the clock of the
	// source; the zero time if it is not known.
	End  id.LSN
	Time time.Time
	Kind LogKind
	// Restaurant and Client are both set, except with LogTruncated.
	Restaurant, Client id.ID
}

const (
	// blobTruncated: the blob holds an entry LogTruncated.
	blobTruncated = 1 << 0

	// The bits of an entry's head, above the kind.
	headKind           = 0x0f
	headSameRestaurant = 1 << 6
	headSameClient     = 1 << 7

	// The marks of a transaction.
	txAbsolute = 0
	txRelative = 1

	logKeyLen   = 1 + 8 + 4
	blobHeadLen = 1
	blobSumLen  = 4

	// keyOverhead is what a key costs beside its bytes, roughly, in the size that is
	// counted for a blob.
	keyOverhead = 16
)

func appendLogKey(dst []byte, lsn id.LSN, part uint32) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, spaceLog), uint64(lsn))
	return binary.BigEndian.AppendUint32(dst, part)
}

func parseLogKey(key []byte) (lsn id.LSN, part uint32, err error) {
	if len(key) != logKeyLen || key[0] != spaceLog {
		return 0, 0, fmt.Errorf("read log key %x: %w", key, errBadLog)
	}
	return id.LSN(binary.BigEndian.Uint64(key[1:])), binary.BigEndian.Uint32(key[9:]), nil
}

// logBuilder collects the entries of a batch of changes.
type logBuilder struct {
	buf   []byte // transactions
	flags byte
	first id.LSN // end of the first transaction in buf; 0: there is none
	after id.LSN // transactions that end up to here are in the log already

	// cuts are where pieces of the first transaction end in buf that get keys of their
	// own; none if mayCut is not set.
	cuts       []int
	mayCut     bool
	pieceBytes int // where pieces are cut

	// The transaction before in buf.
	end    id.LSN
	micros int64

	// The transaction under way.
	rest               []byte // its entries
	entries            uint64
	restaurant, client id.ID // of the last entry
}

// reset begins a batch at the position after. alone: the batch has one transaction, or a
// part of one.
func (l *logBuilder) reset(after id.LSN, alone bool) {
	const keep = 1 << 20
	buf := l.buf[:0]
	if cap(buf) > keep {
		buf = nil
	}
	*l = logBuilder{buf: buf, cuts: l.cuts[:0], rest: l.rest[:0], after: after, mayCut: alone, pieceBytes: l.pieceBytes}
}

// endTransaction ends the transaction under way. One without entries leaves nothing,
// unless keep is set.
func (l *logBuilder) endTransaction(t *TransactionEnd, keep bool) {
	if l.entries == 0 && len(l.cuts) == 0 && !keep || t.End != 0 && t.End <= l.after {
		l.beginPiece()
		return
	}
	micros := int64(0)
	if !t.Time.IsZero() {
		micros = t.Time.UnixMicro()
	}
	l.endPiece(t.End, micros)
	if l.first == 0 {
		l.first = t.End
	}
	l.end, l.micros = t.End, micros
}

// endPiece ends the piece under way and begins the next, or the next transaction.
func (l *logBuilder) endPiece(end id.LSN, micros int64) {
	mark := byte(txAbsolute)
	if l.end != 0 && l.micros != 0 && micros != 0 {
		mark, end, micros = txRelative, end-l.end, micros-l.micros
	}
	l.buf = binary.AppendUvarint(append(l.buf, mark), uint64(end))
	l.buf = binary.AppendVarint(l.buf, micros)
	l.buf = binary.AppendUvarint(l.buf, l.entries)
	l.buf = binary.AppendUvarint(l.buf, uint64(len(l.rest)))
	l.buf = append(l.buf, l.rest...)
	l.beginPiece()
}

func (l *logBuilder) beginPiece() { l.rest, l.entries, l.restaurant, l.client = l.rest[:0], 0, "", "" }

// transactions returns the transactions that were ended, without the pieces before the
// last of the first.
func (l *logBuilder) transactions() []byte {
	if n := len(l.cuts); n > 0 {
		return l.buf[l.cuts[n-1]:]
	}
	return l.buf
}

// isEmpty reports whether nothing was collected.
func (l *logBuilder) isEmpty() bool { return len(l.buf) == 0 }

// addEffect notes that a row that was old is now. In a repeated transaction the row may
// have been stored before, and is logged again.
func (l *logBuilder) addEffect(old, now storedRow, repeated bool) {
	same := old == now
	if same && !repeated {
		return
	}
	if !same && old.isSubscription() {
		l.addEntry(LogGone, old.restaurant, old.client)
	}
	if now.isSubscription() {
		l.addEntry(LogAppeared, now.restaurant, now.client)
	}
}

func (l *logBuilder) addTruncate() {
	l.flags |= blobTruncated
	l.rest = append(l.rest, byte(LogTruncated))
	l.entries++
}

func (l *logBuilder) addEntry(kind LogKind, restaurant, client id.ID) {
	head := byte(kind)
	if restaurant == l.restaurant {
		head |= headSameRestaurant
	}
	if client == l.client {
		head |= headSameClient
	}
	l.rest = append(l.rest, head)
	if head&headSameRestaurant == 0 {
		l.rest = append(l.rest, restaurant...)
	}
	if head&headSameClient == 0 {
		l.rest = append(l.rest, client...)
	}
	l.restaurant, l.client = restaurant, client
	l.entries++
	if l.mayCut && len(l.rest) >= l.pieceBytes {
		l.endPiece(0, 0)
		l.cuts = append(l.cuts, len(l.buf))
	}
}

// appendBlob appends a blob of transactions to dst.
func appendBlob(dst []byte, flags byte, transactions []byte) []byte {
	from := len(dst)
	dst = append(append(dst, flags), transactions...)
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[from:], castagnoli))
}

// logBlob reads a blob. Its entries hold views into the blob.
type logBlob struct {
	rest   []byte // transactions that are not read yet
	end    id.LSN // of the transaction before
	micros int64  // of the transaction before
}

// parseBlob checks the sum of a blob.
func parseBlob(value []byte) (logBlob, error) {
	n := len(value) - blobSumLen
	if n < blobHeadLen || crc32.Checksum(value[:n], castagnoli) != binary.BigEndian.Uint32(value[n:]) {
		return logBlob{}, fmt.Errorf("read blob of %d bytes: %w", len(value), errBadLog)
	}
	return logBlob{rest: value[blobHeadLen:n]}, nil
}

// logTransaction is one transaction of a blob.
type logTransaction struct {
	end     id.LSN
	micros  int64
	entries int
	rest    []byte // entries that are not read yet
	before  LogEntry
}

// next reads the next transaction; ok is false at the end of the blob.
func (b *logBlob) next() (t logTransaction, ok bool, err error) {
	if len(b.rest) == 0 {
		return t, false, nil
	}
	mark := b.rest[0]
	r := varintReader{rest: b.rest[1:]}
	t = logTransaction{end: id.LSN(r.uvarint()), micros: r.varint()}
	entries, size := r.uvarint(), r.uvarint()
	if r.bad || mark > txRelative || size > uint64(len(r.rest)) || entries > size {
		return t, false, fmt.Errorf("read transaction of the log: %w", errBadLog)
	}
	if mark == txRelative {
		t.end += b.end
		t.micros += b.micros
	}
	t.entries, t.rest = int(entries), r.rest[:size]
	b.rest, b.end, b.micros = r.rest[size:], t.end, t.micros
	return t, true, nil
}

// varintReader reads varints. bad is set where one is not whole.
type varintReader struct {
	rest []byte
	bad  bool
}

func (r *varintReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.rest)
	r.skip(n)
	return v
}

func (r *varintReader) varint() int64 {
	v, n := binary.Varint(r.rest)
	r.skip(n)
	return v
}

func (r *varintReader) skip(n int) {
	if n <= 0 {
		r.bad = true
		return
	}
	r.rest = r.rest[n:]
}

// first returns the first transaction of a blob.
func (b logBlob) first() (logTransaction, error) {
	t, ok, err := b.next()
	if err == nil && !ok {
		err = fmt.Errorf("read blob without transactions: %w", errBadLog)
	}
	return t, err
}

// next reads the next entry into e, as views into the blob. ok is false at the end.
func (t *logTransaction) next(e *LogEntry) (ok bool, err error) {
	if len(t.rest) == 0 {
		return false, nil
	}
	head := t.rest[0]
	t.rest = t.rest[1:]
	e.Kind = LogKind(head & headKind)
	switch e.Kind {
	case LogTruncated:
		e.Restaurant, e.Client = "", ""
		return true, nil
	case LogAppeared, LogGone:
	default:
		return false, fmt.Errorf("read entry of the log with head %x: %w", head, errBadLog)
	}
	for _, field := range []struct {
		same byte
		id   *id.ID
	}{{headSameRestaurant, &t.before.Restaurant}, {headSameClient, &t.before.Client}} {
		if head&field.same == 0 {
			n := id.PackedLen(t.rest)
			*field.id, t.rest = id.View(t.rest[:n]), t.rest[n:]
		}
		if *field.id == "" {
			return false, fmt.Errorf("read id in the log: %w", errBadLog)
		}
	}
	e.Restaurant, e.Client = t.before.Restaurant, t.before.Client
	return true, nil
}

// time returns the commit time.
func (t *logTransaction) time() time.Time {
	if t.micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(t.micros).UTC()
}

// The log record:
//
//	┌───────────┬───────────┬──────────────┬─────────────┬─────────┐
//	│ floor u64 │ since i64 │ state record │ history u64 │ crc u32 │
//	└───────────┴───────────┴──────────────┴─────────────┴─────────┘
//
// Every transaction that ends after floor and made a pair appear has its entries in the
// log. since is the time from which on that holds, by this machine's clock. history is
// left out while it is 0; see [LogStart].
//
// A state record without the mark logged was written by a program without the log, or by
// one with the log off: the log has a hole. A part of a transaction leaves no mark in the
// state record; it leaves a copy of the state record in the log record. So the log needs
// no format version of its own: a program that does not know it cannot mislead one that
// does.
type logRecord struct {
	floor   id.LSN
	since   int64 // seconds, as all times below
	history uint64
}

const (
	logRecordLen = 8 + 8 + recordLen + 4
	historyLen   = 8
)

var keyLogRecord = []byte{spaceMeta, 'l', 'o', 'g'}

func (r *logRecord) appendRecord(dst []byte, of stateRecord) []byte {
	from := len(dst)
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.floor))
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.since))
	dst = of.appendRecord(dst)
	if r.history != 0 {
		dst = binary.BigEndian.AppendUint64(dst, r.history)
	}
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[from:], castagnoli))
}

// parseLogRecord reads the record. ok is false if the log has a hole at the state record
// of, or if there is no log. r.history is right in the first case too.
func parseLogRecord(b []byte, of stateRecord) (r logRecord, ok bool) {
	sum := len(b) - 4
	if len(b) != logRecordLen && len(b) != logRecordLen+historyLen || crc32.Checksum(b[:sum], castagnoli) != binary.BigEndian.Uint32(b[sum:]) {
		return r, false
	}
	r = logRecord{floor: id.LSN(binary.BigEndian.Uint64(b)), since: int64(binary.BigEndian.Uint64(b[8:]))}
	if len(b) > logRecordLen {
		r.history = binary.BigEndian.Uint64(b[sum-historyLen:])
	}
	return r, of.logged || of.torn && bytes.Equal(b[16:16+recordLen], of.encodeRecord())
}

// logSegment is a stretch of the log that is trimmed as a whole: everything behind the
// segment before, up to end.
type logSegment struct {
	end   id.LSN
	bytes int64
	at    int64 // when the segment ended
}

func segmentKey(end id.LSN) []byte {
	return binary.BigEndian.AppendUint64([]byte{spaceLogSegment}, uint64(end))
}

func (g *logSegment) encodeSegment() []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(g.bytes)), uint64(g.at))
}

func parseSegment(key, value []byte) (logSegment, error) {
	if len(key) != 9 || len(value) != 16 {
		return logSegment{}, fmt.Errorf("read log segment %x: %w", key, errBadLog)
	}
	return logSegment{
		end: id.LSN(binary.BigEndian.Uint64(key[1:])), bytes: int64(binary.BigEndian.Uint64(value)), at: int64(binary.BigEndian.Uint64(value[8:])),
	}, nil
}

func totalBytes(segments []logSegment) (n int64) {
	for i := range segments {
		n += segments[i].bytes
	}
	return n
}

// cloneEntry copies the ids of an entry.
func (e LogEntry) cloneEntry() LogEntry {
	e.Restaurant = id.ID(slices.Clone([]byte(e.Restaurant)))
	e.Client = id.ID(slices.Clone([]byte(e.Client)))
	return e
}

package fetch

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
)

// A fetch response is read batch by batch, and a batch record by record out of its
// codec's stream, so that no inflated batch is held in memory. A consumer's parser
// would inflate a batch as a whole, and trust its count of records.
//
// Record batches, magic 2: https://kafka.apache.org/documentation/#recordbatch
// Message sets, magic 0 and 1: see messageset.go.

// Bounds for one batch.
const (
	// minWholeRecord is the smallest value of PartitionReader.MaxRecord: a record up
	// to this size is always read whole.
	minWholeRecord = 8 << 20
	// CutRecordBytes is how many bytes of the key, and of the value, are kept of a
	// record that is not read whole.
	CutRecordBytes = 64 << 10
	// maxInflatedBytes bounds the inflated size of a batch: reading so many bytes
	// takes a second or two.
	maxInflatedBytes = 1 << 30
	// maxHeaders bounds the number of headers of a record.
	maxHeaders = 1000
)

// errTooLarge reports a batch that inflates to more than maxInflatedBytes.
var errTooLarge = fmt.Errorf("the batch inflates to more than %d MiB", maxInflatedBytes>>20)

// Record is one record of a partition, or stands for offsets without a readable
// record: see Unreadable and Empty.
type Record struct {
	Topic     string
	Partition int32
	Offset    int64
	Next      int64 // the offset to read on at
	Time      int64 // milliseconds
	Key       []byte
	Value     []byte
	headers   []byte // as in the batch: their count, then each
	Size      int    // of the whole record, also where it was truncated
	Truncated bool

	Unreadable string // why the offsets from Offset up to Next cannot be read
	Empty      bool   // the offsets hold no record: markers, aborted transactions, compacted records
}

// Attributes and sizes of a batch header.
const (
	codecBits         = 0x07
	logAppendTimeBit  = 0x08
	transactionalBit  = 0x10
	controlBit        = 0x20
	batchHeaderBytes  = 61
	batchLengthOffset = 12 // the length counts the bytes behind it
)

// recordBatch is one record batch of a response, or one message of the formats before.
// Its fields are the claims of its header; verify checks them.
type recordBatch struct {
	baseOffset         int64
	magic              int8
	crc                uint32
	attributes         int16
	lastDelta          int32
	firstTime, maxTime int64 // timestamps
	producerID         int64
	count              int32
	checksummed        []byte // the bytes that the checksum covers
	records            []byte
}

// splitBatch takes the first batch off b; ok is false where b does not hold a
// whole batch.
func splitBatch(b []byte) (_ recordBatch, rest []byte, ok bool) {
	if len(b) < messageHeadBytes+messageFixed { // the least of all formats
		return recordBatch{}, nil, false
	}
	length := int64(int32(binary.BigEndian.Uint32(b[8:]))) + batchLengthOffset
	magic := int8(b[16])
	if isMessageMagic(magic) {
		return splitMessage(b, length)
	}
	if length < batchHeaderBytes || length > int64(len(b)) {
		return recordBatch{}, nil, false
	}
	return recordBatch{
		baseOffset:  int64(binary.BigEndian.Uint64(b)),
		magic:       magic,
		crc:         binary.BigEndian.Uint32(b[17:]),
		attributes:  int16(binary.BigEndian.Uint16(b[21:])),
		lastDelta:   int32(binary.BigEndian.Uint32(b[23:])),
		firstTime:   int64(binary.BigEndian.Uint64(b[27:])),
		maxTime:     int64(binary.BigEndian.Uint64(b[35:])),
		producerID:  int64(binary.BigEndian.Uint64(b[43:])),
		count:       int32(binary.BigEndian.Uint32(b[57:])),
		checksummed: b[21:length],
		records:     b[batchHeaderBytes:length],
	}, b[length:], true
}

// checksumTable is the table of the batches' checksums, CRC-32C.
var checksumTable = crc32.MakeTable(crc32.Castagnoli)

// verify checks the batch's format, checksum and counts.
func (b *recordBatch) verify() error {
	switch {
	case b.isMessage():
		return b.verifyMessage()
	case b.magic != 2:
		return fmt.Errorf("message format %d is not supported", b.magic)
	case crc32.Checksum(b.checksummed, checksumTable) != b.crc:
		return errors.New("the batch's checksum does not match")
	case b.lastDelta < 0 || b.count < 0:
		return fmt.Errorf("the batch claims %d records and a last offset delta of %d", b.count, b.lastDelta)
	}
	return nil
}

// claimedEnd returns one more than the last offset that the batch claims.
func (b *recordBatch) claimedEnd() int64 { return b.baseOffset + int64(b.lastDelta) + 1 }

// leastOffset returns a lower bound of the offsets of the batch's records.
func (b *recordBatch) leastOffset() int64 {
	if b.isWrapper() {
		return 0
	}
	return b.baseOffset
}

func (b *recordBatch) codec() int { return int(b.attributes & codecBits) }

func (b *recordBatch) hasAttribute(bit int16) bool { return b.attributes&bit != 0 }

// endsInAbort reports whether a control batch ends a transaction by an abort: its
// record has a key of version and type, and type 0 is an abort.
func (b *recordBatch) endsInAbort() bool {
	in := fieldReader{b: b.records}
	in.readVarint() // length
	in.takeBytes(1) // attributes
	in.readVarint() // time
	in.readVarint() // offset
	key := in.readBytes()
	return len(key) >= 4 && key[2] == 0 && key[3] == 0
}

// readRecords calls fn for every record, in order. It reads records of up to most
// bytes whole, and truncates larger ones. The error is fn's, or explains why the rest
// of the batch cannot be read.
func (b *recordBatch) readRecords(in *batchInflater, most int, fn func(*Record) error) error {
	if b.isMessage() {
		return b.readMessages(in, most, fn)
	}
	r, err := in.openStream(b.codec(), b.records)
	if err != nil {
		return err
	}
	for i := range b.count {
		rec, err := readRecord(r, most)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("the batch claims %d records and holds %d", b.count, i)
		}
		if err != nil {
			return err
		}
		rec.Offset += b.baseOffset
		rec.Time += b.firstTime
		if b.hasAttribute(logAppendTimeBit) {
			rec.Time = b.maxTime
		}
		if err := fn(rec); err != nil {
			return err
		}
	}
	return nil
}

// readRecord reads one record; its offset and time are relative to the batch's.
func readRecord(r *bufio.Reader, most int) (*Record, error) {
	length, err := binary.ReadVarint(r)
	if err != nil {
		return nil, err
	}
	if length < 0 || length > math.MaxInt32 {
		return nil, fmt.Errorf("a record claims %d bytes", length)
	}
	rec := &Record{Size: int(length)}
	if length > int64(most) {
		return rec, rec.readTruncated(r, length)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, err
	}
	return rec, rec.parseFields(body)
}

var errMalformedRecord = errors.New("a record's fields exceed its length")

// parseFields reads the fields of a whole record.
func (r *Record) parseFields(body []byte) error {
	in := fieldReader{b: body}
	in.takeBytes(1) // attributes, unused
	r.Time, r.Offset = in.readVarint(), in.readVarint()
	r.Key, r.Value = in.readBytes(), in.readBytes()
	r.headers = in.b
	if in.malformed {
		return errMalformedRecord
	}
	return nil
}

// readTruncated reads the beginning of key and value, and discards the rest.
func (r *Record) readTruncated(from *bufio.Reader, length int64) error {
	r.Truncated = true
	body := &limitedReader{r: from, left: length}
	if _, err := body.ReadByte(); err != nil { // attributes
		return err
	}
	for _, to := range []*int64{&r.Time, &r.Offset} {
		n, err := binary.ReadVarint(body)
		if err != nil {
			return err
		}
		*to = n
	}
	for _, to := range []*[]byte{&r.Key, &r.Value} {
		n, err := binary.ReadVarint(body)
		if err != nil {
			return err
		}
		if *to, err = r.readField(body, n); err != nil {
			return err
		}
	}
	return body.discardBytes(body.left)
}

// readField reads a key or a value of n bytes, null where n is negative. It keeps the
// beginning where the record is truncated.
func (r *Record) readField(body *limitedReader, n int64) ([]byte, error) {
	if n > body.left {
		return nil, errMalformedRecord
	}
	if n < 0 {
		return nil, nil
	}
	keep := n
	if r.Truncated {
		keep = min(n, CutRecordBytes)
	}
	out := make([]byte, keep)
	if _, err := io.ReadFull(body, out); err != nil {
		return nil, err
	}
	return out, body.discardBytes(n - keep)
}

// EachHeader calls fn for each header. It returns false where there are more than
// maxHeaders, or the bytes are malformed.
func (r *Record) EachHeader(fn func(key string, value []byte)) bool {
	in := fieldReader{b: r.headers}
	n := in.readVarint()
	if n > maxHeaders {
		return false
	}
	for range n {
		key := in.readBytes()
		value := in.readBytes()
		if in.malformed {
			return false
		}
		fn(string(key), value)
	}
	return true
}

// HasHeader reports whether one of the headers has the key. It finds none behind bytes
// that are malformed, or where there are more than maxHeaders.
func (r *Record) HasHeader(key string) bool {
	in := fieldReader{b: r.headers}
	n := in.readVarint()
	if n > maxHeaders {
		return false
	}
	for range n {
		k := in.readBytes()
		in.readBytes()
		if in.malformed {
			return false
		}
		if string(k) == key {
			return true
		}
	}
	return false
}

// fieldReader takes values off the front of b. The first value that does not fit
// sets malformed, and all later values are empty.
type fieldReader struct {
	b         []byte
	malformed bool
}

func (f *fieldReader) takeBytes(n int64) []byte {
	if f.malformed || n < 0 || n > int64(len(f.b)) {
		f.malformed, f.b = true, nil
		return nil
	}
	out := f.b[:n:n]
	f.b = f.b[n:]
	return out
}

func (f *fieldReader) readVarint() int64 {
	n, w := binary.Varint(f.b)
	f.takeBytes(int64(w)) // 0 where b is empty, negative where it overflows
	if w == 0 {
		f.malformed = true
	}
	return n
}

// readBytes reads a length and as many bytes. It returns nil for null, which has
// length -1.
func (f *fieldReader) readBytes() []byte {
	n := f.readVarint()
	if n == -1 || f.malformed {
		return nil
	}
	return f.takeBytes(n)
}

// readSizedBytes is readBytes for a length of 32 bits.
func (f *fieldReader) readSizedBytes() []byte {
	length := f.takeBytes(4)
	if f.malformed {
		return nil
	}
	n := int32(binary.BigEndian.Uint32(length))
	if n < 0 {
		return nil
	}
	return f.takeBytes(int64(n))
}

// limitedReader reads at most left bytes; a read beyond them is errMalformedRecord.
type limitedReader struct {
	r    *bufio.Reader
	left int64
}

func (c *limitedReader) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errMalformedRecord
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

func (c *limitedReader) ReadByte() (byte, error) {
	if c.left <= 0 {
		return 0, errMalformedRecord
	}
	c.left--
	return c.r.ReadByte()
}

func (c *limitedReader) discardBytes(n int64) error {
	if n > c.left {
		return errMalformedRecord
	}
	c.left -= n
	_, err := io.CopyN(io.Discard, c.r, n)
	return err
}

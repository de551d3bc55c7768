package topic

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
)

// A fetch response is read here batch by batch, and a batch record by record out
// of its codec's stream: what it inflates to is never held. A consumer's parser
// inflates a batch as a whole, and believes its count of records.
//
// Record batches, magic 2: https://kafka.apache.org/documentation/#recordbatch

// Bounds of what is read of one batch.
const (
	// leastRecord is how large a record may be that is held whole, at least; see
	// PartitionReader.most.
	leastRecord = 8 << 20
	// KeptOfRecord is what is kept of the key, and of the value, of a larger one.
	KeptOfRecord = 64 << 10
	// maxInflated is what is read of one batch: it takes a second or two.
	maxInflated = 1 << 30
	// maxHeaders is how many headers of a record are looked at.
	maxHeaders = 1000
)

// errTooLarge: a batch inflates to more than is read of it.
var errTooLarge = fmt.Errorf("the batch inflates to more than %d MiB", maxInflated>>20)

// Record is one record of a partition, or what stands in the place of some.
type Record struct {
	Topic     string
	Partition int32
	Offset    int64
	Next      int64 // the offset to read on at
	Time      int64 // milliseconds
	Key       []byte
	Value     []byte
	headers   []byte // as in the batch: their count, then each
	Size      int    // of the whole record; beyond what is held where it was cut
	Cut       bool

	Unreadable string // why the offsets from offset up to next cannot be read
	Empty      bool   // they hold nothing: markers, aborted transactions, compacted records
}

// header attributes.
const (
	codecBits         = 0x07
	logAppendTimeBit  = 0x08
	transactionalBit  = 0x10
	controlBit        = 0x20
	batchHeader       = 61
	batchLengthOffset = 12 // the length counts what follows it
)

// batch is one record batch of a response. Its fields are what the bytes claim.
type batch struct {
	base          int64
	magic         int8
	crc           uint32
	attributes    int16
	lastDelta     int32
	first, newest int64 // timestamps
	producer      int64
	count         int32
	checked       []byte // what the checksum covers
	records       []byte
}

// splitBatch takes the first batch off b; ok is false where b does not hold a
// whole one.
func splitBatch(b []byte) (_ batch, rest []byte, ok bool) {
	if len(b) < batchHeader {
		return batch{}, nil, false
	}
	length := int64(int32(binary.BigEndian.Uint32(b[8:]))) + batchLengthOffset
	if length < batchHeader || length > int64(len(b)) {
		return batch{}, nil, false
	}
	return batch{
		base:       int64(binary.BigEndian.Uint64(b)),
		magic:      int8(b[16]),
		crc:        binary.BigEndian.Uint32(b[17:]),
		attributes: int16(binary.BigEndian.Uint16(b[21:])),
		lastDelta:  int32(binary.BigEndian.Uint32(b[23:])),
		first:      int64(binary.BigEndian.Uint64(b[27:])),
		newest:     int64(binary.BigEndian.Uint64(b[35:])),
		producer:   int64(binary.BigEndian.Uint64(b[43:])),
		count:      int32(binary.BigEndian.Uint32(b[57:])),
		checked:    b[21:length],
		records:    b[batchHeader:length],
	}, b[length:], true
}

// checksumTable is the polynomial of the batches' checksums, CRC-32C.
var checksumTable = crc32.MakeTable(crc32.Castagnoli)

// check compares the batch with its checksum and with what this program reads.
func (b *batch) check() error {
	switch {
	case b.magic != 2:
		return fmt.Errorf("message format %d is not read", b.magic)
	case crc32.Checksum(b.checked, checksumTable) != b.crc:
		return errors.New("the batch's checksum does not match")
	case b.lastDelta < 0 || b.count < 0:
		return fmt.Errorf("the batch claims %d records and a last offset delta of %d", b.count, b.lastDelta)
	}
	return nil
}

// end is one more than the last offset that the batch claims.
func (b *batch) end() int64 { return b.base + int64(b.lastDelta) + 1 }

func (b *batch) is(bit int16) bool { return b.attributes&bit != 0 }

// aborts tells whether a control batch ends a transaction by an abort: its record
// has a key of version and type, and type 0 is an abort.
func (b *batch) aborts() bool {
	in := fields{b: b.records}
	in.varint() // length
	in.take(1)  // attributes
	in.varint() // time
	in.varint() // offset
	key := in.bytes()
	return len(key) >= 4 && key[2] == 0 && key[3] == 0
}

// each calls fn for every record, in order. The error is fn's, or says why what
// follows the last record cannot be read. Records are held whole up to most bytes.
func (b *batch) each(in *inflater, most int, fn func(*Record) error) error {
	r, err := in.open(int(b.attributes&codecBits), b.records)
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
		rec.Offset += b.base
		rec.Time += b.first
		if b.is(logAppendTimeBit) {
			rec.Time = b.newest
		}
		if err := fn(rec); err != nil {
			return err
		}
	}
	return nil
}

// readRecord reads one record; offset and time are relative to the batch's.
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
		return rec, rec.readCut(r, length)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, err
	}
	return rec, rec.parse(body)
}

var errRecord = errors.New("a record's fields do not fit into it")

// parse reads the fields of a record that is held whole.
func (r *Record) parse(body []byte) error {
	in := fields{b: body}
	in.take(1) // attributes, unused
	r.Time, r.Offset = in.varint(), in.varint()
	r.Key, r.Value = in.bytes(), in.bytes()
	r.headers = in.b
	if in.bad {
		return errRecord
	}
	return nil
}

// readCut reads the beginning of key and value, and passes over the rest.
func (r *Record) readCut(from *bufio.Reader, length int64) error {
	r.Cut = true
	body := &countedReader{r: from, left: length}
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
		if n > body.left {
			return errRecord
		}
		if n < 0 { // null
			continue
		}
		*to = make([]byte, min(n, KeptOfRecord))
		if _, err := io.ReadFull(body, *to); err != nil {
			return err
		}
		if err := body.discard(n - int64(len(*to))); err != nil {
			return err
		}
	}
	return body.discard(body.left)
}

// EachHeader reads the headers. It returns false where there are more than
// maxHeaders, or they are not headers.
func (r *Record) EachHeader(fn func(key string, value []byte)) bool {
	in := fields{b: r.headers}
	n := in.varint()
	if n > maxHeaders {
		return false
	}
	for range n {
		key := in.bytes()
		value := in.bytes()
		if in.bad {
			return false
		}
		fn(string(key), value)
	}
	return true
}

// fields takes values off the front of b. The first that does not fit makes it
// bad, and all later ones empty.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) take(n int64) []byte {
	if f.bad || n < 0 || n > int64(len(f.b)) {
		f.bad, f.b = true, nil
		return nil
	}
	out := f.b[:n:n]
	f.b = f.b[n:]
	return out
}

func (f *fields) varint() int64 {
	n, w := binary.Varint(f.b)
	f.take(int64(w)) // 0 where b is empty, negative where it overflows
	if w == 0 {
		f.bad = true
	}
	return n
}

// bytes reads a length and as many bytes; nil for null, length -1.
func (f *fields) bytes() []byte {
	n := f.varint()
	if n == -1 || f.bad {
		return nil
	}
	return f.take(n)
}

// countedReader reads at most left bytes.
type countedReader struct {
	r    *bufio.Reader
	left int64
}

func (c *countedReader) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errRecord
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

func (c *countedReader) ReadByte() (byte, error) {
	if c.left <= 0 {
		return 0, errRecord
	}
	c.left--
	return c.r.ReadByte()
}

func (c *countedReader) discard(n int64) error {
	if n > c.left {
		return errRecord
	}
	c.left -= n
	_, err := io.CopyN(io.Discard, c.r, n)
	return err
}

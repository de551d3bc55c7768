package fetch

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Message sets are what Kafka before 0.11 wrote, magic 0 and 1. A broker sends them as
// they are stored, also behind an upgrade. A message is a batch of its own:
//
//	offset i64 | size i32 | crc u32 | magic i8 | attributes i8 | time i64, magic 1 alone | key | value
//
// Key and value have an i32 length before them, -1 for null. The size counts the bytes
// behind it, the checksum covers the bytes behind itself. Where the attributes name a
// codec, the message is a wrapper: its value is a compressed message set, and its offset
// is that of the last message within. The offsets within are absolute in magic 0; in
// magic 1 they are relative, and that of the last one stands for the wrapper's offset.
// https://kafka.apache.org/documentation/#messageset, KIP-31, KIP-32

const (
	messageHeadBytes = 12 // offset and size
	messageFixed     = 14 // crc, magic, attributes, the two lengths
	messageTimeBytes = 8
)

// minMessageBytes returns the bytes behind the size that a message has at least.
func minMessageBytes(magic int8) int64 {
	if magic == 0 {
		return messageFixed
	}
	return messageFixed + messageTimeBytes
}

// splitMessage takes the first message of a message set off b as a batch; ok is false
// where b does not hold a whole message.
func splitMessage(b []byte, length int64) (_ recordBatch, rest []byte, ok bool) {
	magic := int8(b[16])
	if length < messageHeadBytes+minMessageBytes(magic) || length > int64(len(b)) {
		return recordBatch{}, nil, false
	}
	out := recordBatch{
		baseOffset:  int64(binary.BigEndian.Uint64(b)),
		magic:       magic,
		crc:         binary.BigEndian.Uint32(b[12:]),
		attributes:  int16(b[17] & (codecBits | logAppendTimeBit)),
		maxTime:     noTime,
		producerID:  -1,
		checksummed: b[16:length],
		records:     b[:length],
	}
	if magic == 1 {
		out.maxTime = int64(binary.BigEndian.Uint64(b[18:]))
	}
	return out, b[length:], true
}

// noTime is the time of a record that has none, as Kafka's consumers return it.
const noTime = -1

// isMessage reports whether the batch is a message of a message set.
func (b *recordBatch) isMessage() bool { return isMessageMagic(b.magic) }

func isMessageMagic(magic int8) bool { return magic == 0 || magic == 1 }

// isWrapper reports whether the batch is a message that holds a compressed message set.
func (b *recordBatch) isWrapper() bool { return b.isMessage() && b.codec() != 0 }

// verifyMessage checks the message's checksum.
func (b *recordBatch) verifyMessage() error {
	if crc32.ChecksumIEEE(b.checksummed) != b.crc {
		return errors.New("the message's checksum does not match")
	}
	return nil
}

// readMessages is readRecords for a message.
func (b *recordBatch) readMessages(in *batchInflater, most int, fn func(*Record) error) error {
	codec, set, base := b.codec(), b.records, int64(0)
	if b.isWrapper() {
		fields := fieldReader{b: set[messageHeadBytes+minMessageBytes(b.magic)-8:]}
		fields.readSizedBytes() // the key
		if set = fields.readSizedBytes(); fields.malformed {
			return errMalformedRecord
		}
		if b.magic == 0 && codec == codecLZ4 {
			set = mendLZ4Header(set)
		}
		if b.magic == 1 {
			last, err := b.lastOffset(in, set)
			if err != nil {
				return err
			}
			base = b.baseOffset - last
		}
	}
	return readMessageSet(in, codec, set, most, func(r *Record) error {
		r.Offset += base
		if b.hasAttribute(logAppendTimeBit) {
			r.Time = b.maxTime
		}
		return fn(r)
	})
}

// lastOffset returns the offset of the last message of a compressed message set.
func (b *recordBatch) lastOffset(in *batchInflater, set []byte) (last int64, err error) {
	r, err := in.openStream(b.codec(), set)
	if err != nil {
		return 0, err
	}
	for {
		offset, size, err := readMessageHead(r)
		if errors.Is(err, io.EOF) {
			return last, nil
		}
		if err != nil {
			return 0, err
		}
		if _, err := io.CopyN(io.Discard, r, size); err != nil {
			return 0, shortMessageSet(err)
		}
		last = offset
	}
}

// readMessageSet calls fn for each message of a message set.
func readMessageSet(in *batchInflater, codec int, set []byte, most int, fn func(*Record) error) error {
	r, err := in.openStream(codec, set)
	if err != nil {
		return err
	}
	for {
		rec, err := readMessage(r, most)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := fn(rec); err != nil {
			return err
		}
	}
}

// readMessageHead reads a message up to its size. The error is io.EOF at the end of the
// set.
func readMessageHead(r *bufio.Reader) (offset, size int64, err error) {
	var head [messageHeadBytes]byte
	switch n, err := io.ReadFull(r, head[:]); {
	case n == 0 && errors.Is(err, io.EOF):
		return 0, 0, io.EOF
	case err != nil:
		return 0, 0, shortMessageSet(err)
	}
	offset, size = int64(binary.BigEndian.Uint64(head[:])), int64(int32(binary.BigEndian.Uint32(head[8:])))
	if size < messageFixed {
		return 0, 0, fmt.Errorf("a message claims %d bytes", size)
	}
	return offset, size, nil
}

// shortMessageSet hides an end of the set in the middle of a message, which is no
// regular end.
func shortMessageSet(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the message set ends within a message")
	}
	return err
}

// readMessage reads one message that is no wrapper, and truncates it where it has more
// than most bytes. The error is io.EOF at the end of the set.
func readMessage(r *bufio.Reader, most int) (*Record, error) {
	offset, size, err := readMessageHead(r)
	if err != nil {
		return nil, err
	}
	rec := &Record{Offset: offset, Time: noTime, Size: int(size), Truncated: size > int64(most)}
	if err := rec.readMessageBody(&limitedReader{r: r, left: size}); err != nil {
		return nil, shortMessageSet(err)
	}
	return rec, nil
}

// readMessageBody reads a message from its checksum on. The checksum of its wrapper or of
// its batch was checked before.
func (r *Record) readMessageBody(body *limitedReader) error {
	var fixed [6]byte // checksum, magic, attributes
	if _, err := io.ReadFull(body, fixed[:]); err != nil {
		return err
	}
	magic, attributes := fixed[4], fixed[5]
	switch {
	case magic > 1:
		return fmt.Errorf("a message set holds a message of format %d", magic)
	case attributes&codecBits != 0:
		return errors.New("a compressed message holds another one")
	}
	if magic == 1 {
		var at [messageTimeBytes]byte
		if _, err := io.ReadFull(body, at[:]); err != nil {
			return err
		}
		r.Time = int64(binary.BigEndian.Uint64(at[:]))
	}
	for _, to := range []*[]byte{&r.Key, &r.Value} {
		var length [4]byte
		if _, err := io.ReadFull(body, length[:]); err != nil {
			return err
		}
		var err error
		if *to, err = r.readField(body, int64(int32(binary.BigEndian.Uint32(length[:])))); err != nil {
			return err
		}
	}
	return body.discardBytes(body.left)
}

package rawbatch

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"testing"

	"github.com/klauspost/compress/s2"
)

// Message is a message of a message set, the format of Kafka before 0.11.
type Message struct {
	Offset int64
	Time   int64 // milliseconds; not in format 0
	Key    []byte
	Value  []byte
}

// MessageSet returns messages in format 0 or 1, back to back.
func MessageSet(format byte, messages ...Message) []byte {
	var out []byte
	for _, m := range messages {
		out = append(out, appendMessage(format, 0, m)...)
	}
	return out
}

// LogAppendTime is the attribute of a message of format 1 whose time is the broker's.
const LogAppendTime = 0x08

// Wrapper returns one message that holds the messages, compressed. Its offset is that of
// the last one; within it, those of format 1 count from the first.
func Wrapper(t testing.TB, format byte, codec Codec, attributes byte, messages ...Message) []byte {
	t.Helper()
	last := messages[len(messages)-1]
	inner := append([]Message{}, messages...)
	if format == 1 {
		for i := range inner {
			inner[i].Offset -= messages[0].Offset
		}
	}
	set := MessageSet(format, inner...)
	value := compressWith(t, codec, func(w io.Writer) error { _, err := w.Write(set); return err })
	if format == 0 && codec == LZ4 {
		value = oldLZ4(value)
	}
	return appendMessage(format, attributes|byte(codec), Message{Offset: last.Offset, Time: last.Time, Value: value})
}

func appendMessage(format, attributes byte, m Message) []byte {
	body := []byte{format, attributes}
	if format == 1 {
		body = binary.BigEndian.AppendUint64(body, uint64(m.Time))
	}
	for _, field := range [][]byte{m.Key, m.Value} {
		if field == nil {
			body = binary.BigEndian.AppendUint32(body, 0xffffffff)
		} else {
			body = append(binary.BigEndian.AppendUint32(body, uint32(len(field))), field...)
		}
	}
	out := binary.BigEndian.AppendUint64(nil, uint64(m.Offset))
	out = binary.BigEndian.AppendUint32(out, uint32(len(body)+4))
	return append(binary.BigEndian.AppendUint32(out, crc32.ChecksumIEEE(body)), body...)
}

// oldLZ4 gives a frame the header checksum of Kafka's first clients, which is also over
// the frame's magic. It is a wrong one for any other reader.
func oldLZ4(frame []byte) []byte {
	out := bytes.Clone(frame)
	out[6] ^= 0x5a // no reader may look at it
	return out
}

// xerial writes the snappy format of Java clients.
type xerial struct{ out *bytes.Buffer }

func (x xerial) Write(p []byte) (int, error) {
	if x.out.Len() == 0 {
		x.out.WriteString("\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01")
	}
	block := s2.EncodeSnappy(nil, p)
	x.out.Write(binary.BigEndian.AppendUint32(nil, uint32(len(block))))
	x.out.Write(block)
	return len(p), nil
}

func (x xerial) Close() error { return nil }

// WrapperOf returns a message whose attributes name a codec, whatever its value is.
func WrapperOf(format byte, codec Codec, m Message) []byte {
	return appendMessage(format, byte(codec), m)
}

// Compress returns b, compressed.
func Compress(t testing.TB, codec Codec, b []byte) []byte {
	t.Helper()
	return compressWith(t, codec, func(w io.Writer) error { _, err := w.Write(b); return err })
}

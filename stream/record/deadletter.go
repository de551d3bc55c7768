package record

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

// DeadLetter is one refused message, value untouched.
type DeadLetter struct {
	Topic     string
	Partition int32
	Offset    int64
	Timestamp int64 // milliseconds, as the record carried it
	Reason    string
	Key       []byte // nil and empty differ in Kafka
	Value     []byte
	Headers   []Header

	Clients int64 // it names so many clients who were left out, and refuses no message; not stored
}

type Header struct {
	Key   string
	Value []byte
}

// letterHeaders are the headers that a dead letter begins with.
const letterHeaders = 5

// RecordHeaders lists the headers of the letter's record: reason, topic, partition,
// offset and timestamp (milliseconds), then those that the message came with.
func (d *DeadLetter) RecordHeaders() []Header {
	return append([]Header{
		{Key: "reason", Value: []byte(d.Reason)},
		{Key: "topic", Value: []byte(d.Topic)},
		{Key: "partition", Value: strconv.AppendInt(nil, int64(d.Partition), 10)},
		{Key: "offset", Value: strconv.AppendInt(nil, d.Offset, 10)},
		{Key: "timestamp", Value: strconv.AppendInt(nil, d.Timestamp, 10)},
	}, d.Headers...)
}

// ReadRecordHeaders is the inverse of RecordHeaders: it fills d in. It returns false,
// with all headers in d.headers, where they are not those of a dead letter.
func (d *DeadLetter) ReadRecordHeaders(headers []Header) bool {
	d.Headers = headers
	if len(headers) < letterHeaders {
		return false
	}
	var numbers [3]int64
	for i, name := range [letterHeaders]string{"reason", "topic", "partition", "offset", "timestamp"} {
		if headers[i].Key != name {
			return false
		}
		if i < 2 {
			continue
		}
		var err error
		if numbers[i-2], err = strconv.ParseInt(string(headers[i].Value), 10, 64); err != nil {
			return false
		}
	}
	if numbers[0] != int64(int32(numbers[0])) {
		return false
	}
	d.Reason, d.Topic = string(headers[0].Value), string(headers[1].Value)
	d.Partition, d.Offset, d.Timestamp = int32(numbers[0]), numbers[1], numbers[2]
	d.Headers = headers[letterHeaders:]
	return true
}

// headerTruncated says how much of a cut message is left.
const headerTruncated = "truncated"

// Truncated says how much of the message is left, as fit noted it; "" where it is
// whole.
func (d *DeadLetter) Truncated() string {
	if n := len(d.Headers); n > 0 && d.Headers[n-1].Key == headerTruncated {
		return string(d.Headers[n-1].Value)
	}
	return ""
}

// Overhead bounds what a record and its batch take beside key and value: batch
// header 61 bytes, record header and lengths, with margin.
const Overhead = 512

// headerOverhead is what a header costs beside key and value.
const headerOverhead = 64

// Size is about what the dead letter takes, in memory and as a record.
func (d *DeadLetter) Size() int {
	n := Overhead + len(d.Reason) + len(d.Topic) + len(d.Key) + len(d.Value)
	for _, h := range d.Headers {
		n += headerOverhead + len(h.Key) + len(h.Value)
	}
	return n
}

// maxReason is what a reason may take: some quote the message.
const maxReason = 1 << 10

// Fit cuts the letter down to what the dead-letter topic accepts, limit bytes, so
// that it does not stop the lane. A header says what was cut. size is that of the
// whole value; headersLeft says that d does not have all headers of the message.
func (d *DeadLetter) Fit(limit, size int, headersLeft bool) {
	d.Reason = strings.ToValidUTF8(d.Reason[:min(len(d.Reason), maxReason)], "")
	cut := ""
	if headersLeft || d.Size()-len(d.Value)/2 > limit { // it is the key or the headers that are large
		cut = ", without its key and headers"
		d.Headers, d.Key = nil, nil
	}
	const note = 128
	if room := limit - d.Size(); room < 0 {
		d.Value = d.Value[:max(0, len(d.Value)+room-note)]
	}
	if cut != "" || len(d.Value) < size {
		d.Value = bytes.Clone(d.Value) // the rest is not held for it
		d.Headers = append(d.Headers, Header{Key: headerTruncated, Value: fmt.Appendf(nil, "%d of %d bytes%s", len(d.Value), size, cut)})
	}
}

func (d *DeadLetter) appendTo(dst []byte) []byte {
	for _, n := range []int64{int64(d.Partition), d.Offset, d.Timestamp} {
		dst = binary.AppendVarint(dst, n)
	}
	dst = appendCounted(dst, d.Reason)
	dst = appendCounted(dst, d.Topic)
	dst = appendNullable(dst, d.Key)
	dst = appendNullable(dst, d.Value)
	dst = binary.AppendUvarint(dst, uint64(len(d.Headers)))
	for _, h := range d.Headers {
		dst = appendCounted(dst, h.Key)
		dst = appendNullable(dst, h.Value)
	}
	return dst
}

func (r *payloadReader) readDeadLetter() DeadLetter {
	var d DeadLetter
	d.Partition, d.Offset, d.Timestamp = int32(r.readVarint()), r.readVarint(), r.readVarint()
	d.Reason, d.Topic = string(r.readBytes()), string(r.readBytes())
	d.Key, d.Value = r.readNullable(), r.readNullable()
	for range r.readCount() {
		d.Headers = append(d.Headers, Header{Key: string(r.readBytes()), Value: r.readNullable()})
	}
	return d
}

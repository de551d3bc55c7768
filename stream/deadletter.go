package stream

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

// deadLetter is one refused message, value untouched.
type deadLetter struct {
	topic     string
	partition int32
	offset    int64
	timestamp int64 // milliseconds, as the record carried it
	reason    string
	key       []byte // nil and empty differ in Kafka
	value     []byte
	headers   []header

	clients int64 // it names so many clients who were left out, and refuses no message; not stored
}

type header struct {
	key   string
	value []byte
}

// letterFields are the headers that a dead letter begins with.
const letterFields = 5

// letterHeaders lists the headers of the letter's record: reason, topic, partition,
// offset and timestamp (milliseconds), then those that the message came with.
func (d *deadLetter) letterHeaders() []header {
	return append([]header{
		{key: "reason", value: []byte(d.reason)},
		{key: "topic", value: []byte(d.topic)},
		{key: "partition", value: strconv.AppendInt(nil, int64(d.partition), 10)},
		{key: "offset", value: strconv.AppendInt(nil, d.offset, 10)},
		{key: "timestamp", value: strconv.AppendInt(nil, d.timestamp, 10)},
	}, d.headers...)
}

// readLetterHeaders is the inverse of letterHeaders: it fills d in. It returns false,
// with all headers in d.headers, where they are not those of a dead letter.
func (d *deadLetter) readLetterHeaders(headers []header) bool {
	d.headers = headers
	if len(headers) < letterFields {
		return false
	}
	var numbers [3]int64
	for i, name := range [letterFields]string{"reason", "topic", "partition", "offset", "timestamp"} {
		if headers[i].key != name {
			return false
		}
		if i < 2 {
			continue
		}
		var err error
		if numbers[i-2], err = strconv.ParseInt(string(headers[i].value), 10, 64); err != nil {
			return false
		}
	}
	if numbers[0] != int64(int32(numbers[0])) {
		return false
	}
	d.reason, d.topic = string(headers[0].value), string(headers[1].value)
	d.partition, d.offset, d.timestamp = int32(numbers[0]), numbers[1], numbers[2]
	d.headers = headers[letterFields:]
	return true
}

// headerTruncated says how much of a cut message is left.
const headerTruncated = "truncated"

// truncated says how much of the message is left, as fit noted it; "" where it is
// whole.
func (d *deadLetter) truncated() string {
	if n := len(d.headers); n > 0 && d.headers[n-1].key == headerTruncated {
		return string(d.headers[n-1].value)
	}
	return ""
}

// overhead bounds what a record and its batch take beside key and value: batch
// header 61 bytes, record header and lengths, with margin.
const overhead = 512

// headerRoom is what a header costs beside key and value.
const headerRoom = 64

// weight is about what the dead letter takes, in memory and as a record.
func (d *deadLetter) weight() int {
	n := overhead + len(d.reason) + len(d.topic) + len(d.key) + len(d.value)
	for _, h := range d.headers {
		n += headerRoom + len(h.key) + len(h.value)
	}
	return n
}

// reasonRoom is what a reason may take: some quote the message.
const reasonRoom = 1 << 10

// fit cuts the letter down to what the dead-letter topic accepts, limit bytes, so
// that it does not stop the lane. A header says what was cut. size is that of the
// whole value; headersLeft says that d does not have all headers of the message.
func (d *deadLetter) fit(limit, size int, headersLeft bool) {
	d.reason = strings.ToValidUTF8(d.reason[:min(len(d.reason), reasonRoom)], "")
	cut := ""
	if headersLeft || d.weight()-len(d.value)/2 > limit { // it is the key or the headers that are large
		cut = ", without its key and headers"
		d.headers, d.key = nil, nil
	}
	const note = 128
	if room := limit - d.weight(); room < 0 {
		d.value = d.value[:max(0, len(d.value)+room-note)]
	}
	if cut != "" || len(d.value) < size {
		d.value = bytes.Clone(d.value) // the rest is not held for it
		d.headers = append(d.headers, header{key: headerTruncated, value: fmt.Appendf(nil, "%d of %d bytes%s", len(d.value), size, cut)})
	}
}

func (d *deadLetter) encode(dst []byte) []byte {
	for _, n := range []int64{int64(d.partition), d.offset, d.timestamp} {
		dst = binary.AppendVarint(dst, n)
	}
	dst = appendBytes(dst, d.reason)
	dst = appendBytes(dst, d.topic)
	dst = appendNullable(dst, d.key)
	dst = appendNullable(dst, d.value)
	dst = binary.AppendUvarint(dst, uint64(len(d.headers)))
	for _, h := range d.headers {
		dst = appendBytes(dst, h.key)
		dst = appendNullable(dst, h.value)
	}
	return dst
}

func (r *reader) deadLetter() deadLetter {
	var d deadLetter
	d.partition, d.offset, d.timestamp = int32(r.varint()), r.varint(), r.varint()
	d.reason, d.topic = string(r.bytes()), string(r.bytes())
	d.key, d.value = r.nullable(), r.nullable()
	for range r.count() {
		d.headers = append(d.headers, header{key: string(r.bytes()), value: r.nullable()})
	}
	return d
}

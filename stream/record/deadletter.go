package record

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"dinnerbell/stream/campaign"
)

// DeadLetter is one refused message, with its value untouched, or the trace of clients
// who were left out.
type DeadLetter struct {
	Topic     string
	Partition int32
	Offset    int64
	Timestamp int64 // milliseconds, as the record carried it
	Reason    string
	Class     campaign.ReasonClass // of Reason; "" in a letter of an earlier version
	Key       []byte               // nil and empty differ in Kafka
	Value     []byte
	Headers   []Header

	// Of an accepted campaign; not stored.
	Campaign campaign.Key
	Clients  int64 // of a letter that refuses no message: how many left-out clients it names; not stored
}

// Header is a header of a Kafka record.
type Header struct {
	Key   string
	Value []byte
}

// RecordHeaders lists the headers of the letter's record: reason, its class, topic,
// partition, offset and timestamp (milliseconds), then the message's own headers. A
// letter of an earlier version has no class.
func (d *DeadLetter) RecordHeaders() []Header {
	out := append(make([]Header, 0, 6+len(d.Headers)), Header{Key: headerReason, Value: []byte(d.Reason)})
	if d.Class != "" {
		out = append(out, Header{Key: headerClass, Value: []byte(d.Class)})
	}
	out = append(out,
		Header{Key: "topic", Value: []byte(d.Topic)},
		Header{Key: "partition", Value: strconv.AppendInt(nil, int64(d.Partition), 10)},
		Header{Key: "offset", Value: strconv.AppendInt(nil, d.Offset, 10)},
		Header{Key: "timestamp", Value: strconv.AppendInt(nil, d.Timestamp, 10)},
	)
	return append(out, d.Headers...)
}

const (
	headerReason = "reason"
	headerClass  = "reason_class"
)

// ReadRecordHeaders is the inverse of RecordHeaders: it fills d in. Where the headers
// are not a dead letter's, it returns false and puts all of them into d.Headers.
func (d *DeadLetter) ReadRecordHeaders(headers []Header) bool {
	d.Headers = headers
	rest := headers
	take := func(name string) (value string, ok bool) {
		if len(rest) == 0 || rest[0].Key != name {
			return "", false
		}
		value, rest = string(rest[0].Value), rest[1:]
		return value, true
	}
	takeNumber := func(name string, bits int) (n int64, ok bool) {
		text, ok := take(name)
		n, err := strconv.ParseInt(text, 10, bits)
		return n, ok && err == nil
	}
	reason, ok1 := take(headerReason)
	class, _ := take(headerClass)
	topic, ok2 := take("topic")
	partition, ok3 := takeNumber("partition", 32)
	offset, ok4 := takeNumber("offset", 64)
	timestamp, ok5 := takeNumber("timestamp", 64)
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 {
		return false
	}
	d.Reason, d.Class, d.Topic = reason, campaign.ReasonClass(class), topic
	d.Partition, d.Offset, d.Timestamp = int32(partition), offset, timestamp
	d.Headers = rest
	return true
}

// headerTruncated is the header with the size of the rest of a cut message.
const headerTruncated = "truncated"

// Truncated returns the note of Fit on a cut message: how many bytes are left. It is ""
// for a whole message.
func (d *DeadLetter) Truncated() string {
	if n := len(d.Headers); n > 0 && d.Headers[n-1].Key == headerTruncated {
		return string(d.Headers[n-1].Value)
	}
	return ""
}

// Overhead bounds the bytes of a record and its batch beside key and value: batch header
// 61 bytes, record header and lengths, with margin.
const Overhead = 512

// headerOverhead bounds the bytes of a header beside key and value.
const headerOverhead = 64

// Size estimates the dead letter's bytes, in memory and as a record.
func (d *DeadLetter) Size() int {
	n := Overhead + len(d.Reason) + len(d.Class) + len(d.Topic) + len(d.Key) + len(d.Value)
	for _, h := range d.Headers {
		n += headerOverhead + len(h.Key) + len(h.Value)
	}
	return n
}

// maxReason bounds a reason: some reasons quote the message.
const maxReason = 1 << 10

// BoundReason cuts a reason to the length that a dead letter may have.
func BoundReason(reason string) string {
	return strings.ToValidUTF8(reason[:min(len(reason), maxReason)], "")
}

// Fit cuts the letter down to limit bytes, which the dead-letter topic accepts, so that
// the letter does not stop the lane. A header notes the cut. size is the size of the
// whole value; headersLeft is set where d does not have all headers of the message.
func (d *DeadLetter) Fit(limit, size int, headersLeft bool) {
	d.Reason = BoundReason(d.Reason)
	cut := ""
	if headersLeft || d.Size()-len(d.Value)/2 > limit { // the key or the headers are large
		cut = ", without its key and headers"
		d.Headers, d.Key = nil, nil
	}
	const note = 128
	if room := limit - d.Size(); room < 0 {
		d.Value = d.Value[:max(0, len(d.Value)+room-note)]
	}
	if cut != "" || len(d.Value) < size {
		d.Value = bytes.Clone(d.Value) // frees the rest
		d.Headers = append(d.Headers, Header{Key: headerTruncated, Value: fmt.Appendf(nil, "%d of %d bytes%s", len(d.Value), size, cut)})
	}
}

func (d *DeadLetter) appendTo(dst []byte) []byte {
	for _, n := range []int64{int64(d.Partition), d.Offset, d.Timestamp} {
		dst = binary.AppendVarint(dst, n)
	}
	dst = appendCounted(dst, d.Reason)
	dst = appendCounted(dst, string(d.Class))
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

// readDeadLetter reads the letter that DeadLetter.appendTo has written.
func (r *payloadReader) readDeadLetter() DeadLetter {
	var d DeadLetter
	d.Partition, d.Offset, d.Timestamp = int32(r.readVarint()), r.readVarint(), r.readVarint()
	d.Reason = string(r.readBytes())
	if r.version >= 2 {
		d.Class = campaign.ReasonClass(r.readBytes())
	}
	d.Topic = string(r.readBytes())
	d.Key, d.Value = r.readNullable(), r.readNullable()
	for range r.readCount() {
		d.Headers = append(d.Headers, Header{Key: string(r.readBytes()), Value: r.readNullable()})
	}
	return d
}

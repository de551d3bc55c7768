package record

import (
	"bytes"
	"slices"
	"testing"
)

// fuzzHeaders cuts bytes into headers: a length, the key, a length, the value.
func fuzzHeaders(data []byte) (headers []Header) {
	next := func() []byte {
		if len(data) == 0 {
			return nil
		}
		n := min(int(data[0]), len(data)-1)
		field := data[1 : 1+n]
		data = data[1+n:]
		return field
	}
	for len(data) > 0 {
		key := next()
		headers = append(headers, Header{Key: string(key), Value: next()})
	}
	return headers
}

// packHeaders is the inverse of fuzzHeaders.
func packHeaders(headers []Header) (data []byte) {
	for _, h := range headers {
		for _, field := range [][]byte{[]byte(h.Key), h.Value} {
			data = append(append(data, byte(len(field))), field...)
		}
	}
	return data
}

// Headers of any origin are a dead letter's, which keeps each of them, or are all kept as
// the message's own.
func FuzzReadRecordHeaders(f *testing.F) {
	letter := DeadLetter{Topic: "campaigns", Partition: 3, Offset: 7, Timestamp: 11, Reason: "not JSON", Class: "not_json", Headers: []Header{{"trace", []byte("x")}, {"empty", nil}}}
	f.Add(packHeaders(letter.RecordHeaders()))
	letter.Class = ""
	f.Add(packHeaders(letter.RecordHeaders()))
	f.Add(packHeaders(letter.RecordHeaders()[1:]))
	f.Add(packHeaders([]Header{{"reason", []byte("x")}, {"topic", []byte("y")}, {"partition", []byte("4294967296")}, {"offset", []byte("1")}, {"timestamp", []byte("1")}}))
	same := func(a, b Header) bool { return a.Key == b.Key && bytes.Equal(a.Value, b.Value) }
	f.Fuzz(func(t *testing.T, data []byte) {
		headers := fuzzHeaders(data)
		var read DeadLetter
		if !read.ReadRecordHeaders(headers) {
			if !slices.EqualFunc(read.Headers, headers, same) {
				t.Errorf("foreign headers %q became %q", headers, read.Headers)
			}
			return
		}
		var again DeadLetter
		if !again.ReadRecordHeaders(read.RecordHeaders()) {
			t.Fatalf("the headers of %+v are no dead letter's", read)
		}
		if again.Reason != read.Reason || again.Class != read.Class || again.Topic != read.Topic || again.Partition != read.Partition ||
			again.Offset != read.Offset || again.Timestamp != read.Timestamp || !slices.EqualFunc(again.Headers, read.Headers, same) {
			t.Errorf("%+v was written and is read as %+v", read, again)
		}
	})
}

package record

import (
	"reflect"
	"testing"
)

// A command reads back the letter that the shipper has written, and takes the records
// of other producers for no letters.
func TestDeadLetterHeaders(t *testing.T) {
	t.Parallel()
	want := DeadLetter{Reason: "because", Topic: "campaigns", Partition: 3, Offset: 1 << 40, Timestamp: 1700000000123, Headers: []Header{{"topic", []byte("x")}}}
	headers := want.RecordHeaders()
	var got DeadLetter
	if !got.ReadRecordHeaders(headers) || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for name, foreign := range map[string][]Header{
		"none": nil, "fewer": headers[:4], "another order": append([]Header{headers[1], headers[0]}, headers[2:]...),
		"no number":          {headers[0], headers[1], headers[2], {"offset", []byte("x")}, headers[4]},
		"a partition of int": {headers[0], headers[1], {"partition", []byte("4294967296")}, headers[3], headers[4]},
	} {
		var d DeadLetter
		if d.ReadRecordHeaders(foreign) || !reflect.DeepEqual(d, DeadLetter{Headers: foreign}) {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

// A cut letter fits and notes the cut.
func TestDeadLetterFit(t *testing.T) {
	t.Parallel()
	const limit = 2000
	for name, d := range map[string]DeadLetter{
		"value": {Value: make([]byte, 5000), Key: []byte("k")},
		"key":   {Value: []byte("v"), Key: make([]byte, 5000)},
		"both":  {Value: make([]byte, 5000), Key: make([]byte, 5000), Headers: []Header{{"h", make([]byte, 5000)}}},
	} {
		size := len(d.Value)
		d.Fit(limit, size, false)
		if d.Size() > limit || d.Truncated() == "" {
			t.Errorf("%s: %d bytes, truncated %q", name, d.Size(), d.Truncated())
		}
	}
	whole := DeadLetter{Value: []byte("v"), Key: []byte("k")}
	if whole.Fit(limit, 1, false); whole.Truncated() != "" {
		t.Errorf("a small letter was cut: %s", whole.Truncated())
	}
}

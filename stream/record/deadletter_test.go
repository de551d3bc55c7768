package record

import (
	"reflect"
	"slices"
	"testing"

	"dinnerbell/stream/campaign"
)

// A command reads back the letter that the shipper has written, and takes the records
// of other producers for no letters.
func TestDeadLetterHeaders(t *testing.T) {
	t.Parallel()
	want := DeadLetter{Reason: "because", Class: campaign.ClassBadTime, Topic: "campaigns", Partition: 3, Offset: 1 << 40, Timestamp: 1700000000123, Headers: []Header{{"topic", []byte("x")}}}
	headers := want.RecordHeaders()
	var got DeadLetter
	if !got.ReadRecordHeaders(headers) || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	old := want // of an earlier version
	old.Class = ""
	var gotOld DeadLetter
	if h := old.RecordHeaders(); len(h) != 6 || !gotOld.ReadRecordHeaders(h) || !reflect.DeepEqual(gotOld, old) {
		t.Errorf("got %+v, want %+v", gotOld, old)
	}
	with := func(name, value string) []Header {
		out := slices.Clone(headers)
		i := slices.IndexFunc(out, func(h Header) bool { return h.Key == name })
		out[i].Value = []byte(value)
		return out
	}
	for name, foreign := range map[string][]Header{
		"none": nil, "fewer": headers[:5], "another order": append([]Header{headers[1], headers[0]}, headers[2:]...),
		"no number": with("offset", "x"), "a partition of int": with("partition", "4294967296"),
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

package record

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"reflect"
	"slices"
	"testing"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
)

func samplePayload(t testing.TB) *Payload {
	t.Helper()
	a, b := &id.List{}, &id.List{}
	for i := range 3 {
		a.Append(packID(t, fmt.Sprintf("223e4567-e89b-12d3-a456-42661417400%d", i)))
		b.Append(packID(t, fmt.Sprintf("клиент %d", i)))
	}
	return &Payload{Seq: 9,
		Segments: []Segment{
			{Campaign: example(), Trigger: 1700000000, Clients: a},
			{Campaign: &campaign.Campaign{RestaurantID: "r", ID: "c", Start: 1, End: 2}, Trigger: 1700000001, Clients: b},
		},
		Dead: []DeadLetter{
			{Topic: "campaigns", Partition: 3, Offset: 1 << 40, Timestamp: 1700000000123, Reason: "because", Class: campaign.ClassTable, Key: []byte{}, Value: []byte("\x00\xff"), Headers: []Header{{"h", nil}, {"i", []byte("x")}}},
			{Topic: "campaigns", Reason: "tombstone"},
		}}
}

func TestPayloadRoundTrip(t *testing.T) {
	want := samplePayload(t)
	got, err := DecodePayload(9, want.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got.Dead, want.Dead) {
		t.Errorf("dead letters %+v, want %+v", got.Dead, want.Dead)
	}
	if got.Notifications() != 6 || len(got.Segments) != 2 {
		t.Fatalf("%d notifications in %d segments", got.Notifications(), len(got.Segments))
	}
	for i := range want.Segments {
		g, w := got.Segments[i], want.Segments[i]
		if *g.Campaign != *w.Campaign || g.Trigger != w.Trigger || string(g.Clients.Bytes()) != string(w.Clients.Bytes()) {
			t.Errorf("segment %d: %+v, want %+v", i, g, w)
		}
	}
}

// An outbox row of a version that had no classes is shipped as that version would have.
func TestPayloadOfTheVersionBefore(t *testing.T) {
	want := &Payload{Seq: 9, Dead: []DeadLetter{{Topic: "t", Reason: "because", Offset: 7, Value: []byte("v")}}}
	b := want.Encode()
	class := bytes.Index(b, []byte("because")) + len("because")
	b = slices.Delete(b[:len(b)-4], class, class+1) // the length of the class, 0
	b[len(payloadMagic)] = 1
	got, err := DecodePayload(9, binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
}

// A damaged row must never be shipped: every flipped or cut byte is found.
func TestDamagedPayloadIsRefused(t *testing.T) {
	good := samplePayload(t).Encode()
	for i := range good {
		bad := append([]byte{}, good...)
		bad[i] ^= 0x20
		if _, err := DecodePayload(1, bad); err == nil {
			t.Errorf("byte %d flipped: accepted", i)
		}
		if _, err := DecodePayload(1, good[:i]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
	}
}

func FuzzDecodePayload(f *testing.F) {
	f.Add(samplePayload(f).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := DecodePayload(1, b); err == nil {
			if _, err := DecodePayload(1, p.Encode()); err != nil {
				t.Errorf("encoding what was decoded: %v", err)
			}
		}
	})
}

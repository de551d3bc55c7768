package stream

import (
	"errors"
	"fmt"
	"reflect"
	"testing"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
)

func samplePayload(t testing.TB) *payload {
	t.Helper()
	a, b := &id.List{}, &id.List{}
	for i := range 3 {
		a.Append(packText(t, fmt.Sprintf("223e4567-e89b-12d3-a456-42661417400%d", i)))
		b.Append(packText(t, fmt.Sprintf("клиент %d", i)))
	}
	return &payload{seq: 9,
		segments: []segment{
			{campaign: contractCampaign(), trigger: 1700000000, clients: a},
			{campaign: &campaign.Campaign{RestaurantID: "r", ID: "c", Start: 1, End: 2}, trigger: 1700000001, clients: b},
		},
		dead: []deadLetter{
			{topic: "campaigns", partition: 3, offset: 1 << 40, timestamp: 1700000000123, reason: "because", key: []byte{}, value: []byte("\x00\xff"), headers: []header{{"h", nil}, {"i", []byte("x")}}},
			{topic: "campaigns", reason: "tombstone"},
		}}
}

func TestPayloadRoundTrip(t *testing.T) {
	want := samplePayload(t)
	got, err := decodePayload(9, want.encode())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got.dead, want.dead) {
		t.Errorf("dead letters %+v, want %+v", got.dead, want.dead)
	}
	if got.notifications() != 6 || len(got.segments) != 2 {
		t.Fatalf("%d notifications in %d segments", got.notifications(), len(got.segments))
	}
	for i := range want.segments {
		g, w := got.segments[i], want.segments[i]
		if *g.campaign != *w.campaign || g.trigger != w.trigger || string(g.clients.Bytes()) != string(w.clients.Bytes()) {
			t.Errorf("segment %d: %+v, want %+v", i, g, w)
		}
	}
}

// Whatever is flipped or cut is found: a damaged row must never be shipped.
func TestDamagedPayloadIsRefused(t *testing.T) {
	good := samplePayload(t).encode()
	for i := range good {
		bad := append([]byte{}, good...)
		bad[i] ^= 0x20
		if _, err := decodePayload(1, bad); err == nil {
			t.Errorf("byte %d flipped: accepted", i)
		}
		if _, err := decodePayload(1, good[:i]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
	}
}

func FuzzDecodePayload(f *testing.F) {
	f.Add(samplePayload(f).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := decodePayload(1, b); err == nil {
			if _, err := decodePayload(1, p.encode()); err != nil {
				t.Errorf("encoding what was decoded: %v", err)
			}
		}
	})
}

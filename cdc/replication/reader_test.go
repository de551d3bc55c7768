package replication

import (
	"encoding/binary"
	"errors"
	"testing"

	"dinnerbell/cdc/pgoutput"
	"dinnerbell/state/id"
)

// walData wraps a pgoutput message as the server sends it.
func walData(msg []byte) []byte {
	return append(append([]byte{'w'}, make([]byte, 24)...), msg...)
}

// keepalive is a keepalive with a position.
func keepalive(end uint64, reply byte) []byte {
	b := binary.BigEndian.AppendUint64([]byte{'k'}, end)
	return append(append(b, make([]byte, 8)...), reply)
}

func begin(commit uint64) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{'B'}, commit), make([]byte, 12)...)
}

func commit(end uint64) []byte {
	b := binary.BigEndian.AppendUint64(append([]byte{'C', 0}, make([]byte, 8)...), end)
	return append(b, make([]byte, 8)...)
}

// A keepalive has a position outside of a transaction only: in the middle of one,
// the position says nothing about the part that is still to come.
func TestReaderDecodes(t *testing.T) {
	t.Parallel()
	asm := pgoutput.NewAssembler(1, []string{"id", "restaurant_id", "client_id"}, 0)
	r := NewReader(nil, asm, nil)
	for i, c := range []struct {
		data  []byte
		want  Event
		piece id.LSN // the end of the expected piece; 0: none
		past  bool   // whether the stream is past 150 afterwards
	}{
		{data: keepalive(100, 0), want: Event{WALEnd: 100}},
		{data: keepalive(0, 1), want: Event{Reply: true}},
		{data: walData(begin(149))},
		{data: keepalive(130, 1), want: Event{Reply: true}},
		{data: walData(commit(150)), piece: 150},
		{data: keepalive(160, 0), want: Event{WALEnd: 160}},
		{data: walData(begin(200)), past: true},
		{data: walData(commit(210)), piece: 210},
	} {
		ev, err := r.decode(c.data)
		if err != nil {
			t.Fatalf("message %d: %v", i, err)
		}
		if ev.WALEnd != c.want.WALEnd || ev.Reply != c.want.Reply || ev.HasPiece != (c.piece != 0) || ev.Piece.End != c.piece {
			t.Errorf("message %d gives %+v, want %+v and a piece up to %s", i, ev, c.want, c.piece)
		}
		if got := r.IsPast(150); got != c.past {
			t.Errorf("after message %d the reader is past 150: %v, want %v", i, got, c.past)
		}
	}
	for _, data := range [][]byte{nil, {'x'}} {
		if _, err := r.decode(data); !errors.Is(err, pgoutput.ErrMalformed) {
			t.Errorf("%q gives %v, want ErrMalformed", data, err)
		}
	}
	for _, data := range [][]byte{{'w', 0}, {'k', 0}} {
		if _, err := r.decode(data); err == nil {
			t.Errorf("%q was read", data)
		}
	}
}

package cdc

import (
	"context"
	"errors"
	"testing"
	"time"

	"dinnerbell/cdc/pgoutput"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

func piecesOf(changes int, end id.LSN, cut bool) pgoutput.Piece {
	p := pgoutput.Piece{End: end, Partial: cut, Bytes: changes * 100}
	for range changes {
		p.Changes = append(p.Changes, id.Change{Op: id.Insert, Row: "x"})
	}
	return p
}

// Small transactions join, parts do not, and a keepalive never overtakes.
func TestQueueGroups(t *testing.T) {
	t.Parallel()
	q := newGroupQueue()
	put := func(p pgoutput.Piece) {
		if err := q.putPiece(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	put(piecesOf(1, 10, false))
	put(piecesOf(2, 20, false))
	q.putKeepalive(25, false)
	put(piecesOf(maxGroupChanges, 30, false))
	put(piecesOf(5, 0, true))
	put(piecesOf(1, 40, true))
	q.putKeepalive(45, true)
	put(piecesOf(1, 50, false))
	for i, want := range []changeGroup{
		{batch: state.Batch{End: 20}, bytes: 300, observed: 25},
		{batch: state.Batch{End: 30}, bytes: 100 * maxGroupChanges, observed: 30},
		{bytes: 500, partial: true},
		{batch: state.Batch{End: 40}, bytes: 100, partial: true, observed: 45, persist: true},
		{batch: state.Batch{End: 50}, bytes: 100, observed: 50},
	} {
		g, ok := q.takeGroup()
		if !ok || g.batch.End != want.batch.End || g.bytes != want.bytes || g.partial != want.partial || g.observed != want.observed || g.persist != want.persist {
			t.Errorf("group %d is %+v, want %+v", i, g, want)
		}
		q.releaseGroup(g)
	}
	if _, ok := q.takeGroup(); ok || q.bytes != 0 {
		t.Errorf("queue is not empty: %d bytes", q.bytes)
	}
	q.putKeepalive(60, false)
	if g, ok := q.takeGroup(); !ok || !g.isEmpty() || g.observed != 60 {
		t.Errorf("a keepalive alone gives %+v", g)
	}
}

// A full queue makes the receiver wait, until there is room or its context ends.
func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	q := newGroupQueue()
	p := piecesOf(1, 10, true)
	p.Bytes = maxQueueBytes
	if err := q.putPiece(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := q.putPiece(ctx, p); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("put into a full queue: %v", err)
	}
	done := make(chan error)
	go func() { done <- q.putPiece(t.Context(), p) }()
	g, _ := q.takeGroup()
	q.releaseGroup(g)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

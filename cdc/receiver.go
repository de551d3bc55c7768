package cdc

import (
	"context"

	"dinnerbell/cdc/replication"
)

// walReceiver owns the reading half of the stream: it queues the pieces that come
// in. It waits only when the queue is full: then TCP makes the walsender wait too.
type walReceiver struct {
	in     *replication.Reader
	queue  *groupQueue
	status *replication.StatusSender
	stats  *mirrorStats
}

// run returns when the stream ends or is interrupted.
func (r *walReceiver) run(ctx context.Context) error {
	var badBefore, nullBefore int64
	for {
		ev, err := r.in.Next()
		bad, null := r.in.SkippedIDs()
		if bad != badBefore || null != nullBefore {
			r.stats.badIDs.Add(bad - badBefore)
			r.stats.nullIDs.Add(null - nullBefore)
			badBefore, nullBefore = bad, null
		}
		if err != nil {
			return ignoreCanceled(ctx, err)
		}
		if err := r.queueEvent(ctx, &ev); err != nil {
			return err
		}
	}
}

// queueEvent queues a piece, or the position of a keepalive behind all pieces.
func (r *walReceiver) queueEvent(ctx context.Context, ev *replication.Event) error {
	if ev.HasPiece {
		r.status.NoteReceived(ev.Piece.End)
		return r.queue.put(ctx, ev.Piece)
	}
	if ev.WALEnd != 0 {
		r.status.NoteReceived(ev.WALEnd)
		r.queue.putKeepalive(ev.WALEnd, ev.Reply)
	}
	if ev.Reply {
		r.status.SendSoon()
	}
	return nil
}

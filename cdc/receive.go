package cdc

import (
	"context"
	"fmt"

	"github.com/jackc/pglogrepl"

	"dinnerbell/cdc/pgoutput"
	"dinnerbell/state/id"
)

// walReceiver owns the reading half of the stream: it decodes what comes in and
// queues it. It waits only when the queue is full.
type walReceiver struct {
	in     *walStream
	asm    *pgoutput.Assembler
	queue  *groupQueue
	status *statusSender
	stats  *mirrorStats
}

// run returns when the stream ends or is interrupted.
func (r *walReceiver) run(ctx context.Context) error {
	for {
		r.status.waiting.Store(true)
		data, err := r.in.receiveData()
		r.status.waiting.Store(false)
		if err != nil {
			return ignoreCanceled(ctx, err)
		}
		r.status.messages.Add(1)
		if err := r.handleMessage(ctx, data); err != nil {
			return err
		}
	}
}

// handleMessage takes one CopyData payload of the streaming replication protocol.
// https://www.postgresql.org/docs/current/protocol-replication.html
func (r *walReceiver) handleMessage(ctx context.Context, data []byte) error {
	msg, err := parseMessage(data)
	switch {
	case err != nil:
		return err
	case msg.wal != nil:
		return r.queueChanges(ctx, msg.wal)
	}
	r.queueKeepalive(msg.end, msg.reply)
	return nil
}

// walMessage is what the server sends while it streams: WAL data, or a keepalive
// that tells how far it has sent.
type walMessage struct {
	wal   []byte // nil: a keepalive
	end   id.LSN
	reply bool // it asks for an answer at once
}

// parseMessage reads one CopyData payload, which wal is a view of.
func parseMessage(data []byte) (walMessage, error) {
	if len(data) == 0 {
		return walMessage{}, fmt.Errorf("read empty CopyData: %w", pgoutput.ErrMalformed)
	}
	switch data[0] {
	case pglogrepl.XLogDataByteID:
		x, err := pglogrepl.ParseXLogData(data[1:])
		if err != nil {
			return walMessage{}, fmt.Errorf("read WAL data: %w", err)
		}
		return walMessage{wal: x.WALData}, nil
	case pglogrepl.PrimaryKeepaliveMessageByteID:
		k, err := pglogrepl.ParsePrimaryKeepaliveMessage(data[1:])
		if err != nil {
			return walMessage{}, fmt.Errorf("read keepalive: %w", err)
		}
		return walMessage{end: id.LSN(k.ServerWALEnd), reply: k.ReplyRequested}, nil
	}
	return walMessage{}, fmt.Errorf("read CopyData %q: %w", data[0], pgoutput.ErrMalformed)
}

// queueChanges feeds one pgoutput message to the assembler, and queues what is
// whole. It may wait for room: then TCP makes the walsender wait too.
func (r *walReceiver) queueChanges(ctx context.Context, msg []byte) error {
	badBefore, nullBefore := r.asm.SkippedIDs()
	p, ok, err := r.asm.Add(msg)
	bad, null := r.asm.SkippedIDs()
	if bad != badBefore {
		r.stats.badIDs.Add(bad - badBefore)
	}
	if null != nullBefore {
		r.stats.nullIDs.Add(null - nullBefore)
	}
	if err != nil || !ok {
		return err
	}
	if p.End != 0 {
		r.noteReceived(p.End)
	}
	return r.queue.put(ctx, p)
}

// queueKeepalive takes a position: everything that committed up to it has been sent.
// In the middle of a transaction it tells nothing that could be used.
func (r *walReceiver) queueKeepalive(walEnd id.LSN, reply bool) {
	if !r.asm.InTransaction() && walEnd != 0 {
		r.noteReceived(walEnd)
		r.queue.putKeepalive(walEnd, reply)
	}
	if reply {
		wakeWaiter(r.status.wake)
	}
}

// noteReceived moves the write position, which tells the server what has arrived and
// acknowledges nothing.
func (r *walReceiver) noteReceived(lsn id.LSN) {
	if uint64(lsn) > r.status.received.Load() {
		r.status.received.Store(uint64(lsn))
	}
}

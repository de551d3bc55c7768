package replication

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"dinnerbell/state/id"
)

const (
	// maxStatusEvery is the longest time between two status messages.
	maxStatusEvery = time.Second
	// After each askAfter without a message the sender asks the server for one, and
	// after deadAfter it counts the server as gone. Otherwise only TCP would
	// notice, in a quarter of an hour, that the network to the server vanished.
	askAfter, deadAfter = 10 * time.Second, 40 * time.Second
)

// ErrSilent reports that the server sent nothing although it was asked for an
// answer.
var ErrSilent = errors.New("no answer from the server")

// StatusSender owns the writing half of the stream: it sends the positions that
// were received and that are durable here.
type StatusSender struct {
	out         *Stream
	wake        chan struct{} // cap 1: send at once
	replyWanted atomic.Bool   // and ask for a keepalive
	received    atomic.Uint64 // set by the receiver
	durable     atomic.Uint64 // set by the syncer, to what Sync returned

	messages atomic.Uint64 // read by the receiver so far
	waiting  atomic.Bool   // the receiver waits for the server, not for the applier
}

// NewStatusSender starts at the durable position: the first message must not carry
// zero, and nothing newer has been synced yet.
func NewStatusSender(out *Stream, durable id.LSN) *StatusSender {
	f := &StatusSender{out: out, wake: make(chan struct{}, 1)}
	f.durable.Store(uint64(durable))
	return f
}

// StatusInterval is the time between two status messages, well inside
// wal_sender_timeout; zero: the server has no timeout.
func StatusInterval(walSenderTimeout time.Duration) time.Duration {
	if walSenderTimeout <= 0 {
		return maxStatusEvery
	}
	return max(min(maxStatusEvery, walSenderTimeout/3), 10*time.Millisecond)
}

// Run sends the positions every tick and when woken, however long the applier
// takes.
func (f *StatusSender) Run(ctx context.Context, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var seen uint64
	var silent, asked time.Duration
	for {
		ask := false
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
		case <-tick.C:
			silent += every
			if n := f.messages.Load(); n != seen || !f.waiting.Load() {
				seen, silent, asked = n, 0, 0
			}
			if silent > deadAfter {
				return ErrSilent
			}
			if ask = silent-asked >= askAfter; ask {
				asked = silent
			}
		}
		if err := f.Send(f.replyWanted.Swap(false) || ask); err != nil {
			return err
		}
	}
}

// Send sends the present positions; ask wants a keepalive back.
func (f *StatusSender) Send(ask bool) error {
	return f.out.sendStatus(id.LSN(f.received.Load()), id.LSN(f.durable.Load()), ask)
}

// RequestReply asks the server at once for the position up to which it has sent.
func (f *StatusSender) RequestReply() {
	f.replyWanted.Store(true)
	f.SendSoon()
}

// NoteDurable notes a position that is on disk and reports it to the server.
func (f *StatusSender) NoteDurable(lsn id.LSN) {
	if uint64(lsn) > f.durable.Load() {
		f.durable.Store(uint64(lsn))
		f.SendSoon()
	}
}

// NoteReceived moves the write position, which shows the server how much has
// arrived and acknowledges nothing. The receiver alone calls it.
func (f *StatusSender) NoteReceived(lsn id.LSN) {
	if uint64(lsn) > f.received.Load() {
		f.received.Store(uint64(lsn))
	}
}

// NoteDone moves both positions, for the next status message: for a stream that
// does not come again.
func (f *StatusSender) NoteDone(lsn id.LSN) {
	f.received.Store(uint64(lsn))
	f.durable.Store(uint64(lsn))
}

// Waiting reports whether the reader waits for the server.
func (f *StatusSender) Waiting() bool { return f.waiting.Load() }

// SendSoon wakes Run, which sends the positions at once.
func (f *StatusSender) SendSoon() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

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
	// After each askAfter without a message the server is asked for one, and
	// after deadAfter it counts as gone. Without that, a server whose network
	// vanished would be noticed only by TCP, in a quarter of an hour.
	askAfter, deadAfter = 10 * time.Second, 40 * time.Second
)

// ErrSilent: nothing came although an answer was asked for.
var ErrSilent = errors.New("no answer from the server")

// StatusSender owns the writing half of the stream.
type StatusSender struct {
	out         *Stream
	wake        chan struct{} // cap 1: send now
	replyWanted atomic.Bool   // and ask for a keepalive
	received    atomic.Uint64 // set by the receiver
	durable     atomic.Uint64 // set by the syncer, to what Sync returned

	messages atomic.Uint64 // how many the receiver has read
	waiting  atomic.Bool   // the receiver waits for the server, not for the applier
}

// NewStatusSender starts at what is on disk: the first message must not tell zero,
// and nothing newer has been synced yet.
func NewStatusSender(out *Stream, durable id.LSN) *StatusSender {
	f := &StatusSender{out: out, wake: make(chan struct{}, 1)}
	f.durable.Store(uint64(durable))
	return f
}

// StatusInterval keeps us well inside wal_sender_timeout; zero turns that off.
func StatusInterval(walSenderTimeout time.Duration) time.Duration {
	if walSenderTimeout <= 0 {
		return maxStatusEvery
	}
	return max(min(maxStatusEvery, walSenderTimeout/3), 10*time.Millisecond)
}

// Run sends our positions every tick, whatever the applier does, and when
// woken.
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

// Send tells the positions as they are now; ask wants a keepalive back.
func (f *StatusSender) Send(ask bool) error {
	return f.out.sendStatus(id.LSN(f.received.Load()), id.LSN(f.durable.Load()), ask)
}

// RequestReply makes the server tell how far it has sent, at once.
func (f *StatusSender) RequestReply() {
	f.replyWanted.Store(true)
	f.SendSoon()
}

// NoteDurable takes note of a position that is on disk and lets the server know.
func (f *StatusSender) NoteDurable(lsn id.LSN) {
	if uint64(lsn) > f.durable.Load() {
		f.durable.Store(uint64(lsn))
		f.SendSoon()
	}
}

// NoteReceived moves the write position, which shows the server what has arrived
// and acknowledges nothing. The receiver alone calls it.
func (f *StatusSender) NoteReceived(lsn id.LSN) {
	if uint64(lsn) > f.received.Load() {
		f.received.Store(uint64(lsn))
	}
}

// NoteDone moves both positions with the next status message: for a stream that
// does not come again.
func (f *StatusSender) NoteDone(lsn id.LSN) {
	f.received.Store(uint64(lsn))
	f.durable.Store(uint64(lsn))
}

// Waiting reports whether the reader waits for the server.
func (f *StatusSender) Waiting() bool { return f.waiting.Load() }

// SendSoon wakes run, which sends the positions at once.
func (f *StatusSender) SendSoon() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

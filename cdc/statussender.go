package cdc

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

// errSilent: nothing came although an answer was asked for.
var errSilent = errors.New("no answer from the server")

// statusSender owns the writing half of the stream.
type statusSender struct {
	out         *walStream
	wake        chan struct{} // cap 1: send now
	replyWanted atomic.Bool   // and ask for a keepalive
	received    atomic.Uint64 // set by the receiver
	durable     atomic.Uint64 // set by the syncer, to what Sync returned

	messages atomic.Uint64 // how many the receiver has read
	waiting  atomic.Bool   // the receiver waits for the server, not for the applier
}

// newStatusSender starts at what is on disk: the first message must not tell zero,
// and nothing newer has been synced yet.
func newStatusSender(out *walStream, durable id.LSN) *statusSender {
	f := &statusSender{out: out, wake: make(chan struct{}, 1)}
	f.durable.Store(uint64(durable))
	return f
}

// statusInterval keeps us well inside wal_sender_timeout; zero turns that off.
func statusInterval(walSenderTimeout time.Duration) time.Duration {
	if walSenderTimeout <= 0 {
		return maxStatusEvery
	}
	return max(min(maxStatusEvery, walSenderTimeout/3), 10*time.Millisecond)
}

// run sends our positions every tick, whatever the applier does, and when
// woken.
func (f *statusSender) run(ctx context.Context, every time.Duration) error {
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
				return errSilent
			}
			if ask = silent-asked >= askAfter; ask {
				asked = silent
			}
		}
		if err := f.sendPositions(f.replyWanted.Swap(false) || ask); err != nil {
			return err
		}
	}
}

// sendPositions tells the positions as they are now; ask wants a keepalive back.
func (f *statusSender) sendPositions(ask bool) error {
	return f.out.sendStatus(id.LSN(f.received.Load()), id.LSN(f.durable.Load()), ask)
}

// requestReply makes the server tell how far it has sent, at once.
func (f *statusSender) requestReply() {
	f.replyWanted.Store(true)
	f.SendSoon()
}

// noteDurable takes note of a position that is on disk and lets the server know.
func (f *statusSender) noteDurable(lsn id.LSN) {
	if uint64(lsn) > f.durable.Load() {
		f.durable.Store(uint64(lsn))
		f.SendSoon()
	}
}

// NoteReceived moves the write position, which shows the server what has arrived
// and acknowledges nothing. The receiver alone calls it.
func (f *statusSender) NoteReceived(lsn id.LSN) {
	if uint64(lsn) > f.received.Load() {
		f.received.Store(uint64(lsn))
	}
}

// NoteDone moves both positions with the next status message: for a stream that
// does not come again.
func (f *statusSender) NoteDone(lsn id.LSN) {
	f.received.Store(uint64(lsn))
	f.durable.Store(uint64(lsn))
}

// Waiting reports whether the reader waits for the server.
func (f *statusSender) Waiting() bool { return f.waiting.Load() }

// SendSoon wakes run, which sends the positions at once.
func (f *statusSender) SendSoon() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

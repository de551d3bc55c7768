package cdc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"dinnerbell/cdc/source"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

// appliedPosition is how far the local state is: everything that committed up to
// observed is visible. It moves with applied transactions and with keepalives,
// which come when the server had nothing to send.
type appliedPosition struct {
	observed atomic.Uint64
	// inTransaction: a part of a transaction is in the store, its end is not. It
	// outlives a session, as the part does.
	inTransaction atomic.Bool

	mu        sync.Mutex    // guards below
	epoch     uint64        // of the session; LSNs of two sessions are not compared
	streaming bool          // a session streams
	moved     chan struct{} // closed at the next change; nil while nobody waits
}

// load returns the position of the moment. It only grows within a session.
func (p *appliedPosition) load() id.LSN { return id.LSN(p.observed.Load()) }

// openSession begins a session at the position of the store.
func (p *appliedPosition) openSession(at id.LSN) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.observed.Store(uint64(at))
	p.epoch++
	p.streaming = true
	p.wakeLocked()
}

// closeSession ends the session: positions that were read from its server are void.
func (p *appliedPosition) closeSession() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.streaming = false
	p.wakeLocked()
}

// advance moves the position. The applier alone calls it.
func (p *appliedPosition) advance(to id.LSN) {
	if uint64(to) > p.observed.Load() {
		p.observed.Store(uint64(to))
	}
	p.mu.Lock()
	p.wakeLocked()
	p.mu.Unlock()
}

// wakeLocked lets all waiters look again.
func (p *appliedPosition) wakeLocked() {
	if p.moved != nil {
		close(p.moved)
		p.moved = nil
	}
}

// currentEpoch returns the session's number; 0: no session streams.
func (p *appliedPosition) currentEpoch() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.streaming {
		return 0
	}
	return p.epoch
}

// watchEpoch returns how far the session epoch is, and a channel that closes when
// that changes. ok is false if that session is over.
func (p *appliedPosition) watchEpoch(epoch uint64) (at id.LSN, moved <-chan struct{}, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.streaming || p.epoch != epoch {
		return 0, nil, false
	}
	if p.moved == nil {
		p.moved = make(chan struct{})
	}
	return p.load(), p.moved, true
}

const (
	// maxHold is the longest that the stream waits for a rebuild to come to the
	// same position. The work after that costs one write.
	maxHold = 500 * time.Millisecond
	// transactionPoll is the time between two looks whether a transaction that a
	// broken session left behind in parts has come to its end.
	transactionPoll = 20 * time.Millisecond
)

// storeGate is held by the applier while a transaction goes into the store, and by
// others who need the store to stand still between two transactions. The one who
// waits longest gets it first.
type storeGate struct {
	held  chan struct{} // cap 1
	store *state.Store
	pos   *appliedPosition
}

func newStoreGate(store *state.Store, pos *appliedPosition) *storeGate {
	return &storeGate{held: make(chan struct{}, 1), store: store, pos: pos}
}

// enterGate waits for the gate; false: ctx ended.
func (g *storeGate) enterGate(ctx context.Context) bool {
	select {
	case g.held <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (g *storeGate) leaveGate() { <-g.held }

// position is how far the local state is: everything that committed up to it is
// visible, whether the stream or a keepalive brought the position. It only grows
// within a session.
func (g *storeGate) position() id.LSN { return max(g.store.EndLSN(), g.pos.load()) }

// InTransaction reports whether a part of a transaction is in the store and its end
// is not. While the gate is free that happens where a session broke in the middle:
// the transaction comes again.
func (g *storeGate) InTransaction() bool {
	return g.pos.inTransaction.Load() || g.store.Torn()
}

// pausedStream is the stream standing between two transactions, for a limited time.
type pausedStream struct {
	at    id.LSN // where it stands
	gate  *storeGate
	timer *time.Timer
}

// pauseStream makes the stream wait at the end of a transaction, for limit at most.
func (g *storeGate) pauseStream(ctx context.Context, limit time.Duration) (*pausedStream, error) {
	for {
		if !g.enterGate(ctx) {
			return nil, ctx.Err()
		}
		if !g.InTransaction() {
			return &pausedStream{at: g.position(), gate: g, timer: time.AfterFunc(limit, g.leaveGate)}, nil
		}
		g.leaveGate()
		if !source.Sleep(ctx, transactionPoll) {
			return nil, ctx.Err()
		}
	}
}

// keepPaused takes the limit away, until resume. It returns false if the time was
// over before: then the stream has gone on already.
func (p *pausedStream) keepPaused() bool { return p.timer.Stop() }

// resumeStream lets the stream go on after keepPaused.
func (p *pausedStream) resumeStream() { p.gate.leaveGate() }

// whilePaused runs do while the stream stands between two transactions, however long
// it takes.
func (g *storeGate) whilePaused(ctx context.Context, do func(at id.LSN) error) error {
	for {
		if !g.enterGate(ctx) {
			return ctx.Err()
		}
		err := fmt.Errorf("a transaction is applied in parts: %w", state.ErrNotThere)
		if !g.InTransaction() {
			err = do(g.position())
		}
		g.leaveGate()
		if !errors.Is(err, state.ErrNotThere) {
			return err
		}
		if !source.Sleep(ctx, transactionPoll) {
			return ctx.Err()
		}
	}
}

package cdc

import (
	"sync"
	"sync/atomic"

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

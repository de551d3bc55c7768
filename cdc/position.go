package cdc

import (
	"sync"
	"sync/atomic"

	"dinnerbell/state/id"
)

// appliedPosition is how far the local state is: everything that committed up to
// observed is visible. It moves with applied transactions and with keepalives,
// which come when nothing was sent for us.
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

// load gives the position of the moment. It only grows within a session.
func (p *appliedPosition) load() id.LSN { return id.LSN(p.observed.Load()) }

// openSession begins a session, at what the store holds.
func (p *appliedPosition) openSession(at id.LSN) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.observed.Store(uint64(at))
	p.epoch++
	p.streaming = true
	p.wakeLocked()
}

// closeSession ends the session: what was read from its server is void.
func (p *appliedPosition) closeSession() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.streaming = false
	p.wakeLocked()
}

// advance is called by the applier alone.
func (p *appliedPosition) advance(to id.LSN) {
	if uint64(to) > p.observed.Load() {
		p.observed.Store(uint64(to))
	}
	p.mu.Lock()
	p.wakeLocked()
	p.mu.Unlock()
}

// wakeLocked lets all who wait look again. The caller holds mu.
func (p *appliedPosition) wakeLocked() {
	if p.moved != nil {
		close(p.moved)
		p.moved = nil
	}
}

// currentEpoch gives the session's number, 0 if there is none.
func (p *appliedPosition) currentEpoch() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.streaming {
		return 0
	}
	return p.epoch
}

// watchEpoch tells how far the session epoch is, and a channel that closes when that
// changes. ok is false if that session is over.
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

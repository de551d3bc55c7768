package cdc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"dinnerbell/cdc/source"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

const (
	// maxHold is the longest that the stream waits for a rebuild to come to the
	// same position. What comes after it costs one write.
	maxHold = 500 * time.Millisecond
	// partsPoll is how often it is looked whether a transaction that a broken
	// session left in parts has come to its end.
	partsPoll = 20 * time.Millisecond
)

// storeGate is held by the applier while a transaction goes into the store, and by
// others who need the store to stand still between two. Who waits longest gets
// it first.
type storeGate chan struct{}

func newGate() storeGate { return make(storeGate, 1) }

// enter waits for the gate; false: ctx ended.
func (g storeGate) enter(ctx context.Context) bool {
	select {
	case g <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func (g storeGate) leave() { <-g }

// position is how far the local state is: everything that committed up to it is
// visible, whether the stream or a keepalive told. It only grows within a session.
func (m *Mirror) position() id.LSN { return max(m.store.EndLSN(), m.pos.load()) }

// pausedStream is the stream standing between two transactions, for a limited time.
type pausedStream struct {
	at    id.LSN // where it stands
	gate  storeGate
	timer *time.Timer
}

// pause makes the stream wait at the end of a transaction, for limit at most.
func (m *Mirror) pause(ctx context.Context, limit time.Duration) (*pausedStream, error) {
	for {
		if !m.gate.enter(ctx) {
			return nil, ctx.Err()
		}
		if m.between() {
			return &pausedStream{at: m.position(), gate: m.gate, timer: time.AfterFunc(limit, m.gate.leave)}, nil
		}
		m.gate.leave()
		if !source.Sleep(ctx, partsPoll) {
			return nil, ctx.Err()
		}
	}
}

// keepPaused takes the limit away, until leave. It returns false if the time was over
// before: then the stream has gone on already.
func (h *pausedStream) keepPaused() bool { return h.timer.Stop() }

// resume lets the stream go on after keep.
func (h *pausedStream) resume() { h.gate.leave() }

// between says that no transaction lies in the store in parts. One does while
// the gate is free if the session broke in the middle: it comes again.
func (m *Mirror) between() bool { return !m.pos.partial.Load() && !m.store.Torn() }

// whilePaused runs do while the stream stands between two transactions, however long
// it takes.
func (m *Mirror) whilePaused(ctx context.Context, do func(at id.LSN) error) error {
	for {
		if !m.gate.enter(ctx) {
			return ctx.Err()
		}
		err := fmt.Errorf("a transaction is applied in parts: %w", state.ErrNotThere)
		if m.between() {
			err = do(m.position())
		}
		m.gate.leave()
		if !errors.Is(err, state.ErrNotThere) {
			return err
		}
		if !source.Sleep(ctx, partsPoll) {
			return ctx.Err()
		}
	}
}

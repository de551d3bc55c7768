package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"dinnerbell/cdc"
	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/control"
	"dinnerbell/cmd/dinnerbell/internal/logging"
	"dinnerbell/state"
	"dinnerbell/stream"
)

// errReplaced: the action needs the local state, which is being set aside.
var errReplaced = errors.New("the local state was damaged and is being rebuilt; see: dinnerbell status")

// Engine are the two that do the work, around one open store: the mirror writes
// it, the service reads it. When the store turns out to be damaged, new halves
// around a new store take their place; so ask [daemon.engine] each time, and
// keep none of them. Between two stores the old ones are still there, and the
// store answers with state.ErrClosed.
type Engine struct {
	Config  *config.Config
	Store   *state.Store
	Mirror  *cdc.Mirror
	Service *stream.Service
	before  carriedCounts // by the engines that this process had before
	LoadGC  *loadGC

	calls  context.Context //nolint:containedctx // of the actions under way: it ends them before the store closes
	end    context.CancelCauseFunc
	mu     sync.RWMutex // held shared by each action and exclusively by close
	closed bool
}

// currentEngine gives the present ones; nil before the first are made.
func (d *supervisor) currentEngine() *Engine { return d.current.Load() }

// carriedCounts is what mirrors and services count, whose sums must not fall when others
// take their place.
type carriedCounts struct {
	stream                     stream.Counts
	badIDs, nullIDs, failovers int64
}

// addTo adds the counts to those of the present halves.
func (c carriedCounts) addTo(m *cdc.Status, s *stream.Status) {
	s.Counts = s.Add(c.stream)
	m.BadIDs, m.NullIDs, m.Failovers = m.BadIDs+c.badIDs, m.NullIDs+c.nullIDs, m.Failovers+c.failovers
}

// totalCounts are the counts of all halves so far; the present ones have ended.
func (d *supervisor) totalCounts() carriedCounts {
	h := d.currentEngine()
	if h == nil {
		return carriedCounts{}
	}
	m, s := h.Mirror.Status(), h.Service.Status()
	h.before.addTo(&m, &s)
	return carriedCounts{stream: s.Counts, badIDs: m.BadIDs, nullIDs: m.NullIDs, failovers: m.Failovers}
}

// newEngine puts halves around a store and makes them the present ones.
func (d *supervisor) newEngine(store *state.Store) *Engine {
	h := &Engine{Config: d.Config, Store: store, before: d.totalCounts(), LoadGC: &d.gc}
	source := SourceConfig(d.Config, d.Logger)
	source.NextOffsets = h.NextOffsets
	h.Mirror = cdc.New(source, store)
	h.Service = stream.New(streamConfig(d.Config, d.Logger), store, barrier{h.Mirror, d.waits})
	h.calls, h.end = context.WithCancelCause(context.Background())
	d.current.Store(h)
	return h
}

// isAdmitted says whether the service was started.
func (h *Engine) isAdmitted() bool {
	select {
	case <-h.Mirror.Admitted():
		return true
	default:
		return false
	}
}

// close closes the store, once all actions that use it have ended. Mirror and
// service have ended before.
func (h *Engine) close() error {
	h.end(errReplaced)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	h.closed = true
	if err := h.Store.Close(); err != nil {
		return fmt.Errorf("close state: %w", err)
	}
	return nil
}

// Action is an action of a client upon the current engine, whose store stays
// open while it runs; ctx ends when the store must be closed. It keeps nothing of
// the engine.
type Action func(ctx context.Context, e *Engine, c *control.Call) (result any, err error)

// withEngine runs an action only while the current engine's store is open, and ends
// it when the store has to be closed.
func (d *supervisor) withEngine(do Action) control.Action {
	return func(ctx context.Context, c *control.Call) (any, error) {
		h := d.currentEngine()
		h.mu.RLock()
		defer h.mu.RUnlock()
		if h.closed {
			return nil, errReplaced
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(h.calls, func() { cancel(errReplaced) })()
		result, err := do(ctx, h, c)
		if err != nil && errors.Is(context.Cause(ctx), errReplaced) {
			err = errReplaced
		}
		if err != nil {
			err = &shownError{text: logging.Line(d.Config.Hide(err.Error())), err: err}
		}
		return result, err
	}
}

// shownError is an error with a text that a client may have.
type shownError struct {
	text string
	err  error
}

// Error gives the text without secrets.
func (e *shownError) Error() string { return e.text }

// Unwrap gives the error with its own text.
func (e *shownError) Unwrap() error { return e.err }

// NextOffsets returns those of the lanes that this daemon owns.
func (h *Engine) NextOffsets() map[int32]int64 {
	offsets := map[int32]int64{}
	for _, l := range h.Service.Status().Lanes {
		if l.Epoch > 0 { // else it has not read its place yet
			offsets[l.Partition] = l.NextOffset
		}
	}
	return offsets
}

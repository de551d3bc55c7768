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

// errReplaced ends an action that needs the local state while the state is being
// set aside.
var errReplaced = errors.New("the local state was damaged and is being rebuilt; see: dinnerbell status")

// Engine is one open store with the mirror that writes it and the service that
// reads it. When the store is damaged, the supervisor replaces the engine by a new
// one; so ask supervisor.currentEngine each time and keep no engine. Until the new
// one is there the old one is still the current one, and its store answers with
// state.ErrClosed.
type Engine struct {
	Config  *config.Config
	Store   *state.Store
	Mirror  *cdc.Mirror
	Service *stream.Service
	before  carriedCounts // of the engines that this process had before
	LoadGC  *loadGC

	calls  context.Context //nolint:containedctx // of the actions under way: it ends them before the store closes
	end    context.CancelCauseFunc
	mu     sync.RWMutex // held shared by each action and exclusively by close
	closed bool
}

// currentEngine returns the engine that works now; nil before the first is made.
func (s *supervisor) currentEngine() *Engine { return s.current.Load() }

// carriedCounts are the counts of former engines: the daemon's sums must not fall
// when an engine is replaced.
type carriedCounts struct {
	stream                     stream.Counts
	badIDs, nullIDs, failovers int64
	reconnects, snapshots      int64
}

// addTo adds the counts to the statuses of the current engine.
func (c carriedCounts) addTo(m *cdc.Status, s *stream.Status) {
	s.Counts = s.Add(c.stream)
	m.BadIDs, m.NullIDs, m.Failovers = m.BadIDs+c.badIDs, m.NullIDs+c.nullIDs, m.Failovers+c.failovers
	m.Reconnects, m.Snapshots = m.Reconnects+c.reconnects, m.Snapshots+c.snapshots
}

// totalCounts returns the counts of all engines so far. The current one has ended.
func (s *supervisor) totalCounts() carriedCounts {
	e := s.currentEngine()
	if e == nil {
		return carriedCounts{}
	}
	source, lanes := e.Mirror.Status(), e.Service.Status()
	e.before.addTo(&source, &lanes)
	return carriedCounts{
		stream: lanes.Counts, badIDs: source.BadIDs, nullIDs: source.NullIDs, failovers: source.Failovers, reconnects: source.Reconnects, snapshots: source.Snapshots,
	}
}

// newEngine makes an engine around a store, which becomes the current one.
func (s *supervisor) newEngine(store *state.Store) *Engine {
	e := &Engine{Config: s.Config, Store: store, before: s.totalCounts(), LoadGC: &s.gc}
	source := SourceConfig(s.Config, s.Logger)
	source.NextOffsets, source.Delays = e.NextOffsets, s.durations.SourceApplied
	e.Mirror = cdc.New(source, store)
	lanes, fresh := streamConfig(s.Config, s.Logger), barrier{e.Mirror, s.durations.FreshnessWait}
	lanes.Kafka.ClientOptions = withHook(lanes.Kafka.ClientOptions, s.kafka)
	lanes.Durations = stream.Durations{Decided: s.durations.CampaignDecided, Delivered: s.durations.CampaignDelivered, Shipped: s.durations.StepShipped}
	lanes.Committed, lanes.Tracer = fresh.awaitCommitted, s.tracer
	e.Service = stream.New(lanes, store, fresh)
	e.calls, e.end = context.WithCancelCause(context.Background())
	s.current.Store(e)
	e.Service.SetLimits(*s.limits.Load()) // as the current engine: a reload may come between
	return e
}

// isAdmitted reports whether the service was started.
func (e *Engine) isAdmitted() bool {
	select {
	case <-e.Mirror.Admitted():
		return true
	default:
		return false
	}
}

// close ends all actions that use the store, then closes it. Mirror and service
// have ended before.
func (e *Engine) close() error {
	e.end(errReplaced)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	if err := e.Store.Close(); err != nil {
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
func (s *supervisor) withEngine(do Action) control.Action {
	return func(ctx context.Context, c *control.Call) (any, error) {
		e := s.currentEngine()
		e.mu.RLock()
		defer e.mu.RUnlock()
		if e.closed {
			return nil, errReplaced
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(e.calls, func() { cancel(errReplaced) })()
		result, err := do(ctx, e, c)
		if err != nil && errors.Is(context.Cause(ctx), errReplaced) {
			err = errReplaced
		}
		if err != nil {
			err = &shownError{text: logging.Line(s.Config.Hide(err.Error())), err: err}
		}
		return result, err
	}
}

// shownError is an error with a text that a client may see.
type shownError struct {
	text string
	err  error
}

// Error returns the text without secrets.
func (e *shownError) Error() string { return e.text }

// Unwrap returns the original error.
func (e *shownError) Unwrap() error { return e.err }

// NextOffsets returns those of the lanes that this daemon owns.
func (e *Engine) NextOffsets() map[int32]int64 {
	offsets := map[int32]int64{}
	for _, l := range e.Service.Status().Lanes {
		if l.Epoch > 0 { // else it has not read its place yet
			offsets[l.Partition] = l.NextOffset
		}
	}
	return offsets
}

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"dinnerbell/cdc"
	"dinnerbell/cmd/dinnerbell/internal/logging"
	"dinnerbell/internal/halt"
	"dinnerbell/state"
	"dinnerbell/stream"
)

// errReplaced: the action needs the local state, which is being set aside.
var errReplaced = errors.New("the local state was damaged and is being rebuilt; see: dinnerbell status")

// engine are the two that do the work, around one open store: the mirror writes
// it, the service reads it. When the store turns out to be damaged, new halves
// around a new store take their place; so ask [daemon.engine] each time, and
// keep none of them. Between two stores the old ones are still there, and the
// store answers with state.ErrClosed.
type engine struct {
	store   *state.Store
	mirror  *cdc.Mirror
	service *stream.Service
	before  carriedCounts // by the halves that this process had before

	calls  context.Context //nolint:containedctx // of the actions under way: it ends them before the store closes
	end    context.CancelCauseFunc
	mu     sync.RWMutex // held shared by each action and exclusively by close
	closed bool
}

// engine gives the present ones; nil before the first are made.
func (d *daemon) engine() *engine { return d.current.Load() }

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
func (d *daemon) totalCounts() carriedCounts {
	h := d.engine()
	if h == nil {
		return carriedCounts{}
	}
	m, s := h.mirror.Status(), h.service.Status()
	h.before.addTo(&m, &s)
	return carriedCounts{stream: s.Counts, badIDs: m.BadIDs, nullIDs: m.NullIDs, failovers: m.Failovers}
}

// newEngine puts halves around a store and makes them the present ones.
func (d *daemon) newEngine(store *state.Store) *engine {
	h := &engine{store: store, before: d.totalCounts()}
	source := sourceConfig(d.cfg, d.log)
	source.NextOffsets = h.nextOffsets
	h.mirror = cdc.New(source, store)
	h.service = stream.New(streamConfig(d.cfg, d.log), store, barrier{h.mirror, d.waits})
	h.calls, h.end = context.WithCancelCause(context.Background())
	d.current.Store(h)
	return h
}

// admitted says whether the service was started.
func (h *engine) admitted() bool {
	select {
	case <-h.mirror.Admitted():
		return true
	default:
		return false
	}
}

// close closes the store, once all actions that use it have ended. Mirror and
// service have ended before.
func (h *engine) close() error {
	h.end(errReplaced)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	h.closed = true
	if err := h.store.Close(); err != nil {
		return fmt.Errorf("close state: %w", err)
	}
	return nil
}

// withStore lets an action run only while the store is open, and ends it when
// the store has to be closed.
func (d *daemon) withStore(do action) action {
	return func(ctx context.Context, c *call) (any, error) {
		h := d.engine()
		h.mu.RLock()
		defer h.mu.RUnlock()
		if h.closed {
			return nil, errReplaced
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		defer context.AfterFunc(h.calls, func() { cancel(errReplaced) })()
		result, err := do(ctx, c)
		if err != nil && errors.Is(context.Cause(ctx), errReplaced) {
			err = errReplaced
		}
		if err != nil {
			err = &shownError{text: logging.Line(d.cfg.Hide(err.Error())), err: err}
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

// Damage that comes back means a bad disk, and a snapshot costs the source's
// database something. So each new one within the window waits longer, and after
// the last the daemon asks for an operator.
const damageWindow = time.Hour

var damagePauses = []time.Duration{0, 10 * time.Second, time.Minute}

// damageHistory remembers when the store had to be set aside.
type damageHistory struct {
	mu    sync.Mutex
	total int64
	times []time.Time // within the window
}

// add notes damage at now, and returns how long to wait before the store is
// rebuilt; false if it has been rebuilt too often.
func (d *damageHistory) add(now time.Time) (time.Duration, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.total++
	for len(d.times) > 0 && now.Sub(d.times[0]) >= damageWindow {
		d.times = d.times[1:]
	}
	d.times = append(d.times, now)
	if len(d.times) > len(damagePauses) {
		return 0, false
	}
	return damagePauses[len(d.times)-1], true
}

// count is how often it happened since the daemon started.
func (d *damageHistory) count() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.total
}

// replace closes halves whose store is damaged and opens the directory again,
// which sets the store aside and gives an empty one: the mirror then takes a
// snapshot. HTTP goes on meanwhile.
func (d *daemon) replace(ctx context.Context, old *engine) (*engine, error) {
	reason := old.store.Damage()
	pause, ok := d.damage.add(time.Now())
	if err := old.close(); err != nil { // of what is damaged anyway
		d.log.Warn("damaged local state did not close in order", "error", err)
	}
	if !ok {
		return nil, d.damagedTooOften(reason)
	}
	if pause > 0 {
		d.log.Warn("local state was damaged again; waiting before it is rebuilt", "wait", pause)
	}
	select {
	case <-ctx.Done():
		return nil, nil //nolint:nilnil // asked to end: the mark in the directory keeps until the next start
	case <-time.After(pause):
	}
	store, err := openState(d.cfg, d.log, reason)
	if err != nil {
		return nil, err
	}
	return d.newEngine(store), nil
}

func (d *daemon) damagedTooOften(reason error) error {
	dir := d.cfg.State.Dir
	return &halt.Error{
		Part: halt.State,
		What: fmt.Sprintf("the local state in %s%s was damaged %d times within %s, last: %v", dir, filesystemOf(dir), len(damagePauses)+1, damageWindow, reason),
		Hint: "check that disk (kernel log, smartctl), or set state.dir to a folder on another one, and start the daemon again; nothing is lost with the local state",
	}
}

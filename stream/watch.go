package stream

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"dinnerbell/internal/precondition"
)

// stepPatience is how long a step may be under way before status and log show it.
// The client tries a request again inside, for half a minute, and shows nothing of
// the answers that it got.
const stepPatience = 2 * time.Second

// takeoverPhase is what a takeover is at: its name, and what finds out why it takes
// long, nil where nothing does.
type takeoverPhase struct {
	name  string
	probe func(ctx context.Context) error
}

// phaseWatch is the step under way; nil where its error is shown otherwise.
type phaseWatch struct{ now atomic.Pointer[takeoverPhase] }

// enter begins a step.
func (w *phaseWatch) enter(name string, probe func(ctx context.Context) error) {
	w.now.Store(&takeoverPhase{name, probe})
}

// watch calls show, again and again, with why a step takes long. It returns a
// function that ends it and waits for the last call.
func (w *phaseWatch) watch(ctx context.Context, patience time.Duration, show func(step string, why error)) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(patience)
		defer tick.Stop()
		var before *takeoverPhase
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			step := w.now.Load()
			if step != nil && step == before {
				if why := step.findCause(ctx); ctx.Err() == nil && w.now.Load() == step {
					show(step.name, why)
				}
			}
			before = step
		}
	}()
	return func() { cancel(); <-done }
}

var errNoAnswer = errors.New("no answer yet")

// findCause gives why the step takes long.
func (s *takeoverPhase) findCause(ctx context.Context) error {
	if s.probe == nil {
		return errNoAnswer
	}
	ctx, cancel := context.WithTimeout(ctx, precondition.Timeout)
	defer cancel()
	if err := s.probe(ctx); err != nil {
		return err
	}
	return errNoAnswer
}

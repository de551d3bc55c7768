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

// takeoverStep is what a takeover is at: its name, and what finds out why it takes
// long, nil where nothing does.
type takeoverStep struct {
	name  string
	probe func(ctx context.Context) error
}

// watchedStep is the step under way; nil where its error is shown otherwise.
type watchedStep struct{ now atomic.Pointer[takeoverStep] }

// enter begins a step.
func (w *watchedStep) enter(name string, probe func(ctx context.Context) error) {
	w.now.Store(&takeoverStep{name, probe})
}

// watch calls show, again and again, with why a step takes long. It returns a
// function that ends it and waits for the last call.
func (w *watchedStep) watch(ctx context.Context, patience time.Duration, show func(step string, why error)) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(patience)
		defer tick.Stop()
		var before *takeoverStep
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			step := w.now.Load()
			if step != nil && step == before {
				if why := step.find(ctx); ctx.Err() == nil && w.now.Load() == step {
					show(step.name, why)
				}
			}
			before = step
		}
	}()
	return func() { cancel(); <-done }
}

var errNoAnswer = errors.New("no answer yet")

// find gives why the step takes long.
func (s *takeoverStep) find(ctx context.Context) error {
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

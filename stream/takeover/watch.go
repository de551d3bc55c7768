package takeover

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"dinnerbell/internal/precondition"
)

// PhasePatience is how long a phase of a takeover may last before status and log show
// it. The Kafka client repeats a failed request for half a minute and does not report
// the answers that it gets.
const PhasePatience = 2 * time.Second

// takeoverPhase is a part of a takeover: its name, and a probe that finds out why the
// phase takes long, nil if there is none.
type takeoverPhase struct {
	name  string
	probe func(ctx context.Context) error
}

// PhaseWatch holds the present phase; nil before the first one.
type PhaseWatch struct{ now atomic.Pointer[takeoverPhase] }

// Enter begins a phase.
func (w *PhaseWatch) Enter(name string, probe func(ctx context.Context) error) {
	w.now.Store(&takeoverPhase{name, probe})
}

// Watch calls show with the cause whenever the present phase has lasted for longer than
// patience. It returns a function that stops the watch and waits for the last call of
// show.
func (w *PhaseWatch) Watch(ctx context.Context, patience time.Duration, show func(step string, why error)) (end func()) {
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

// ErrNoAnswer is the cause of a phase that waits for an answer.
var ErrNoAnswer = errors.New("no answer yet")

// findCause returns why the phase takes long.
func (p *takeoverPhase) findCause(ctx context.Context) error {
	if p.probe == nil {
		return ErrNoAnswer
	}
	ctx, cancel := context.WithTimeout(ctx, precondition.Timeout)
	defer cancel()
	if err := p.probe(ctx); err != nil {
		return err
	}
	return ErrNoAnswer
}

package cdc

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"dinnerbell/state"
)

// Freshness selects how fresh the local state must be for [Mirror.Barrier].
type Freshness string

const (
	// Strict waits until the local state holds everything that was committed
	// in Postgres before the call. It is the default.
	Strict Freshness = "strict"
	// Bounded waits only while the mirror is not known to have been fresh within
	// the last Config.MaxStaleness. The mirror is known to have been fresh at a
	// moment at which the server was asked for its position, once that position has
	// been reached here: everything that was committed before that moment is here.
	// Questions between two joins, several per MaxStaleness, count too. A server
	// that commits nothing stays at its position, so that a mirror whose stream is
	// stuck stays fresh as long as it misses nothing. After a start nothing is
	// known yet.
	Bounded Freshness = "bounded"
	// Off never waits, except for the first complete snapshot: no join reads an
	// empty state, nor half of a transaction that a crash left behind.
	Off Freshness = "off"
)

// DefaultMaxStaleness is the default of Config.MaxStaleness.
const DefaultMaxStaleness = 5 * time.Second

// Check returns an error for a value that is no Freshness.
func (f Freshness) Check() error {
	switch f {
	case Strict, Bounded, Off:
		return nil
	}
	return fmt.Errorf("%q is none of %s, %s, %s", string(f), Strict, Bounded, Off)
}

const (
	// asksPerStaleness is how often the position is asked for while the freshness
	// is bounded, and maxAskEvery the longest time between two questions.
	asksPerStaleness = 5
	maxAskEvery      = time.Second
	// maxAsking bounds the questions whose positions are not reached yet. They
	// cover more than MaxStaleness: older ones would be of no use.
	maxAsking = 2 * asksPerStaleness
	// rowsEvery is the time between two looks whether there are rows to join with.
	rowsEvery = 20 * time.Millisecond
)

// Barrier returns nil once the local state is as fresh as Config.Freshness asks
// for. It waits as long as that takes, through a snapshot and reconnects too. It
// returns ctx's error when ctx ends, and ErrStopped when Run has returned and
// nothing can become fresh any more. Any number of goroutines may call it; they
// share queries.
func (m *Mirror) Barrier(ctx context.Context) error { return m.barrier.awaitFresh(ctx) }

// AwaitCommitted returns nil once the local state holds everything that was committed in
// Postgres before the call, as Barrier does with Strict.
func (m *Mirror) AwaitCommitted(ctx context.Context) error { return m.barrier.awaitStrict(ctx) }

// freshnessBarrier is the state behind [Mirror.Barrier]. It outlives sessions:
// callers wait across them.
type freshnessBarrier struct {
	freshness    Freshness
	maxStaleness time.Duration
	store        *state.Store
	pos          *appliedPosition
	stats        *mirrorStats
	stopped      <-chan struct{} // closed when nothing can become fresh any more

	queries queryQueue
	fresh   knownFresh
	settled broadcast // the rows and the catalogs may agree again
}

// awaitFresh waits until the state is as fresh as the configuration asks for.
func (b *freshnessBarrier) awaitFresh(ctx context.Context) error {
	wait := b.awaitStrict
	switch b.freshness {
	case Strict:
	case Bounded:
		wait = b.awaitBounded
	case Off:
		wait = b.awaitRows
	}
	start := time.Now()
	err := wait(ctx)
	if err == nil {
		b.stats.freshness.Store(int64(time.Since(start)))
	}
	return err
}

// awaitBounded waits until the mirror is known to have been fresh lately. A
// position that was asked for before the call and is reached only now is as good as
// one that is asked for at the call.
func (b *freshnessBarrier) awaitBounded(ctx context.Context) error {
	if ok, _ := b.fresh.freshWithin(b.maxStaleness); ok {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	asked := make(chan error, 1)
	go func() { asked <- b.awaitStrict(ctx) }()
	for {
		ok, moved := b.fresh.freshWithin(b.maxStaleness)
		if ok {
			cancel()
			<-asked //nolint:errcheck // not needed any more
			return nil
		}
		select {
		case <-moved:
		case err := <-asked:
			cancel()
			return err
		}
	}
}

// awaitRows waits until there is a complete snapshot, without half a transaction in
// it.
func (b *freshnessBarrier) awaitRows(ctx context.Context) error {
	tick := time.NewTicker(rowsEvery)
	defer tick.Stop()
	for {
		if _, complete := b.store.Source(); complete && !b.store.Torn() {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-b.stopped:
			return ErrStopped
		}
	}
}

// startAsking runs askRegularly until stop, if the freshness is bounded.
func (b *freshnessBarrier) startAsking(ctx context.Context) (stop func()) {
	if b.freshness != Bounded {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	asking.Go(func() { b.askRegularly(ctx) })
	return func() { cancel(); asking.Wait() }
}

// askRegularly asks for the server's position until ctx ends, so that the staleness
// is known when a join comes. It asks although earlier positions are not reached
// yet: otherwise a mirror that is always a little behind would seem to be twice as
// far behind.
func (b *freshnessBarrier) askRegularly(ctx context.Context) {
	every := max(min(b.maxStaleness/asksPerStaleness, maxAskEvery), time.Millisecond)
	tick := time.NewTicker(every)
	defer tick.Stop()
	var asking errgroup.Group
	asking.SetLimit(maxAsking)
	for {
		select {
		case <-ctx.Done():
			_ = asking.Wait() // its functions give no error
			return
		case <-tick.C:
			asking.TryGo(func() error {
				_ = b.awaitAnswered(ctx, every) // it notes the moment; nobody waits, so it writes nothing early
				return nil
			})
		}
	}
}

// knownFresh is the newest moment at which the mirror is known to have been fresh,
// see [Bounded]. It only moves forward.
type knownFresh struct {
	mu    sync.Mutex // guards below
	at    time.Time
	moved chan struct{} // closed at the next move; nil while nobody waits
}

// noteMoment notes a moment at which the server gave a position that is reached
// now.
func (k *knownFresh) noteMoment(at time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !at.After(k.at) {
		return
	}
	k.at = at
	if k.moved != nil {
		close(k.moved)
		k.moved = nil
	}
}

// newestMoment returns the newest moment so far.
func (k *knownFresh) newestMoment() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.at
}

// freshWithin reports whether the moment lies no further back than limit, and
// returns a channel that closes when the moment moves.
func (k *knownFresh) freshWithin(limit time.Duration) (ok bool, moved <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.at.IsZero() && time.Since(k.at) <= limit {
		return true, nil
	}
	if k.moved == nil {
		k.moved = make(chan struct{})
	}
	return false, k.moved
}

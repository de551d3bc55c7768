package cdc

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"dinnerbell/state"
)

// Freshness says what [Mirror.Barrier] waits for.
type Freshness string

const (
	// Strict waits until the local state holds everything that was committed
	// in Postgres before the call. It is the default.
	Strict Freshness = "strict"
	// Bounded waits only while the mirror is not known to have been fresh
	// within the last Config.MaxStaleness. The moment at which it is known to
	// have been fresh is the newest one at which the server was asked for its
	// position, if that position has been reached here since: what was
	// committed before that moment is here. Whatever is asked between two
	// joins, several times per MaxStaleness, counts. A server that commits
	// nothing is where it was, so that a mirror whose stream is stuck stays
	// fresh as long as it misses nothing. After a start nothing is known yet.
	Bounded Freshness = "bounded"
	// Off never waits, but for the first complete snapshot: there is no join
	// against nothing, nor against half of a transaction that a crash left.
	Off Freshness = "off"
)

const (
	// asksPerStaleness is how often the position is asked for while the
	// freshness is bounded, and maxAskEvery the longest time between two.
	asksPerStaleness = 5
	maxAskEvery      = time.Second
	// maxAsking bounds the positions that were asked for and not yet reached.
	// They cover more than MaxStaleness: older ones would tell nothing.
	maxAsking = 2 * asksPerStaleness
	// rowsEvery is how often it is looked whether there are rows to join with.
	rowsEvery = 20 * time.Millisecond
)

// Barrier returns nil once the local state is as fresh as Config.Freshness asks
// for; see there. It waits as long as that takes, through a snapshot and
// reconnects too, and returns ctx's error when ctx ends, or ErrStopped when Run
// has returned and nothing can become fresh any more. Any number of goroutines
// may call it; they share queries.
func (m *Mirror) Barrier(ctx context.Context) error { return m.barrier.await(ctx) }

// freshnessBarrier is the barrier. It outlives sessions: callers wait across them.
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

// await waits as long as the freshness asks for.
func (b *freshnessBarrier) await(ctx context.Context) error {
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

// awaitBounded waits until the mirror is known to have been fresh lately. A position
// asked for at the call is as good as one that was asked for before it and is
// reached only now.
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

// awaitRows waits until there is a complete snapshot, and no half transaction in it.
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

// startAsking keeps asking, if it is needed, until stop.
func (b *freshnessBarrier) startAsking(ctx context.Context) (stop func()) {
	if b.freshness != Bounded {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	asking.Go(func() { b.askRegularly(ctx) })
	return func() { cancel(); asking.Wait() }
}

// askRegularly asks for the server's position until ctx ends, so that it is known
// how stale the mirror is when a join comes. Positions are asked for although
// earlier ones are not reached yet: a mirror that is always a little behind
// would seem to be twice as far.
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
				_ = b.awaitAnswered(ctx, every) // it notes what it finds out; nobody waits, so it writes nothing early
				return nil
			})
		}
	}
}

// knownFresh is the moment that [Bounded] describes; it only moves forward.
type knownFresh struct {
	mu    sync.Mutex // guards below
	at    time.Time
	moved chan struct{} // closed at the next move; nil while nobody waits
}

// noteMoment takes a moment at which the server told a position that is reached now.
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

// newestMoment is the newest one so far.
func (k *knownFresh) newestMoment() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.at
}

// freshWithin says whether the moment lies no further back than limit, and gives a
// channel that closes when it moves.
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

package cdc

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
)

// glance is long enough for a barrier that does not wait.
const glance = 100 * time.Millisecond

// waits reports whether the barrier waits at this moment.
func (r *deployment) waits() bool {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), glance)
	defer cancel()
	err := r.m.Barrier(ctx)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		r.t.Fatal(err)
	}
	return err != nil
}

// pausable leads the mirror's replication connection through a relay.
func (r *deployment) pausable() *envtest.Relay {
	r.t.Helper()
	relay := envtest.RelayPostgres(r.t, r.DB, true)
	url := relay.URL(r.role)
	r.cfg.URL = func() (string, error) { return url, nil }
	return relay
}

const subscribeLate = `INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('late', 'r')`

// A proxy holds replication back: the strict barrier waits for committed changes,
// and for nothing else.
func TestStrictWaitsWhileReplicationIsPaused(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	relay := r.pausable()
	r.start()
	r.barrier()
	relay.Pause()
	r.Exec(subscribeLate)
	if !r.waits() || len(r.clients("r")) != 0 {
		t.Errorf("the barrier does not wait for %q", r.clients("r"))
	}
	r.await("lag", func(st Status) bool { return st.LagBytes > 0 && st.Lag > 0 })
	relay.Resume()
	r.same("r")
	r.await("no lag", func(st Status) bool { return st.LagBytes == 0 && st.Lag == 0 && st.LagChanges == 0 })
	if st := r.m.Status(); st.Reconnects != 0 {
		t.Errorf("status is %+v, want no reconnect", st)
	}
}

// The bounded barrier lets joins pass until the newest position that is known to
// be reached is older than the limit, and then waits until one is not.
func TestBoundedWaitsOnlyPastTheLimit(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	relay := r.pausable()
	r.cfg.Freshness, r.cfg.MaxStaleness = Bounded, 2*time.Second
	r.start()
	r.barrier()
	relay.Pause()
	r.Exec(subscribeLate)
	committed := time.Now()
	passed := 0
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ; ; <-tick.C {
		start := time.Now()
		waits := r.waits()
		// It was asked for before the call, or a little later. It only moves forward.
		known := r.m.barrier.fresh.newestMoment()
		if stale := start.Sub(known); !waits && stale > r.cfg.MaxStaleness {
			t.Fatalf("a join passed although the mirror is stale for %s", stale)
		}
		if !waits {
			passed++
			continue
		}
		if stale := time.Since(known); stale <= r.cfg.MaxStaleness {
			t.Fatalf("a join waits although the mirror is stale for %s only", stale)
		}
		break
	}
	t.Logf("%d joins passed; the first waited %s after the commit", passed, time.Since(committed).Round(time.Millisecond))
	if passed == 0 {
		t.Error("no join passed within the limit")
	}
	if got := r.clients("r"); len(got) != 0 {
		t.Errorf("store has %q: replication was not paused", got)
	}
	relay.Resume()
	r.barrier()
	if got := r.clients("r"); !slices.Equal(got, []string{"late"}) {
		t.Errorf("after the barrier the store has %q, want what was committed before the limit", got)
	}
	// Without joins, too, it is known how fresh the mirror is.
	before, nudges := r.m.barrier.fresh.newestMoment(), r.m.Status().Nudges
	envtest.Until(t, patience, func() error {
		if !r.m.barrier.fresh.newestMoment().After(before.Add(r.cfg.MaxStaleness)) {
			return errors.New("nobody asks")
		}
		return nil
	})
	if n := r.m.Status().Nudges - nudges; n > 10 {
		t.Errorf("%d transactions of our own in two seconds in which nobody waited", n)
	}
}

// While a mirror follows well, bounded joins do not wait at all; after a start
// they wait until it is known that it does.
func TestBoundedDoesNotWaitWhileFresh(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	r.cfg.Freshness, r.cfg.MaxStaleness = Bounded, time.Minute
	resume := make(chan struct{})
	r.hooks.copied = func() { <-resume }
	r.Exec(subscribeLate)
	r.start()
	if !r.waits() {
		t.Error("a join passed before the first snapshot")
	}
	close(resume)
	r.barrier()
	if got := r.clients("r"); len(got) != 1 {
		t.Errorf("after the first barrier the store has %q", got)
	}
	start := time.Now()
	for range 1000 {
		r.barrier()
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("1000 bounded barriers took %s: they ask the server", took)
	}
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.barrier() // known anew
}

// Without freshness joins go on whatever happens, once there is a snapshot.
func TestOffWaitsForTheFirstSnapshotAlone(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup()
	relay := r.pausable()
	r.cfg.Freshness = Off
	resume := make(chan struct{})
	r.hooks.copied = func() { <-resume }
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('early', 'r')`)
	r.start()
	if !r.waits() {
		t.Error("a join passed before the first snapshot")
	}
	close(resume)
	r.barrier()
	if got := r.clients("r"); !slices.Equal(got, []string{"early"}) {
		t.Errorf("with the first snapshot the store has %q", got)
	}
	r.await("streaming", func(st Status) bool { return st.State == StateStreaming })
	relay.Pause()
	r.Exec(subscribeLate)
	if r.waits() {
		t.Error("a join waited while replication was paused")
	}
	relay.Resume()
	envtest.Until(t, patience, func() error {
		if len(r.clients("r")) != 2 {
			return errors.New("the row has not come")
		}
		return nil
	})
	m := r.m
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	if err := m.Barrier(t.Context()); err != nil { // as while the source is halted
		t.Errorf("barrier after Run: %v", err)
	}
}

// WAL files that are ended by archive_timeout, which leaves a position behind
// that no record ends at.
func TestBarrierOverArchiveTimeout(t *testing.T) {
	t.Parallel()
	server := envtest.StartPostgres(t, envtest.Dir(t), map[string]string{
		"archive_mode": "on", "archive_command": "true", "archive_timeout": "1s",
	})
	r := newDeploymentOn(t, envtest.DatabaseOn(t, server)).setup().start()
	r.barrier()
	r.Exec(`CHECKPOINT`) // wakes the checkpointer, which began to sleep before it could know of the timeout
	segments := map[string]bool{}
	deadline := time.Now().Add(patience)
	slowest := time.Duration(0)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for n := 0; len(segments) < 3; n++ {
		<-tick.C
		if time.Now().After(deadline) {
			t.Fatalf("the server used the WAL files %v only", segments)
		}
		if n%20 == 0 {
			r.Exec(subscribeLate) // else there is nothing to archive
		}
		start := time.Now()
		r.barrier()
		slowest = max(slowest, time.Since(start))
		var file string
		if err := r.Pool.QueryRow(t.Context(), `SELECT pg_walfile_name(pg_current_wal_insert_lsn())`).Scan(&file); err != nil {
			t.Fatal(err)
		}
		segments[file] = true
	}
	r.same("r")
	t.Logf("slowest barrier over %d WAL files: %s", len(segments), slowest)
}

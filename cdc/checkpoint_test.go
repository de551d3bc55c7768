package cdc

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/precondition"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

// keeping switches checkpoints on.
func (r *deployment) keeping(every time.Duration) *deployment {
	r.cfg.CheckpointEvery = every
	return r
}

// newest reads the newest checkpoint from the disk.
func (r *deployment) newest() state.Manifest {
	r.t.Helper()
	list, err := state.ListCheckpoints(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	if len(list) == 0 {
		return state.Manifest{}
	}
	return list[len(list)-1]
}

// awaitConfirmed waits until the slot is acknowledged up to lsn.
func (r *deployment) awaitConfirmed(lsn id.LSN) {
	r.t.Helper()
	envtest.Until(r.t, patience, func() error {
		if at := r.confirmed(); at < lsn {
			return fmt.Errorf("slot is acknowledged up to %s, want %s; %+v", at, lsn, r.m.Status())
		}
		return nil
	})
}

func (r *deployment) restore(id string) {
	r.t.Helper()
	r.close()
	if _, _, err := state.Restore(r.t.Context(), r.dir, id, state.Options{ReserveBytes: -1}); err != nil {
		r.t.Fatal(err)
	}
}

// While the table is written at random, the slot never passes the newest
// checkpoint; and the newest checkpoint goes on without a snapshot.
func TestNewestCheckpointRestoresExactly(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup().keeping(300 * time.Millisecond)
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client ' || g, 'restaurant ' || g % 6 FROM generate_series(1, 3000) g`)
	r.start()
	r.barrier()
	for i := range 3 {
		done := make(chan struct{})
		wait := r.write(uint64(50+i), 2, 120)
		go func() { defer close(done); wait() }()
		for busy := true; busy; {
			select {
			case <-done:
				busy = false
			default:
			}
			// In this order: the newest can only be newer than it was then.
			confirmed := r.confirmed()
			if m := r.newest(); m.ID != "" && confirmed > m.EndLSN {
				t.Fatalf("slot is acknowledged up to %s, the newest checkpoint stands for %s", confirmed, m.EndLSN)
			}
		}
		if err := r.halt(); err != nil {
			t.Fatal(err)
		}
		r.write(uint64(60+i), 1, 20)()
		m := r.newest()
		if confirmed := r.confirmed(); confirmed > m.EndLSN {
			t.Fatalf("after the end the slot is acknowledged up to %s, the newest checkpoint stands for %s", confirmed, m.EndLSN)
		}
		r.restore(m.ID)
		r.start()
		r.same(allRestaurants...)
		if st := r.m.Status(); st.Snapshots != 0 {
			t.Fatalf("the newest checkpoint led to a snapshot: %+v", st)
		}
	}
}

// A checkpoint that the slot has passed leads to a snapshot, by itself.
func TestOlderCheckpointIsRebuilt(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).setup().keeping(time.Hour).start()
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('a', 'r'), ('b', 'r')`)
	r.same("r")
	old, err := r.store.Checkpoint(state.CauseAsked, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Exec(`DELETE FROM subscribers_restaurants WHERE client_id = 'a'`)
	r.same("r")
	if _, err := r.store.Checkpoint(state.CauseAsked, nil); err != nil {
		t.Fatal(err)
	}
	r.awaitConfirmed(old.EndLSN + 1)
	r.restore(old.ID)
	r.start()
	r.same("r")
	if st := r.m.Status(); st.Snapshots != 1 || !strings.Contains(st.RebuildReason, "ahead of the local state") {
		t.Errorf("status is %+v, want one snapshot", st)
	}
}

// With checkpoints that are far apart, a table that nobody writes keeps no WAL;
// one row that changed keeps it until there is a checkpoint for the WAL's sake.
func TestCheckpointsDoNotPinWAL(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).keeping(time.Hour)
	r.own(nil) // other tests write more WAL than may wait
	r.setup().start()
	r.barrier()
	r.fill(8)
	r.awaitConfirmed(r.lsn("pg_current_wal_flush_lsn"))
	first := r.newest()
	r.await("nothing held back", func(st Status) bool {
		return st.Checkpoint.HeldBack == 0 && st.Checkpoint.ID == first.ID && st.Checkpoint.LSN >= first.EndLSN
	})

	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('a', 'r')`)
	changed := r.lsn("pg_current_wal_flush_lsn")
	r.barrier()
	r.fill(8)
	r.await("held back", func(st Status) bool { return st.Checkpoint.HeldBack > 6<<20 })
	if at := r.confirmed(); at >= changed {
		t.Errorf("slot is acknowledged up to %s, past the change before %s that no checkpoint has", at, changed)
	}
	r.fill(40)
	r.awaitConfirmed(changed)
	if m := r.newest(); m.Cause != state.CauseWAL || m.Subscriptions != 1 {
		t.Errorf("newest checkpoint is %+v", m)
	}
	r.fill(8)
	r.awaitConfirmed(r.lsn("pg_current_wal_flush_lsn"))
}

// A server that shuts down does not wait for a checkpoint.
func TestServerStopsDespiteCheckpoints(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).keeping(time.Hour)
	server := r.own(nil)
	r.setup().start()
	r.await("checkpoint", func(st Status) bool { return st.Checkpoint.ID != "" })
	r.write(70, 2, 50)()
	r.barrier()
	began := time.Now()
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the server's shutdown took %s: it waited for us", took)
	} else {
		t.Logf("shutdown took %s", took)
	}
}

// A checkpoint that cannot be made is reported, keeps WAL, and is made when it can
// be.
func TestFailingCheckpoint(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).keeping(300 * time.Millisecond)
	r.own(nil) // other tests write more WAL than may wait
	folder := filepath.Join(r.dir, "checkpoints")
	r.setup().start()
	r.barrier()
	r.await("checkpoint", func(st Status) bool { return st.Checkpoint.ID != "" })
	if err := errors.Join(os.Rename(folder, folder+".aside"), os.WriteFile(folder, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('a', 'r')`)
	changed := r.lsn("pg_current_wal_flush_lsn")
	r.await("error", func(st Status) bool {
		return st.Checkpoint.Error != "" && st.DurableLSN >= changed && st.Checkpoint.HeldBack > 0
	})
	if at := r.confirmed(); at >= changed {
		t.Errorf("slot is acknowledged up to %s without a checkpoint", at)
	}
	if st := r.m.Status(); st.State != StateStreaming {
		t.Errorf("status is %+v, want streaming", st)
	}
	if err := errors.Join(os.Remove(folder), os.Rename(folder+".aside", folder)); err != nil {
		t.Fatal(err)
	}
	r.awaitConfirmed(changed)
	r.await("no error", func(st Status) bool { return st.Checkpoint.Error == "" })
	r.same("r")
}

// Where the newest checkpoint was removed by hand, the slot is acknowledged
// further: by another, and when no checkpoint can be made, without one.
func TestNewestCheckpointIsGone(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).keeping(time.Hour)
	r.own(patient)
	r.setup().start()
	r.await("checkpoint", func(st Status) bool { return st.Checkpoint.ID != "" })
	first, folder := r.newest(), filepath.Join(r.dir, "checkpoints")
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	r.Exec(`CREATE TABLE other ()`)
	r.awaitConfirmed(r.lsn("pg_current_wal_flush_lsn"))
	if m := r.newest(); m.ID <= first.ID {
		t.Errorf("newest checkpoint is %q, want one after %s", m.ID, first.ID)
	}
	if err := errors.Join(os.RemoveAll(folder), os.WriteFile(folder, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('a', 'r')`)
	changed := r.lsn("pg_current_wal_flush_lsn")
	r.segments(maxUncovered>>24 + 1)
	r.awaitConfirmed(changed)
	if err := os.Remove(folder); err != nil {
		t.Fatal(err)
	}
	r.await("checkpoint", func(st Status) bool { return st.Checkpoint.Error == "" && st.Checkpoint.LSN >= changed })
	if confirmed, m := r.confirmed(), r.newest(); confirmed > m.EndLSN {
		t.Errorf("slot is acknowledged up to %s, the newest checkpoint stands for %s", confirmed, m.EndLSN)
	}
	r.same("r")
}

// segments writes so many segments of WAL, nearly empty. The server is the test's
// own.
func (r *deployment) segments(n int) {
	r.t.Helper()
	for range n {
		r.Exec(`SELECT pg_logical_emit_message(true, 'filler', 'x')`)
		r.Exec(`SELECT pg_switch_wal()`)
	}
}

// max_slot_wal_keep_size bounds the WAL that checkpoints hold back, also where the
// setting changes while the mirror streams.
func TestCheckpointsRespectKeepSize(t *testing.T) {
	t.Parallel()
	r := newDeployment(t).keeping(time.Hour)
	r.own(patient)
	r.setup().start()
	r.await("checkpoint", func(st Status) bool { return st.Checkpoint.ID != "" })
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('a', 'r')`)
	changed := r.lsn("pg_current_wal_flush_lsn")
	r.segments(1)
	r.barrier()
	r.await("held back", func(st Status) bool { return st.Checkpoint.HeldBack > 0 })
	if at := r.confirmed(); at >= changed {
		t.Errorf("without a limit the slot is acknowledged up to %s, past %s, which no checkpoint has", at, changed)
	}
	r.Exec(`ALTER SYSTEM SET max_slot_wal_keep_size = '64MB'`)
	r.Exec(`SELECT pg_reload_conf()`)
	r.awaitConfirmed(changed)
	r.finds("source.wal_keep_size", precondition.Warn, "max_slot_wal_keep_size 64 MB")
	if st := r.m.Status(); st.Snapshots != 1 {
		t.Errorf("the slot was lost: %+v", st)
	}
}

// The bounds of the WAL that is held back, by the limits in force.
func TestKeeperBounds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		keepSize   int64
		failed     error
		soft, hard id.LSN
	}{
		{-1, nil, maxHeldBack, math.MaxInt64},
		{-1, state.ErrDiskFull, maxHeldBack, maxUncovered},
		{10 << 30, nil, maxHeldBack, 2560 << 20},
		{10 << 30, state.ErrDiskFull, maxHeldBack, maxUncovered},
		{128 << 20, nil, 16 << 20, 32 << 20},
		{64 << 20, state.ErrDiskFull, 8 << 20, 16 << 20},
		{0, nil, 0, 0},
	} {
		k := &checkpointKeeper{failed: c.failed, keepSize: func() int64 { return c.keepSize }}
		if soft, hard := k.heldBackBounds(); soft != c.soft || hard != c.hard {
			t.Errorf("keep size %d, error %v: bounds %d and %d, want %d and %d", c.keepSize, c.failed, soft, hard, c.soft, c.hard)
		}
	}
}

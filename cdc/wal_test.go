package cdc

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"dinnerbell/cdc/source"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state"
)

// logs keeps what a mirror logs, beside the test's own output.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
	t    *testing.T
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	return l.t.Output().Write(p)
}

func (l *logs) contains(part string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), part)
}

// logged makes the deployment's mirror log there.
func (r *deployment) logged() *logs {
	l := &logs{t: r.t}
	r.cfg.Logger = slog.New(slog.NewTextHandler(l, nil))
	return l
}

// maxPinned is what a table that nobody writes may make the server keep.
const maxPinned = 64 << 20

// A table that nobody writes pins at most 64 MB of WAL, however much others write:
// 192 MB here, as fast as the server takes it, looked at after each 8 MB. The
// mirror is responsible for WAL that it has not acknowledged; restart_lsn follows
// the acknowledgement at the server's next checkpoint.
func TestIdleTableDoesNotPinWAL(t *testing.T) {
	t.Parallel()
	for name, every := range map[string]time.Duration{"without checkpoints": 0, "with checkpoints": time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			idleTableDoesNotPinWAL(t, every)
		})
	}
}

func idleTableDoesNotPinWAL(t *testing.T, every time.Duration) { //nolint:thelper // the test itself: a failure must name its line here
	r := newDeployment(t).keeping(every)
	r.own(patient)
	r.setup().start()
	r.barrier()
	// Each time before more is written: how fast a busy server sends, and when it
	// moves restart_lsn, is its own.
	within := func(what, sql string, args ...any) (most int64) {
		envtest.Until(t, patience, func() error {
			n := r.Int(sql, args...)
			if most = max(most, n); n > maxPinned {
				return fmt.Errorf("%d bytes %s, want at most %d", n, what, maxPinned)
			}
			return nil
		})
		return most
	}
	var unacknowledged, pinned int64
	for round := range 24 {
		r.fill(8)
		unacknowledged = max(unacknowledged, within("not acknowledged",
			`SELECT pg_current_wal_flush_lsn() - confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = $1`, r.cfg.Slot))
		if round%4 == 3 {
			r.Exec(`CHECKPOINT`)
			pinned = max(pinned, within("pinned after a checkpoint",
				`SELECT pg_current_wal_flush_lsn() - restart_lsn FROM pg_replication_slots WHERE slot_name = $1`, r.cfg.Slot))
		}
	}
	t.Logf("at most %d MB were not acknowledged, at most %d MB pinned after a checkpoint", unacknowledged>>20, pinned>>20)
	end := r.lsn("pg_current_wal_flush_lsn")
	envtest.Until(t, patience, func() error {
		if at := r.confirmed(); at < end {
			return fmt.Errorf("slot is acknowledged up to %s, want %s", at, end)
		}
		return nil
	})
	if at := r.confirmed(); at > r.store.DurableLSN() {
		t.Errorf("slot is acknowledged up to %s, the state is durable up to %s", at, r.store.DurableLSN())
	}
}

// patient makes checkpoints only on demand.
var patient = map[string]string{"max_wal_size": "8GB", "checkpoint_timeout": "1h"}

// with adds a setting.
func with(settings map[string]string, name, value string) map[string]string {
	all := maps.Clone(settings)
	all[name] = value
	return all
}

// fill writes n MB to other tables.
func (r *deployment) fill(n int) {
	r.t.Helper()
	r.Exec(`CREATE TABLE IF NOT EXISTS other (filler text); ALTER TABLE other ALTER filler SET STORAGE EXTERNAL`)
	r.Exec(`INSERT INTO other SELECT repeat('x', 1000000) FROM generate_series(1, $1::int)`, n)
}

// After a long absence the daemon logs at its start how much WAL the server keeps
// for it, and how far that is from the limit.
func TestSlotThatHoldsMuchIsWarnedAbout(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	r.own(with(patient, "max_slot_wal_keep_size", "512MB"))
	log := r.logged()
	r.setup().start()
	r.same()
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	if log.contains("keeps much WAL") {
		t.Error("warned about a slot that holds nothing")
	}
	r.fill(24)
	r.hooks.heldBackWarn = 16 << 20
	r.start()
	r.await("warning", func(Status) bool { return log.contains("keeps much WAL") })
	if !log.contains("held_bytes=2") || !log.contains("safe_wal_size=") || !log.contains("level=WARN") {
		t.Error("the warning does not tell how much")
	}
	r.same()
	r.Exec(`CHECKPOINT`)
	r.await("status", func(st Status) bool { return st.SlotHeldBytes < 16<<20 && st.SafeWALSize > 0 })
}

// unreserved is a warning, and passes when the mirror has caught up; lost is the
// end of the slot, and leads to a new snapshot.
func TestSlotUnreservedAndLost(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	r.own(with(patient, "max_slot_wal_keep_size", "32MB"))
	log := r.logged()
	var stalled atomic.Pointer[chan struct{}]
	r.hooks.beforeApply = func(*state.Batch) {
		if wait := stalled.Load(); wait != nil {
			<-*wait
		}
	}
	r.setup().start()
	r.same()
	stall := func() (release func()) {
		wait := make(chan struct{})
		stalled.Store(&wait)
		r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('c', 'r')`)
		return func() { stalled.Store(nil); close(wait) }
	}

	release := stall()
	r.fill(80)                               // no checkpoint comes between
	r.await("danger", func(st Status) bool { // the log line follows the status
		return st.SlotWALStatus == source.SlotUnreserved && st.SafeWALSize <= 0 &&
			log.contains("may lose its WAL at the server's next checkpoint")
	})
	if log.contains("the slot is lost") {
		t.Error("the log takes the danger for the loss")
	}
	release()
	r.same("r")
	envtest.Until(t, patience, func() error {
		// A new slot makes the server note the transactions that run, which lets
		// the others' restart_lsn move. Otherwise the background writer does.
		r.Exec(`SELECT pg_drop_replication_slot(slot_name) FROM pg_create_logical_replication_slot('another', 'pgoutput')`)
		if r.Int(`SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND wal_status IN ('reserved', 'extended')`, r.cfg.Slot) == 0 {
			return errors.New("the slot is in danger still")
		}
		return nil
	})
	if st := r.m.Status(); st.Snapshots != 1 {
		t.Errorf("status is %+v, want no snapshot for a slot in danger", st)
	}

	release = stall()
	r.fill(80)
	r.Exec(`CHECKPOINT`) // ends the walsender too
	release()
	r.same("r")
	st := r.m.Status()
	if st.Snapshots != 2 || !strings.Contains(st.RebuildReason, "behind by more than max_slot_wal_keep_size") || !log.contains("the slot is lost") {
		t.Errorf("status is %+v, want a second snapshot because the slot was lost", st)
	}
}

// Since 18 Postgres can give up slots that nobody reads.
func TestSlotTimedOut(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	if r.version() < 18_00_00 {
		t.Skip("slots do not time out here")
	}
	r.own(map[string]string{"idle_replication_slot_timeout": "1s"})
	r.setup().start()
	r.same()
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	envtest.Until(t, patience, func() error {
		r.Exec(`CHECKPOINT`)
		if n := r.Int(`SELECT count(*) FROM pg_replication_slots WHERE invalidation_reason = 'idle_timeout'`); n == 0 {
			return fmt.Errorf("the slot is valid still")
		}
		return nil
	})
	r.start()
	r.same()
	if st := r.m.Status(); st.Snapshots != 1 || !strings.Contains(st.RebuildReason, "idle_replication_slot_timeout") {
		t.Errorf("status is %+v, want a snapshot because of the timeout", st)
	}
}

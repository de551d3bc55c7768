package cdc

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"dinnerbell/cdc/source"
	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/envtest"
)

// awaitSynced waits until the slot can be used after a promotion, and the
// standby has all that was written.
func (r *deployment) awaitSynced(standby *testenv.Postgres) {
	r.t.Helper()
	pool, err := pgxpool.New(r.t.Context(), standby.URL("postgres"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer pool.Close()
	envtest.Until(r.t, patience, func() error {
		r.Exec(`CHECKPOINT`) // lets the slot's restart_lsn move
		var synced int
		err := pool.QueryRow(r.t.Context(), `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND synced AND NOT temporary`, r.cfg.Slot).Scan(&synced)
		if err != nil || synced == 0 {
			return fmt.Errorf("slot is not synced: %w", err)
		}
		return nil
	})
}

// A standby with the failover slot is promoted: the stream goes on with no
// manual step, no snapshot and no loss, whatever the mirror was doing.
func TestFailover(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	if r.version() < source.FailoverVersion {
		t.Skip("slots have no failover here")
	}
	primary, standby := r.pair()
	r.setup().start()
	r.write(60, 2, 50)()
	r.same(allRestaurants...)
	r.awaitSynced(standby)
	r.write(61, 2, 50)()
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	r.promote(standby)
	r.write(62, 2, 50)()
	r.same(allRestaurants...)
	if st := r.m.Status(); st.Snapshots != 1 || st.Failovers != 1 {
		t.Fatalf("status is %+v, want one failover and no snapshot for it", st)
	}
	// The store knows where it is: nothing happens at the next start.
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	r.close()
	r.write(63, 2, 50)()
	r.start()
	r.same(allRestaurants...)
	if st := r.m.Status(); st.Snapshots != 0 || st.Failovers != 0 {
		t.Errorf("after a restart the status is %+v, want neither snapshot nor failover", st)
	}
}

// The promoted standby lacks changes that were applied here: its slot is there, and
// would go on, and must not.
func TestFailoverToAStandbyThatWasBehind(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	if r.version() < source.FailoverVersion {
		t.Skip("slots have no failover here")
	}
	primary, standby := r.pair()
	// Nobody waits for the standby.
	r.Exec(`ALTER SYSTEM RESET synchronized_standby_slots`)
	r.Exec(`SELECT pg_reload_conf()`)
	r.setup().start()
	r.write(64, 2, 50)()
	r.same(allRestaurants...)
	r.awaitSynced(standby)
	if err := standby.Stop(); err != nil {
		t.Fatal(err)
	}
	r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('lost', 'r')`)
	r.same("r")
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	ahead := r.store.DurableLSN()
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	r.moveTo(standby)
	r.startServer(standby)
	r.promote(standby)
	for r.lsn("pg_current_wal_flush_lsn") < ahead { // then positions alone do not show the difference
		r.write(65, 2, 50)()
	}
	if n := r.Int(`SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND confirmed_flush_lsn <= $2::text::pg_lsn`, r.cfg.Slot, ahead.String()); n != 1 {
		t.Error("the slot did not come along: the test shows nothing")
	}
	r.start()
	r.same(append(allRestaurants, "r")...)
	if st := r.m.Status(); st.Snapshots != 1 || st.Failovers != 0 || !strings.Contains(st.RebuildReason, "without what was applied here") {
		t.Errorf("status is %+v, want a snapshot because the standby was behind", st)
	}
}

// Without failover slots a promotion loses the slot: detected, named, rebuilt.
func TestFailoverWithoutSlot(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	primary, standby := r.pair()
	if r.version() >= source.FailoverVersion {
		r.Exec(`ALTER SYSTEM RESET synchronized_standby_slots`)
		r.Exec(`SELECT pg_reload_conf()`)
		r.stopSlotSync(standby)
	}
	r.setup().start()
	r.write(66, 2, 50)()
	r.same(allRestaurants...)
	r.awaitReplayed(standby)
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	r.promote(standby)
	r.write(67, 2, 50)()
	r.same(allRestaurants...)
	if st := r.m.Status(); st.Snapshots != 2 || st.Failovers != 0 || !strings.Contains(st.RebuildReason, "timeline 2") {
		t.Errorf("status is %+v, want a second snapshot because of the promotion", st)
	}
	if err := r.halt(); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.same(allRestaurants...)
	if st := r.m.Status(); st.Snapshots != 0 {
		t.Errorf("after a restart the status is %+v, want no snapshot", st)
	}
}

// stopSlotSync leaves the standby without failover slots.
func (r *deployment) stopSlotSync(standby *testenv.Postgres) {
	r.t.Helper()
	if err := standby.Stop(); err != nil {
		r.t.Fatal(err)
	}
	standby.Set("sync_replication_slots", "off")
	if err := standby.Start(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

// awaitReplayed waits until the standby has all that was written.
func (r *deployment) awaitReplayed(standby *testenv.Postgres) {
	r.t.Helper()
	pool, err := pgxpool.New(r.t.Context(), standby.URL("postgres"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer pool.Close()
	end := r.lsn("pg_current_wal_flush_lsn")
	envtest.Until(r.t, patience, func() error {
		var there bool
		err := pool.QueryRow(r.t.Context(), `SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn`, end.String()).Scan(&there)
		if err != nil || !there {
			return fmt.Errorf("standby is not at %s: %w", end, err)
		}
		return nil
	})
}

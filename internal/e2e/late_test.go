package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/internal/testenv/envtest/damage"
)

// serveLateSubscribers switches join.late_subscribers on in the configuration.
func (d *deployment) serveLateSubscribers() {
	d.Helper()
	text, err := os.ReadFile(d.config)
	cfg := map[string]any{}
	if err == nil {
		err = json.Unmarshal(text, &cfg)
	}
	cfg["join"] = map[string]any{"late_subscribers": true}
	if err == nil {
		text, err = json.Marshal(cfg)
	}
	if err == nil {
		err = os.WriteFile(d.config, text, 0o600)
	}
	if err != nil {
		d.Fatal(err)
	}
}

// A client who subscribes while a campaign is live gets it: after the fan-out, while no
// daemon runs, and while the local state is lost.
func TestLateSubscribers(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	d.serveLateSubscribers()
	d.setup(2)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client ' || c, 'r1' FROM generate_series(1, 1000) c`)
	subscribe := func(client string) {
		d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ($1, 'r1')`, client)
	}
	has := func(n int64) {
		t.Helper()
		envtest.Until(t, patience, func() error { return d.checkRows("c1", n) })
	}
	d.start()
	d.awaitReady()
	d.produce(0, newCampaign("c1", "r1"))
	has(1000)
	subscribe("late")
	has(1001)
	d.stop()
	subscribe("while no daemon runs")
	d.start()
	has(1002)
	d.kill()
	subscribe("after a kill")
	d.start()
	has(1003)
	d.stop()
	subscribe("while the state is lost")
	if err := os.RemoveAll(d.dir); err != nil {
		t.Fatal(err)
	}
	d.start()
	has(1004)
	d.awaitReady()
	d.runCommand("rebuild")
	subscribe("after a rebuild")
	d.checkOnce(map[string]string{"c1": "r1"}, patience)
	d.stop()
}

// The same across the commands that change the local state: a checkpoint that is
// restored, newer subscriptions in Postgres or not, and rows that verify mends.
func TestLateSubscribersOfAMendedState(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	d.serveLateSubscribers()
	d.checkpointEvery("1h")
	d.setup(1)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client ' || c, 'r1' FROM generate_series(1, 100) c`)
	subscribe := func(client string) {
		d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ($1, 'r1')`, client)
	}
	has := func(n int64) {
		t.Helper()
		envtest.Until(t, patience, func() error { return d.checkRows("c1", n) })
	}
	d.start()
	d.awaitReady()
	d.produce(0, newCampaign("c1", "r1"))
	has(100)
	subscribe("before the checkpoint")
	has(101)
	var saved savedCheckpoint
	d.jsonOf(&saved, "checkpoint", "create", "--json")
	subscribe("behind the checkpoint")
	has(102)
	before := d.countRebuilds()
	d.kill()
	subscribe("while no daemon runs")
	d.restoreCheckpoint(saved.ID, true) // until its rows are checked, or the check finds the damage below
	has(103)
	d.stop()
	if n := d.countRebuilds(); n != before || strings.Contains(d.log.tail(1<<20), "joined again for late subscribers") {
		t.Errorf("the restore led to %d snapshots, or to campaigns that are joined again", n-before)
	}

	// A client whom the local state does not know misses a campaign until verify mends it.
	damage.Do(t, d.dir, func(r *damage.Rows) { r.DropJoin("7", "r1", "client 7") })
	d.start()
	d.awaitReady()
	d.produce(0, newCampaign("c2", "r1"))
	envtest.Until(t, patience, func() error { return d.checkRows("c2", 102) })
	d.awaitState("c2", "finished")
	if n := d.countNotified("c2"); n != 102 {
		t.Errorf("%d clients have the campaign, want all but one: the damage shows nothing", n)
	}
	d.awaitReady()
	d.runCommand("verify", "--repair")
	d.checkOnce(map[string]string{"c1": "r1", "c2": "r1"}, patience)
	d.stop()
}

// A million subscriptions in one source transaction, most of them of restaurants with
// live campaigns: each client gets each campaign once, and the daemon's memory stays
// bounded.
func TestLongMillionLateSubscribersInOneTransaction(t *testing.T) {
	envtest.Long(t)
	const many, restaurants = 1_000_000, 10 // the first two have campaigns
	d := newDeployment(t)
	d.serveLateSubscribers()
	d.setup(2)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'first', 'r' || r FROM generate_series(0, $1::int) r`, restaurants-1)
	d.start()
	d.awaitReady()
	d.produce(0, newCampaign("a", "r0"), newCampaign("b", "r0"))
	d.produce(1, newCampaign("c", "r1"))
	for _, id := range []string{"a", "b", "c"} {
		d.awaitState(id, "finished")
	}
	began := time.Now()
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id)
		SELECT md5('client' || g)::uuid::text, 'r' || g % $2::int FROM generate_series(1, $1::int) g`, many, restaurants)
	committed := time.Now()
	for _, id := range []string{"a", "b", "c"} {
		envtest.Until(t, longPatience, func() error { return d.checkRows(id, many/restaurants+1) })
	}
	t.Logf("%s to commit, %s more until the last of %d is notified; peak memory %d MB", committed.Sub(began).Round(time.Second),
		time.Since(committed).Round(time.Second), 3*many/restaurants, d.peakMemory()>>20)
	d.checkOnce(map[string]string{"a": "r0", "b": "r0", "c": "r1"}, longPatience)
	if peak := d.peakMemory(); peak > memoryLimit {
		t.Errorf("peak memory is %d MB, want at most %d", peak>>20, memoryLimit>>20)
	}
	if strings.Contains(d.log.tail(1<<20), "joined again for late subscribers") {
		t.Error("the log of new subscriptions was too small for the transaction")
	}
	d.stop()
}

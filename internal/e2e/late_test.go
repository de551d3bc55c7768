package e2e

import (
	"encoding/json"
	"os"
	"testing"

	"dinnerbell/internal/testenv/envtest"
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

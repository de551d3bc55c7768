package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
)

// A proxy holds replication back while a subscription and then a campaign
// arrive. A strict join waits for the subscription, and status says so. A
// bounded join waits once the mirror is too stale. Without freshness, the
// campaign goes to the clients that the mirror knows; with late subscribers the client
// whom a bounded join has missed gets it once the mirror has the subscription.
func TestFreshnessWhileReplicationIsPaused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		env   []string
		waits bool
		late  bool
	}{
		{"strict", nil, true, false},
		{"bounded, within", []string{"DINNERBELL_JOIN_FRESHNESS=bounded", "DINNERBELL_JOIN_MAX_STALENESS=10m"}, false, false},
		{"bounded, within, with late subscribers", []string{"DINNERBELL_JOIN_FRESHNESS=bounded", "DINNERBELL_JOIN_MAX_STALENESS=10m"}, false, true},
		{"bounded, past", []string{"DINNERBELL_JOIN_FRESHNESS=bounded", "DINNERBELL_JOIN_MAX_STALENESS=300ms"}, true, false},
		{"off", []string{"DINNERBELL_JOIN_FRESHNESS=off"}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := newDeployment(t)
			if c.late {
				d.serveLateSubscribers()
			}
			relay := envtest.RelayPostgres(t, d.db, true)
			d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('early', 'r')`)
			d.setup(1)
			d.env = append(append(os.Environ(), "DINNERBELL_SOURCE_URL="+relay.URL(d.db.RoleURL())), c.env...)
			d.start()
			d.awaitReady()
			d.produce(0, newCampaign("before", "r"))
			d.checkOnce(map[string]string{"before": "r"}, patience)

			relay.Pause()
			d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('late', 'r')`)
			if c.name == "bounded, past" {
				<-time.After(400 * time.Millisecond) // the limit has to pass; there is no condition to wait for
			}
			d.produce(0, newCampaign("meanwhile", "r"))
			if c.waits {
				envtest.Until(t, patience, func() error {
					if !d.waitsForFreshness() {
						return fmt.Errorf("status does not say that the lane waits")
					}
					return nil
				})
				if n := d.countNotified("meanwhile"); n != 0 {
					t.Errorf("%d clients were notified while the join had to wait", n)
				}
				relay.Resume()
			}
			want := map[bool]int64{true: 2, false: 1}[c.waits]
			envtest.Until(t, patience, func() error { return d.checkRows("meanwhile", want) })
			relay.Resume()
			if c.late {
				want = 2
				envtest.Until(t, patience, func() error { return d.checkRows("meanwhile", want) })
			}
			d.compareSinks(patience)
			if n := d.countNotified("meanwhile"); n != want {
				t.Errorf("%d clients were notified, want %d", n, want)
			}
			address, err := d.httpAddress()
			if err != nil {
				t.Fatal(err)
			}
			if n := d.readMetric(address, "dinnerbell_freshness_wait_seconds_count"); n != "2" {
				t.Errorf("the histogram counts %q waits, want 2", n)
			}
			d.stop()
		})
	}
}

// waitsForFreshness reports whether the daemon's status has a campaign that
// waits for freshness.
func (d *deployment) waitsForFreshness() bool {
	d.Helper()
	var status struct {
		Lanes []struct {
			Waiting bool `json:"waiting_for_freshness"`
		} `json:"lanes"`
	}
	if err := json.Unmarshal([]byte(d.statusText("--json")), &status); err != nil {
		d.Fatal(err)
	}
	return len(status.Lanes) == 1 && status.Lanes[0].Waiting
}

// countNotified counts a campaign's feedback rows.
func (d *deployment) countNotified(campaign string) (n int64) {
	d.Helper()
	d.queryRow(&n, `SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = $1`, campaign)
	return n
}

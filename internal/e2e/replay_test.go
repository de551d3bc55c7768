package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/internal/testenv/envtest/damage"
)

// docs/operations.md, "Clients were missed": half of an audience was missing in
// the mirror when two campaigns came. After the repair, a replay predicts and
// delivers the rest, though the daemon is killed in the middle of it.
func TestMissedClientsAreReplayed(t *testing.T) {
	t.Parallel()
	const guests = 4000
	d := newDeployment(t)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'guest ' || n, 'diner' FROM generate_series(1, $1::int) n`, guests)
	d.setup(2)
	d.start()
	d.awaitReady()
	d.stop()
	damage.Do(t, d.dir, func(r *damage.Rows) {
		for n := 2; n <= guests; n += 2 {
			r.DropJoin(fmt.Sprint(n), "diner", fmt.Sprintf("guest %d", n))
		}
	})
	d.start()
	d.awaitReady()
	d.produce(0, newCampaign("lunch", "diner"))
	d.produce(1, newCampaign("dinner", "diner"))
	for _, id := range []string{"lunch", "dinner"} {
		envtest.Until(d, patience, func() error { return d.checkRows(id, guests/2) })
	}
	if out := d.runCommand("subscribers", "diner", "--count"); out != fmt.Sprintln(guests/2) {
		t.Fatalf("the damage is not what it should be: %s subscribers", out)
	}
	d.runCommand("verify", "--repair")
	if out := d.runCommand("subscribers", "diner", "--count"); out != fmt.Sprintln(guests) {
		t.Errorf("after the repair: %s subscribers", out)
	}
	if out := d.runCommand("replay", "--from", "2h", "--dry-run"); !strings.Contains(out, "clients missed       4,000") {
		t.Errorf("dry run: %s", out)
	}

	// Another transaction's row holds the fan-out up in the middle.
	tx, err := d.db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `INSERT INTO subscribers_feedback (restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
 adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, client_id, trigger_datetime_created) VALUES ('', 'lunch', '', '', '', 1, 2, 1, 'guest 998', 1)`); err != nil {
		t.Fatal(err)
	}
	replay := exec.Command(d.binary, "-c", d.config, "replay", "--from", "2h")
	if err := replay.Start(); err != nil {
		t.Fatal(err)
	}
	envtest.Until(d, patience, func() error {
		held := d.db.Int(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`)
		if n := d.db.Int(`SELECT count(*) FROM subscribers_feedback`); held == 0 || n <= guests {
			return fmt.Errorf("%d rows, %d sessions wait", n, held)
		}
		return nil
	})
	d.kill()
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := replay.Wait(); err == nil {
		t.Error("the replay was over before the daemon was killed")
	}
	d.start()
	d.awaitReady()
	d.runCommand("replay", "--from", "2h")
	d.checkOnce(map[string]string{"lunch": "diner", "dinner": "diner"}, patience)
	d.stop()
}

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"dinnerbell/internal/testenv/envtest"
)

// configure writes values of a section into the configuration file.
func (d *deployment) configure(section string, values map[string]any) {
	d.Helper()
	text, err := os.ReadFile(d.config)
	if err != nil {
		d.Fatal(err)
	}
	cfg := map[string]any{}
	if err := json.Unmarshal(text, &cfg); err != nil {
		d.Fatal(err)
	}
	cfg[section] = values
	if text, err = json.Marshal(cfg); err == nil {
		err = os.WriteFile(d.config, text, 0o600)
	}
	if err != nil {
		d.Fatal(err)
	}
}

// reload has the daemon read its configuration again, and waits for its answer in the log.
func (d *deployment) reload(answer string) {
	d.Helper()
	before := strings.Count(d.log.tail(1<<20), answer)
	if err := d.process.Signal(syscall.SIGHUP); err != nil {
		d.Fatal(err)
	}
	envtest.Until(d, patience, func() error {
		if strings.Count(d.log.tail(1<<20), answer) <= before {
			return fmt.Errorf("the log does not say %q", answer)
		}
		return nil
	})
}

// docs/operations.md, "Stop a campaign now": a wrong campaign is going out; it is
// cancelled beside the running daemon, another one is paused and resumed without a
// daemon, a third one is parked and approved. The rate is lifted by SIGHUP.
func TestStopACampaignNow(t *testing.T) {
	t.Parallel()
	const guests = 3000
	d := newDeployment(t)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'guest ' || n, r FROM generate_series(1, $1::int) n, unnest('{diner,bar}'::text[]) r`, guests)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'guest ' || n, 'chain' FROM generate_series(1, $1::int) n`, guests+1)
	d.configure("limits", map[string]any{"max_audience": guests, "notifications_per_second": 200})
	d.setup(2)
	d.start()
	d.awaitReady()
	d.produce(0, newCampaign("wrong", "diner"), newCampaign("held", "bar"))
	d.produce(1, newCampaign("huge", "chain"))
	rows := func(id string) int64 {
		return d.db.Int(`SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = $1`, id)
	}
	for _, id := range []string{"wrong", "held"} {
		envtest.Until(d, patience, func() error {
			if rows(id) == 0 {
				return fmt.Errorf("%s has not begun", id)
			}
			return nil
		})
	}
	if out := d.runCommand("cancel", "wrong"); !strings.Contains(out, "campaign wrong of restaurant diner: pending → cancelled; nobody is notified of it any more") {
		t.Errorf("cancel: %s", out)
	}
	reached := rows("wrong")
	if out := d.runCommand("pause", "held", "--restaurant", "bar", "--json"); !strings.Contains(out, `"done":true,"before":"pending","state":"paused"`) {
		t.Errorf("pause: %s", out)
	}
	held := rows("held")
	out, err := exec.CommandContext(t.Context(), d.binary, "-c", d.config, "cancel", "wrong").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "it was cancelled at ") {
		t.Errorf("a second cancel: %v: %s", err, out)
	}
	envtest.Until(d, patience, func() error {
		if text := d.statusText(); !strings.Contains(text, "1 parked (see `dinnerbell approve`), 1 paused (see `dinnerbell resume`)") {
			return fmt.Errorf("status: %s", text)
		}
		return nil
	})

	// An invalid file changes nothing; a valid one does without a restart, and what
	// needs one is named.
	d.configure("limits", map[string]any{"max_audience": -1})
	d.reload("the configuration was read again and is refused; all values stay as they are")
	d.configure("limits", map[string]any{"max_audience": guests})
	d.configure("http", map[string]any{"listen": "127.0.0.1:1"})
	d.reload("these keys of the configuration have changed and take effect with the next start\" keys=[http.listen]")
	d.configure("http", map[string]any{"listen": "127.0.0.1:0"})
	if text := d.statusText("--json"); !strings.Contains(strings.ReplaceAll(text, " ", ""), `"notifications_per_second":0`) {
		t.Errorf("status after the reload: %s", text)
	}

	d.stop()
	d.runCommand("resume", "held")
	d.runCommand("approve", "huge")
	d.start()
	d.awaitReady()
	envtest.Until(d, patience, func() error { return d.checkRows("held", guests) })
	envtest.Until(d, patience, func() error { return d.checkRows("huge", guests+1) })
	if n := rows("wrong"); n != reached || held >= guests {
		t.Errorf("%d have the cancelled campaign, %d had it; %d had the paused one", n, reached, held)
	}
	d.runCommand("replay", "--from", "earliest")
	if n := rows("wrong"); n != reached {
		t.Errorf("%d have the cancelled campaign after a replay, %d had it", n, reached)
	}
	d.stop()
	for _, line := range []string{"an operator's command on a campaign", "cancel by ", "campaign is parked"} {
		if !strings.Contains(d.log.tail(1<<20), line) {
			t.Errorf("the log does not say %q", line)
		}
	}
	d.runCommand("audit")
}

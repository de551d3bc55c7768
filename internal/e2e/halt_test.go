package e2e

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
)

// Postgres is set back behind Kafka: the daemon exits with 3 and names the
// commands, one of which lets it continue.
func TestRolledBackPostgresHaltsAndIsResolved(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	d.addSubscriptions(2, 100)
	d.setup(1)
	d.start()
	d.awaitReady()
	d.produce(0, newCampaign("before", "r1"))
	d.checkOnce(map[string]string{"before": "r1"}, patience)
	d.stop()
	tables := []string{"public.subscribers_feedback", "dinnerbell.lane", "dinnerbell.campaign", "dinnerbell.outbox"}
	for _, table := range tables {
		d.db.Exec("CREATE TABLE " + table + "_backup AS TABLE " + table)
	}
	d.start()
	d.awaitReady()
	d.produce(0, newCampaign("after", "r0"))
	d.checkOnce(map[string]string{"before": "r1", "after": "r0"}, patience)
	d.stop()
	for _, table := range tables {
		d.db.Exec("TRUNCATE " + table)
		d.db.Exec("INSERT INTO " + table + " TABLE " + table + "_backup")
	}

	if out, err := exec.CommandContext(t.Context(), d.binary, "-c", d.config, "audit").Output(); err == nil || !strings.Contains(string(out), "FAIL lane 0: Kafka has steps that Postgres does not have: ") {
		t.Errorf("audit: %v\n%s", err, out)
	}
	d.start()
	select {
	case <-d.process.Done():
		if d.process.ExitCode() != 3 {
			t.Errorf("the daemon ended with %v instead of 3", d.process.Err())
		}
		d.process = nil
	case <-time.After(patience):
		t.Fatal("the daemon goes on")
	}
	if log := d.log.tail(4 << 10); !strings.Contains(log, "Postgres was rolled back") || !strings.Contains(log, "dinnerbell resolve --lane 0 --accept-repeats") {
		t.Errorf("the log does not say what happened and what to do:\n%s", log)
	}
	t.Log(d.runCommand("resolve", "--lane", "0", "--accept-repeats"))
	d.start()
	d.awaitReady()
	envtest.Until(t, patience, func() error { return d.checkRows("after", 100) })
	d.stop()
}

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
)

// awaitStatus waits until `dinnerbell status` says all of the texts and none of bad.
func (d *deployment) awaitStatus(when string, want []string, bad ...string) {
	d.Helper()
	envtest.Until(d, patience, func() error {
		text := d.statusText()
		for _, w := range want {
			if !strings.Contains(text, w) {
				return fmt.Errorf("%s: status lacks %q:\n%s", when, w, text)
			}
		}
		for _, b := range bad {
			if strings.Contains(text, b) {
				return fmt.Errorf("%s: status says %q:\n%s", when, b, text)
			}
		}
		return nil
	})
}

// While a server is dead, the status names it, and shows no figure that is false: not the
// zeros of lanes that are lost, not the lag of before. Both are named when both are dead.
func TestStatusWhileServersAreDead(t *testing.T) {
	t.Parallel()
	dir := envtest.Dir(t)
	postgres := envtest.StartPostgres(t, filepath.Join(dir, "postgres"), nil)
	broker := envtest.StartBroker(t, filepath.Join(dir, "broker"))
	t.Cleanup(func() {
		if err := errors.Join(broker.Stop(), postgres.Stop()); err != nil {
			t.Error(err)
		}
	})
	d := newDeploymentAt(t, envtest.DatabaseOn(t, postgres), envtest.KafkaAt(t, broker.Addr()))
	d.addSubscriptions(2, 100)
	d.setup(1)
	d.start()
	d.awaitReady()
	d.produce(0, newCampaign("before", "r1"))
	d.checkOnce(map[string]string{"before": "r1"}, patience)
	d.awaitStatus("at work", []string{" decided, ", " shipped"}, " 0 decided", "as of")
	kafka, source := "Kafka at "+broker.Addr(), fmt.Sprintf("Postgres at 127.0.0.1:%d", postgres.Port())

	if err := broker.Stop(); err != nil {
		t.Fatal(err)
	}
	d.awaitStatus("Kafka is dead", []string{kafka, ", as of "}, " 0 decided", "other members", source)
	if err := postgres.Stop(); err != nil {
		t.Fatal(err)
	}
	d.awaitStatus("both are dead", []string{kafka, source, ", as of ", "— behind"}, " 0 decided", "0 B behind")
	out, err := exec.CommandContext(t.Context(), d.binary, "-c", d.config, "health").CombinedOutput()
	if text := string(out); err == nil || strings.Count(text, "\n") != 1 || strings.Contains(text, "{") || !strings.Contains(text, kafka) || !strings.Contains(text, "(to mend: `dinnerbell doctor`") {
		t.Errorf("health: %v %s", err, text)
	}
	d.kill()

	d.start() // with both dead
	d.awaitStatus("the start with both dead", []string{kafka, source, "— behind", "slot not known", "not known: this process has not taken over a lane yet"}, " 0 decided", "keeps 0 B")
	if text := d.statusText(); strings.Count(text, "connection refused") > 2+5 { // each server once; the events are apart
		t.Errorf("the status repeats itself:\n%s", text)
	}
	if err := errors.Join(postgres.Start(t.Context()), broker.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
	d.awaitReady()
	d.awaitStatus("all is back", []string{" decided, "}, " 0 decided", "as of", "not known")
	d.stop()
}

// A daemon that drains says so, and a second SIGTERM ends it at once.
func TestSecondSignalEndsADrain(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	d.addSubscriptions(1, 10)
	d.setup(1)
	d.start()
	d.awaitReady()
	tx, err := d.db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	if _, err := tx.Exec(t.Context(), `LOCK TABLE subscribers_feedback IN EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	d.produce(0, newCampaign("slow", "r0"))
	envtest.Until(t, patience, func() error {
		var waiting int
		d.queryRow(&waiting, `SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'subscribers_feedback'::regclass`)
		if waiting == 0 {
			return errors.New("no step waits for the lock")
		}
		return nil
	})
	if err := d.process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	envtest.Until(t, patience, func() error {
		var r struct {
			Stopping bool     `json:"stopping"`
			Reasons  []string `json:"reasons"`
			Problems []struct {
				What string `json:"what"`
			} `json:"problems"`
		}
		text := d.statusText("--json")
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			return err
		}
		if !r.Stopping {
			return fmt.Errorf("not stopping: %s", text)
		}
		if len(r.Reasons) != 1 || len(r.Problems) != 1 || !strings.Contains(r.Problems[0].What, "asked to end") {
			t.Errorf("a daemon that drains says %q %v", r.Reasons, r.Problems)
		}
		return nil
	})
	began := time.Now()
	if err := d.process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-d.process.Done()
	took := time.Since(began)
	ended, ok := errors.AsType[*exec.ExitError](d.process.Err())
	if !ok || ended.String() != "signal: terminated" || took > 5*time.Second {
		t.Errorf("%s after the second SIGTERM the daemon ended with %v", took, d.process.Err())
	}
	d.process = nil
}

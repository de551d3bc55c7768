package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dinnerbell/internal/testenv/envtest"
)

// checkpointEvery sets how often the daemon makes checkpoints.
func (d *deployment) checkpointEvery(every string) {
	d.env = append(os.Environ(), "DINNERBELL_STATE_CHECKPOINT_EVERY="+every)
}

// savedCheckpoint is a line of `checkpoint list --json`.
type savedCheckpoint struct {
	ID            string           `json:"id"`
	Cause         string           `json:"cause"`
	LSN           string           `json:"lsn"`
	Subscriptions int64            `json:"subscriptions"`
	Bytes         int64            `json:"bytes"`
	NextOffsets   map[string]int64 `json:"next_offsets"`
	Covered       *bool            `json:"covered"`
	Reason        string           `json:"reason"`
	Replaced      string           `json:"replaced"`
}

// jsonOf runs a command and decodes its JSON output.
func (d *deployment) jsonOf(v any, args ...string) {
	d.Helper()
	out := d.runCommand(args...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		d.Fatalf("dinnerbell %v: %v in %s", args, err, out)
	}
}

// failCommand runs a command that must fail with the exit code, and returns its
// message.
func (d *deployment) failCommand(code int, args ...string) string {
	d.Helper()
	cmd := exec.CommandContext(d.Context(), d.binary, append([]string{"-c", d.config}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != code {
		d.Fatalf("dinnerbell %v: %v, want exit %d: %s", args, err, code, stderr.String())
	}
	return stderr.String()
}

// countRebuilds counts the snapshots in the daemons' logs.
func (d *deployment) countRebuilds() int {
	return strings.Count(d.log.tail(1<<20), "taking a snapshot of the subscriptions")
}

// addClients adds n clients to a restaurant.
func (d *deployment) addClients(restaurant string, n int) {
	d.Helper()
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id)
		SELECT 'client ' || c || ' of ' || pg_current_wal_insert_lsn(), $1 FROM generate_series(1, $2) c`, restaurant, n)
}

// The recipe of docs/operations.md: save, lose, restore. The newest checkpoint
// continues exactly, an older one needs a rebuild; every client is notified
// once.
func TestCheckpointsAreRestored(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	d.checkpointEvery("1h")
	d.setup(2)
	d.addClients("first", 2000)
	d.start()
	d.awaitReady()
	produced := map[string]string{}
	campaign := func(id string) {
		d.Helper()
		d.produce(1, newCampaign(id, id))
		produced[id] = id
		d.checkOnce(produced, patience)
	}
	campaign("first")

	var first, second savedCheckpoint
	d.jsonOf(&first, "checkpoint", "create", "--json")
	if first.Subscriptions != 2000 || first.Bytes == 0 || first.Cause != "asked" || first.NextOffsets["0"] != 0 || first.NextOffsets["1"] != 1 {
		t.Errorf("checkpoint is %+v", first)
	}
	if text := d.failCommand(1, "checkpoint", "restore", first.ID); !strings.Contains(text, fmt.Sprintf("in use by process %d", d.process.PID())) {
		t.Errorf("restore beside the daemon says %s", text)
	}
	d.addClients("second", 10)
	campaign("second")
	d.jsonOf(&second, "checkpoint", "create", "--json")
	envtest.Until(t, patience, func() error {
		if out := d.statusText(); !strings.Contains(out, second.ID) {
			return fmt.Errorf("status does not name %s:\n%s", second.ID, out)
		}
		return nil
	})
	// These rows are in the WAL after the newest checkpoint.
	d.addClients("third", 20)
	d.addClients("fourth", 20)
	d.db.Exec(`DELETE FROM subscribers_restaurants WHERE restaurant_id = 'fourth' AND client_id LIKE 'client 1%'`)
	campaign("third")
	d.awaitCoverage(map[string]bool{first.ID: false, second.ID: true})
	d.kill()
	before := d.countRebuilds()

	d.restoreCheckpoint(second.ID, true)
	campaign("fourth")
	if n := d.countRebuilds(); n != before {
		t.Errorf("the newest checkpoint led to %d snapshots", n-before)
	}
	d.stop()

	d.addClients("fifth", 7)
	d.restoreCheckpoint(first.ID, false)
	campaign("fifth")
	if n := d.countRebuilds(); n != before+1 {
		t.Errorf("the older checkpoint led to %d snapshots, want one", n-before)
	}
	d.stop()

	// Without a daemon, and after a loss of the state alone.
	var offline savedCheckpoint
	d.jsonOf(&offline, "checkpoint", "create", "--json")
	if err := os.RemoveAll(filepath.Join(d.dir, "store")); err != nil {
		t.Fatal(err)
	}
	d.addClients("sixth", 5)
	d.restoreCheckpoint(offline.ID, true)
	campaign("sixth")
	if n := d.countRebuilds(); n != before+1 {
		t.Errorf("a checkpoint made offline led to %d snapshots", n-before-1)
	}
	if text := d.failCommand(1, "checkpoint", "restore", "20200101T000000.000Z"); !strings.Contains(text, "checkpoint list") {
		t.Errorf("restore of what is not there says %s", text)
	}
	d.stop()
}

// The recipe for a move to another machine, which has only a checkpoint.
func TestStateMovesToAnotherMachine(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	d.setup(1)
	d.addClients("first", 300)
	d.start()
	d.awaitReady()
	d.stop()
	var made savedCheckpoint
	d.jsonOf(&made, "checkpoint", "create", "--json")
	d.addClients("first", 5)

	old, folder := d.dir, filepath.Join("checkpoints", made.ID)
	d.dir = filepath.Join(envtest.Dir(t), "elsewhere")
	d.editConfig(old, d.dir)
	if err := os.CopyFS(filepath.Join(d.dir, folder), os.DirFS(filepath.Join(old, folder))); err != nil {
		t.Fatal(err)
	}
	before := d.countRebuilds()
	d.restoreCheckpoint(made.ID, true)
	d.produce(0, newCampaign("first", "first"))
	d.checkOnce(map[string]string{"first": "first"}, patience)
	if n := d.countRebuilds(); n != before {
		t.Errorf("the new machine took %d snapshots", n-before)
	}
	d.stop()
}

// editConfig replaces a text in the configuration.
func (d *deployment) editConfig(from, to string) {
	d.Helper()
	text, err := os.ReadFile(d.config)
	if err == nil {
		err = os.WriteFile(d.config, bytes.Replace(text, []byte(from), []byte(to), 1), 0o600)
	}
	if err != nil {
		d.Fatal(err)
	}
}

// awaitCoverage waits until the list reports for each checkpoint whether the
// slot covers it.
func (d *deployment) awaitCoverage(want map[string]bool) {
	d.Helper()
	envtest.Until(d, patience, func() error {
		var list []savedCheckpoint
		d.jsonOf(&list, "checkpoint", "list", "--json")
		found := 0
		for _, s := range list {
			covered, ok := want[s.ID]
			if !ok {
				continue
			}
			if found++; s.Covered == nil || *s.Covered != covered {
				return fmt.Errorf("%+v, want covered %v", s, covered)
			}
		}
		if found != len(want) {
			return fmt.Errorf("%+v are not all of %v", list, want)
		}
		return nil
	})
}

// restoreCheckpoint restores a checkpoint, checks the command's statement about
// the WAL, starts the daemon, and waits until a verification finds the rows
// right.
func (d *deployment) restoreCheckpoint(id string, covered bool) {
	d.Helper()
	var r savedCheckpoint
	d.jsonOf(&r, "checkpoint", "restore", id, "--json")
	if r.ID != id || r.Covered == nil || *r.Covered != covered || (r.Reason == "") != covered {
		d.Errorf("restore says %+v, want covered %v", r, covered)
	}
	d.start()
	d.awaitReady()
	envtest.Until(d, patience, func() error {
		if names, err := filepath.Glob(filepath.Join(d.dir, "replaced-*")); err != nil || len(names) > 0 {
			return fmt.Errorf("still there: %v %w", names, err)
		}
		return nil
	})
}

// restoreNewest restores the newest checkpoint, which the slot must cover in
// every case.
func (d *deployment) restoreNewest() {
	d.Helper()
	var list []savedCheckpoint
	d.jsonOf(&list, "checkpoint", "list", "--json")
	if len(list) == 0 {
		d.Fatal("there is no checkpoint")
	}
	newest := list[len(list)-1]
	if newest.Covered == nil || !*newest.Covered {
		d.Fatalf("the newest checkpoint is not covered: %+v", newest)
	}
	d.runCommand("checkpoint", "restore", newest.ID)
}

// `checkpoint list` as a table, with and without Postgres.
func TestCheckpointListSaysWhatIsUnknown(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	d.setup(1)
	if out := d.runCommand("checkpoint", "list", "--json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("a list of nothing is %s", out)
	}
	d.failCommand(1, "checkpoint", "create")
	d.start()
	d.awaitReady()
	d.runCommand("checkpoint", "create")
	d.stop()
	out := d.runCommand("checkpoint", "list")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) < 2 || !strings.HasSuffix(lines[len(lines)-1], "yes") {
		t.Errorf("list is\n%s", out)
	}
	d.editConfig(d.db.URL, "postgres://127.0.0.1:1/x")
	if out := d.runCommand("checkpoint", "list"); !strings.Contains(out, "not known") {
		t.Errorf("list without Postgres is\n%s", out)
	}
}

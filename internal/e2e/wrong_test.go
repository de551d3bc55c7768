package e2e

import (
	"bytes"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"dinnerbell/internal/testenv/envtest/damage"
)

// exitWith runs a command that must end with the code, and returns its output.
func (d *deployment) exitWith(code int, args ...string) (stdout, stderr string) {
	d.Helper()
	cmd := exec.CommandContext(d.Context(), d.binary, append([]string{"-c", d.config}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	got := 0
	if err := cmd.Run(); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			d.Fatal(err)
		}
		got = exit.ExitCode()
	}
	if got != code {
		d.Errorf("dinnerbell %v ended with %d, want %d: %s%s", args, got, code, out.String(), errs.String())
	}
	return out.String(), errs.String()
}

// docs/operations.md, "A campaign went to the wrong audience": verify names the
// wrong rows, repair mends them, and later campaigns have the audience that
// Postgres has.
func TestWrongAudience(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'guest ' || n, 'diner' FROM generate_series(1, 50) n`)
	d.setup(1)
	d.exitWith(1, "verify") // without a daemon
	d.start()
	d.awaitReady()
	d.stop()
	damage.Do(t, d.dir, func(r *damage.Rows) {
		r.DropJoin("7", "diner", "guest 7")
		r.SetRow("8", "elsewhere", "guest 8")
		r.SetJoin("9000", "diner", "a stranger")
	})
	d.start()
	d.awaitReady()
	out, errs := d.exitWith(1, "verify")
	for _, want := range []string{
		"row 7: missing in the join index: restaurant diner, client guest 7\n",
		"row 8: different in the rows index: restaurant elsewhere, client guest 8, should be restaurant diner, client guest 8\n",
		"row 9000: extra in the join index: restaurant diner, client a stranger\n",
		"compared 50 rows at ", ": 3 differ\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("verify does not say %q:\n%s", want, out)
		}
	}
	if !strings.Contains(errs, "dinnerbell verify --repair") {
		t.Errorf("verify does not say what to do: %s", errs)
	}
	if out := d.runCommand("verify", "--repair", "--json"); !strings.Contains(out, `{"row":"7","index":"join","wrong":"missing","postgres":{"restaurant":"diner","client":"guest 7"}}`) ||
		!strings.Contains(out, `"differences":3,"repaired":3,`) {
		t.Errorf("verify --repair --json: %s", out)
	}
	if out := d.runCommand("verify"); !strings.Contains(out, "no differences") {
		t.Errorf("verify after the repair: %s", out)
	}
	d.produce(0, newCampaign("lunch", "diner"))
	d.checkOnce(map[string]string{"lunch": "diner"}, patience)
	d.stop()
}

// Rebuilds and verifications run while campaigns arrive and subscriptions
// change: every subscriber is notified once per campaign, and no verification
// finds a difference.
func TestRebuildsUnderLoad(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	d.addSubscriptions(40, 8000)
	d.setup(3)
	d.start()
	d.awaitReady()
	d.underLoad(4, func(int) {
		if out := d.runCommand("rebuild"); !strings.HasPrefix(out, "rebuilt ") {
			t.Errorf("rebuild: %s", out)
		}
		d.runCommand("verify", "--repair")
	})
	if out := d.statusText("--json"); strings.Contains(out, `"work"`) {
		t.Errorf("work is left over: %s", out)
	}
	d.stop()
}

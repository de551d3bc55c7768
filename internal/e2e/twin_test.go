package e2e

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
)

// Two daemons with the same configuration and separate state.dirs, as on cloned
// machines: the second one exits with 3 and names the first one, which keeps
// its slot, its rows and its lanes.
func TestTwinDaemons(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	d.addSubscriptions(2, 100)
	d.setup(1)
	d.start()
	d.awaitReady()
	before := d.process.PID()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, d.binary, "-c", d.config, "run")
	cmd.Env = append(cmd.Environ(), "DINNERBELL_STATE_DIR="+t.TempDir(), "DINNERBELL_HTTP_LISTEN=127.0.0.1:0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	exit, ok := errors.AsType[*exec.ExitError](cmd.Run())
	if !ok || exit.ExitCode() != 3 {
		t.Errorf("the second daemon ended with %v, want exit 3", exit)
	}
	for _, want := range []string{"in use by another daemon", "dinnerbell@", "source.slot"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("the second daemon does not say %q:\n%s", want, stderr.String())
		}
	}
	d.produce(0, newCampaign("c", "r0"))
	d.checkOnce(map[string]string{"c": "r0"}, patience)
	if d.process.PID() != before {
		t.Error("the first daemon was started again")
	}
	if log := d.log.tail(64 << 10); strings.Count(log, "snapshot is complete") != 1 {
		t.Errorf("the first daemon was disturbed:\n%s", log)
	}
}

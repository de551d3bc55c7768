package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// Two daemons, or a daemon and an offline command, on one state.dir: the second
// one exits at once and names the first one's process, which continues.
func TestSecondDaemonOnOneDirectory(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	d.addSubscriptions(2, 100)
	d.setup(1)
	d.start()
	d.awaitReady()
	pid := fmt.Sprint("process ", d.process.PID())
	for way, args := range map[string][]string{
		"stop it, or give this one another state.dir": {"run"},
		"dinnerbell rebuild\n":                        {"rebuild", "--offline"},
	} {
		cmd := exec.CommandContext(t.Context(), d.binary, append([]string{"-c", d.config}, args...)...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		exit, ok := errors.AsType[*exec.ExitError](cmd.Run())
		if !ok || exit.ExitCode() != 1 {
			t.Errorf("dinnerbell %v: %v, want exit 1", args, exit)
		}
		for _, want := range []string{pid, d.dir, way} {
			if !strings.Contains(stderr.String(), want) {
				t.Errorf("dinnerbell %v does not say %q:\n%s", args, want, stderr.String())
			}
		}
	}
	d.produce(0, newCampaign("c", "r0"))
	d.checkOnce(map[string]string{"c": "r0"}, patience)
	d.stop()
	if out := d.runCommand("rebuild", "--offline"); !strings.Contains(out, "rebuilt 150 subscriptions") {
		t.Errorf("after the daemon has ended: %s", out)
	}
}

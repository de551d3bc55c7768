package config

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A command's children end with it, whether it has ended itself or was killed. The test
// inherits them, as a daemon does that is process 1 of a container: none stays a zombie.
func TestPasswordCommandLeavesNoProcess(t *testing.T) {
	const setChildSubreaper = 36 // prctl(2)
	if _, _, errno := syscall.Syscall(syscall.SYS_PRCTL, setChildSubreaper, 1, 0); errno != 0 {
		t.Fatal(errno)
	}
	for _, c := range []struct {
		name, script, wrong string
		patience            time.Duration
	}{
		{"ends", "sleep 60 >/dev/null 2>&1 & echo $! >'FILE'; echo secret", "", secretPatience},
		{"holds the output open", "sleep 60 & echo $! >'FILE'; echo secret", "WaitDelay expired", secretPatience},
		{"is killed", "(sleep 60; true) & echo $! >'FILE'; wait", "did not end within", 100 * time.Millisecond},
	} {
		file := write(t, "child", "")
		child := 0
		for patience := c.patience; child == 0; patience *= 2 { // a slow machine may not have started the child yet
			secret, err := runSecretCommand([]string{"sh", "-c", strings.ReplaceAll(c.script, "FILE", file)}, "password", patience)
			if c.wrong == "" && (err != nil || secret != "secret") || c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
				t.Fatalf("%s: %q, %v; want %q", c.name, secret, err, c.wrong)
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			child, _ = strconv.Atoi(strings.TrimSpace(string(text)))
		}
		if err := syscall.Kill(child, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("%s: its child %d is still there, or a zombie: %v", c.name, child, err)
			_ = syscall.Kill(child, syscall.SIGKILL)
		}
	}
}

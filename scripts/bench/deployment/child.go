package deployment

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"dinnerbell/internal/testenv"
)

const (
	// StopLimit is the time that a child has to drain.
	StopLimit  = 30 * time.Second
	readyLimit = 10 * time.Minute // long enough for a snapshot of ten million rows
	pollEvery  = 5 * time.Millisecond
	// countAtMost bounds the pause between two progress queries.
	countAtMost = 250 * time.Millisecond
)

// Child is a process under measurement.
type Child struct{ *testenv.Child }

// StartChild runs a program in the folder of its log file.
func StartChild(log, program string, args ...string) (*Child, error) {
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Env = filepath.Dir(log), testenv.ChildEnvironment(os.Environ())
	c, err := testenv.StartChild(cmd, log, syscall.SIGKILL)
	if err != nil {
		return nil, err
	}
	return &Child{c}, nil
}

// RunCommand runs a short command; its error holds the command's output.
func RunCommand(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = testenv.ChildEnvironment(os.Environ())
	cmd.SysProcAttr = testenv.ChildAttributes(syscall.SIGKILL)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %s: %w\n%s", cmd, err, out)
	}
	return nil
}

// awaitReady calls ready until it returns nil. It fails when the child or ctx
// ends, or after readyLimit, with ready's last error.
func (c *Child) awaitReady(ctx context.Context, ready func() error) error {
	return c.AwaitReady(ctx, readyLimit, pollEvery, func(context.Context) error { return ready() })
}

// AwaitCount waits until read returns at least n. Each query costs a contender
// CPU time during the measurement, so queries are few: at the pace so far, half
// of the rest will be done at the next one.
func (c *Child) AwaitCount(ctx context.Context, n int64, read func() (int64, error)) error {
	began, deadline := time.Now(), time.After(readyLimit)
	first, err := read()
	for got := first; ; got, err = read() {
		switch {
		case err != nil:
			return err
		case got >= n:
			return nil
		}
		pause := pollEvery
		if got > first {
			pause = time.Duration(float64(time.Since(began)) * float64(n-got) / float64(got-first) / 2)
		}
		select {
		case <-time.After(min(max(pause, pollEvery), countAtMost)):
		case <-deadline:
			return fmt.Errorf("wait for process %d: %d of %d within %s%s", c.PID(), got, n, readyLimit, c.LogTail())
		case <-c.Done():
			return c.ExitedError()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

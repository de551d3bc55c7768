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
	StopLimit  = 30 * time.Second // a child may drain that long
	readyLimit = 10 * time.Minute // a snapshot of ten million rows is in it
	pollEvery  = 5 * time.Millisecond
	// countAtMost is the longest pause between two questions how far a delivery
	// is.
	countAtMost = 250 * time.Millisecond
)

// Child is a program that is measured.
type Child struct{ *testenv.Child }

// StartChild runs a program with its output in a log file, in the folder of that
// file.
func StartChild(log, program string, args ...string) (*Child, error) {
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Env = filepath.Dir(log), testenv.ChildEnvironment(os.Environ())
	c, err := testenv.StartChild(cmd, log, syscall.SIGKILL)
	if err != nil {
		return nil, err
	}
	return &Child{c}, nil
}

// RunCommand runs a short command and returns its output.
func RunCommand(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = testenv.ChildEnvironment(os.Environ())
	cmd.SysProcAttr = testenv.ChildAttributes(syscall.SIGKILL)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run %s: %w\n%s", cmd, err, out)
	}
	return nil
}

// awaitReady calls ready until it returns nil. It gives up when the child or ctx
// ends, or after a long while, with ready's last error.
func (c *Child) awaitReady(ctx context.Context, ready func() error) error {
	return c.AwaitReady(ctx, readyLimit, pollEvery, func(context.Context) error { return ready() })
}

// AwaitCount waits until read gives at least n. Each question costs a contender
// CPU time while it is measured, so few are asked: the next one comes when, at
// the pace so far, half of what is left will be done.
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

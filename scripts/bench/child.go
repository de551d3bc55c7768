package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const (
	stopLimit  = 30 * time.Second // a child may drain that long
	readyLimit = 10 * time.Minute // a snapshot of ten million rows is in it
	pollEvery  = 5 * time.Millisecond
	// countAtMost is the longest pause between two questions how far a delivery
	// is.
	countAtMost = 250 * time.Millisecond
)

// errGone: a child ended that should be running.
var errGone = errors.New("it should be running")

// child is a program that is measured.
type child struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
	err  error         // of Wait; valid after done
}

// startChild runs a program in its own process group with its output in a log
// file. One goroutine keeps the thread that forks: the kernel ties the child's
// life to it (golang/go#27505).
func startChild(log, program string, args ...string) (*child, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	defer func() { _ = out.Close() }() // the child has its own descriptor
	cmd := exec.Command(program, args...)
	cmd.Dir = filepath.Dir(log)
	cmd.Env = childEnv()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = childAttr()
	c := &child{cmd: cmd, log: log, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(c.done)
		err := cmd.Start()
		started <- err
		if err == nil {
			c.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// stop asks the child to end and waits; one that does not follow is killed,
// which is an error.
func (c *child) stop() error {
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", c.cmd.Path, err)
	}
	select {
	case <-c.done:
		if c.err != nil {
			return fmt.Errorf("%s ended badly: %w%s", c.cmd.Path, c.err, c.tail())
		}
		return nil
	case <-time.After(stopLimit):
		c.kill()
		return fmt.Errorf("%s did not end within %s and was killed%s", c.cmd.Path, stopLimit, c.tail())
	}
}

// kill is a crash.
func (c *child) kill() {
	_ = c.cmd.Process.Kill() // it may have ended
	<-c.done
}

// tail is the end of the child's log, for errors.
func (c *child) tail() string {
	text, err := os.ReadFile(c.log)
	if err != nil || len(text) == 0 {
		return ""
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	lines = lines[max(0, len(lines)-12):]
	return "\nend of its log:\n  " + string(bytes.Join(lines, []byte("\n  ")))
}

// await calls ready until it returns nil. It gives up when the child or ctx
// ends, or after a long while, with ready's last error.
func (c *child) await(ctx context.Context, every time.Duration, ready func() error) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	timeout := time.After(readyLimit)
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-timeout:
			return fmt.Errorf("wait for %s: not within %s: %w%s", c.cmd.Path, readyLimit, err, c.tail())
		case <-c.done:
			return fmt.Errorf("wait for %s: %w%s", c.cmd.Path, errors.Join(c.err, errGone), c.tail())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// awaitCount waits until read gives at least n. Each question costs a contender
// CPU time while it is measured, so few are asked: the next one comes when, at
// the pace so far, half of what is left will be done.
func (c *child) awaitCount(ctx context.Context, n int64, read func() (int64, error)) error {
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
			return fmt.Errorf("wait for %s: %d of %d within %s%s", c.cmd.Path, got, n, readyLimit, c.tail())
		case <-c.done:
			return fmt.Errorf("wait for %s: %w%s", c.cmd.Path, errors.Join(c.err, errGone), c.tail())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// childEnv is this environment without what would lead a child elsewhere.
func childEnv() []string {
	var out []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "DINNERBELL_") && !strings.HasPrefix(kv, "PG") {
			out = append(out, kv)
		}
	}
	return out
}

package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// ErrExited means that a server ended by itself while it was waited for.
var ErrExited = errors.New("server exited")

// pollInterval is how often a condition that cannot be waited for is looked
// at again.
const pollInterval = 10 * time.Millisecond

// process is a child that lives at most as long as this process.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed once the child is gone and reaped
}

// startProcess starts cmd in its own process group, so that a Ctrl-C in the
// terminal reaches this process only, which then decides how its children end.
// Where the system can do it, the child gets onDeath when this process dies.
//
// The kernel sends that signal when the THREAD that forked ends, not the
// process (golang/go#27505): one goroutine therefore keeps its thread for as
// long as the child lives.
func startProcess(cmd *exec.Cmd, onDeath syscall.Signal, user *runAs) (*process, error) {
	cmd.SysProcAttr = sysProcAttr(onDeath)
	if user != nil {
		cmd.SysProcAttr.Credential = user.credential()
	}
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		_ = cmd.Wait() // how it ended stands in cmd.ProcessState
	}()
	if err := <-started; err != nil {
		<-p.done
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return p, nil
}

// pid is the child's process id.
func (p *process) pid() int { return p.cmd.Process.Pid }

// running reports whether p was started and has not ended; p may be nil.
func (p *process) running() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// signal sends sig; a child that is gone already is no error.
func (p *process) signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s (pid %d): %w", p.cmd.Path, p.pid(), err)
	}
	return nil
}

// wait reports whether the child ended within d.
func (p *process) wait(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-p.done:
		return true
	case <-timer.C:
		return false
	}
}

// awaitReady calls ready until it succeeds. It fails when the child ends, when
// ctx ends, or after limit, and then names ready's last error.
func (p *process) awaitReady(ctx context.Context, limit time.Duration, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%w: %s", ErrExited, p.cmd.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (last answer: %w)", p.cmd.Path, ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// openLog opens a server's log for appending. A file, not a pipe: with a pipe,
// Wait would last until every grandchild had closed it, too.
func openLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open server log: %w", err)
	}
	return f, nil
}

// logTail returns the last lines of a server's log for an error message.
func logTail(path string) string {
	const maxBytes = 2000
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err == nil && info.Size() > maxBytes {
		if _, err := f.Seek(-maxBytes, io.SeekEnd); err != nil {
			return ""
		}
	}
	text, err := io.ReadAll(f)
	if err != nil || len(text) == 0 {
		return ""
	}
	return "\nend of " + path + ":\n" + strings.TrimSpace(string(text))
}

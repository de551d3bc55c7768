package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// ErrExited means that a child ended by itself while its owner waited for it.
var ErrExited = errors.New("process exited")

// pollInterval is the pause between two checks of a condition that sends no
// signal.
const pollInterval = 10 * time.Millisecond

// Child is a program that this process has started. It lives at most as long as
// this process. Its methods may be called by several goroutines.
type Child struct {
	cmd  *exec.Cmd
	log  string        // path of the log file; "" where there is none
	done chan struct{} // closed once the child is gone and reaped
	err  error         // of cmd.Wait; valid after done
}

// StartChild starts cmd in its own process group, so that a Ctrl-C in the
// terminal reaches this process only, which then decides how its children end.
// Standard output and standard error are appended to the file log; with "" they
// go where cmd sends them. On Linux the child gets the signal onDeath when this
// process dies.
//
// The kernel sends that signal when the THREAD that forked ends, not the
// process (golang/go#27505): one goroutine therefore keeps its thread for as
// long as the child lives.
func StartChild(cmd *exec.Cmd, log string, onDeath syscall.Signal) (*Child, error) {
	return startChildAs(nil, cmd, log, onDeath)
}

// startChildAs is StartChild for another user; nil is the user of this process.
func startChildAs(user *serverUser, cmd *exec.Cmd, log string, onDeath syscall.Signal) (*Child, error) {
	cmd.SysProcAttr = ChildAttributes(onDeath)
	if user != nil {
		cmd.SysProcAttr.Credential = user.processCredential()
	}
	if log != "" {
		out, err := openLog(log)
		if err != nil {
			return nil, err
		}
		defer func() { _ = out.Close() }() // the child has its own descriptor
		cmd.Stdout, cmd.Stderr = out, out
	}
	c := &Child{cmd: cmd, log: log, done: make(chan struct{})}
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
		<-c.done
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return c, nil
}

// ChildEnvironment returns env without the variables that would lead the daemon
// or a Postgres program to other servers: DINNERBELL_* and PG*.
func ChildEnvironment(env []string) []string {
	var kept []string
	for _, kv := range env {
		if !strings.HasPrefix(kv, "DINNERBELL_") && !strings.HasPrefix(kv, "PG") {
			kept = append(kept, kv)
		}
	}
	return kept
}

// PID is the child's process id.
func (c *Child) PID() int { return c.cmd.Process.Pid }

// Done is closed once the child is gone and reaped.
func (c *Child) Done() <-chan struct{} { return c.done }

// Err returns how the child ended, as exec.Cmd.Wait does; valid after Done.
func (c *Child) Err() error { return c.err }

// ExitCode returns the exit code, -1 after a signal; valid after Done.
func (c *Child) ExitCode() int { return c.cmd.ProcessState.ExitCode() }

// Running reports whether the child was started and has not ended; c may be nil.
func (c *Child) Running() bool {
	if c == nil {
		return false
	}
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// Signal sends sig; a child that is gone already is no error.
func (c *Child) Signal(sig syscall.Signal) error {
	if err := c.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s (pid %d): %w", c.cmd.Path, c.PID(), err)
	}
	return nil
}

// Wait reports whether the child ended within limit.
func (c *Child) Wait(limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-c.done:
		return true
	case <-timer.C:
		return false
	}
}

// Stop sends SIGTERM and waits for the end. Another exit code than 0 is an
// error. So is a child that is still there after limit; Stop then kills it.
func (c *Child) Stop(limit time.Duration) error {
	if err := c.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if !c.Wait(limit) {
		return errors.Join(fmt.Errorf("stop %s: it did not end within %s after SIGTERM and was killed%s", c.cmd.Path, limit, c.LogTail()), c.Kill())
	}
	if c.err != nil {
		return fmt.Errorf("stop %s: it ended badly: %w%s", c.cmd.Path, c.err, c.LogTail())
	}
	return nil
}

// Kill sends SIGKILL and returns when the child is gone.
func (c *Child) Kill() error {
	if err := c.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-c.done
	return nil
}

// ExitedError is the error for a child that ended though nobody stopped it, with
// the end of its log; valid after Done.
func (c *Child) ExitedError() error {
	return fmt.Errorf("%w: %s: %s%s", ErrExited, filepath.Base(c.cmd.Path), c.cmd.ProcessState, c.LogTail())
}

// AwaitReady calls ready every so often until it returns nil. It fails when the
// child ends, when ctx ends, or after limit; the error then holds ready's last
// one and the end of the child's log.
func (c *Child) AwaitReady(ctx context.Context, limit, every time.Duration, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-c.done:
			return c.ExitedError()
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (last answer: %w)%s", filepath.Base(c.cmd.Path), ctx.Err(), err, c.LogTail())
		case <-tick.C:
		}
	}
}

// LogTail returns the last lines of the child's log for an error message.
func (c *Child) LogTail() string {
	const maxBytes = 2000
	if c.log == "" {
		return ""
	}
	f, err := os.Open(c.log)
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
	return "\nend of " + c.log + ":\n" + strings.TrimSpace(string(text))
}

// openLog opens a child's log for appending. A file, not a pipe: with a pipe,
// Wait would last until every grandchild had closed the pipe, too.
func openLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return f, nil
}

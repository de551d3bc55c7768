package demo

import (
	"bytes"
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

// stopLimit is how long the daemon may drain before it is killed.
const stopLimit = 30 * time.Second

// daemon is `dinnerbell run` as a process of its own.
type daemon struct {
	cmd  *exec.Cmd
	log  string        // path of what it says
	done chan struct{} // closed when it has ended
	err  error         // of Wait; valid after done
}

// startDaemon runs the binary in its own process group: a Ctrl-C at the terminal
// then reaches the demo alone, which stops things in their order. On Linux the
// daemon also gets a SIGTERM if the demo dies; that is tied to the thread which
// started it (golang/go#27505), so one goroutine keeps that thread.
func startDaemon(binary, config, log string, env []string) (*daemon, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log of the daemon: %w", err)
	}
	defer func() { _ = out.Close() }() // the child has its own descriptor
	cmd := exec.Command(binary, "-c", config, "run")
	cmd.Dir = filepath.Dir(config)
	cmd.Env = env
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = childAttr()
	d := &daemon{cmd: cmd, log: log, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(d.done)
		err := cmd.Start()
		started <- err
		if err == nil {
			d.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start daemon: %w", err)
	}
	return d, nil
}

// stop asks it to drain, and kills it when it does not.
func (d *daemon) stop() error {
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop daemon: %w", err)
	}
	select {
	case <-d.done:
		if d.err != nil {
			return fmt.Errorf("daemon ended badly: %w%s", d.err, d.tail())
		}
		return nil
	case <-time.After(stopLimit):
		_ = d.cmd.Process.Kill()
		<-d.done
		return fmt.Errorf("daemon did not drain within %s and was killed%s", stopLimit, d.tail())
	}
}

// ended is the error for a daemon that is gone though nobody stopped it.
func (d *daemon) ended() error {
	return fmt.Errorf("daemon ended by itself: %w%s", errors.Join(d.err, errGone), d.tail())
}

var errGone = errors.New("it should be running")

// tail is the end of its log, for errors.
func (d *daemon) tail() string {
	text, err := os.ReadFile(d.log)
	if err != nil || len(text) == 0 {
		return ""
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	lines = lines[max(0, len(lines)-15):]
	return "\nend of its log:\n  " + string(bytes.Join(lines, []byte("\n  ")))
}

// childEnv is an environment in which only the demo's own configuration counts:
// a DINNERBELL_SOURCE_URL or PGHOST of the user's would lead somewhere real.
func childEnv(env []string) []string {
	var out []string
	for _, kv := range env {
		if !strings.HasPrefix(kv, "DINNERBELL_") && !strings.HasPrefix(kv, "PG") {
			out = append(out, kv)
		}
	}
	return out
}

// runChild runs one short command of the binary and passes on what it says.
func runChild(binary string, env []string, say io.Writer, args ...string) error {
	cmd := exec.Command(binary, args...)
	cmd.Env = env
	cmd.SysProcAttr = childAttr()
	out, err := cmd.CombinedOutput()
	for line := range bytes.Lines(out) {
		_, _ = fmt.Fprintf(say, "         %s", line)
	}
	if err != nil {
		return fmt.Errorf("run dinnerbell %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

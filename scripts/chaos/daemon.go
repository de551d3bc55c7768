package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"dinnerbell/internal/testenv"
	"dinnerbell/scripts/chaos/network"
)

const (
	restartPause = 300 * time.Millisecond // as a supervisor's, after an unexpected exit
	stopLimit    = 30 * time.Second       // for the exit after SIGTERM
)

// daemonProcess is one `dinnerbell run` with its own slot, state.dir and links.
// It is supervised: after an exit that no fault caused, the exit is recorded
// and the daemon starts again.
type daemonProcess struct {
	name   string // d0, d1; also the suffix of the slot's name
	binary string
	config string // path
	dir    string // state.dir
	log    string // path
	http   string // host:port
	env    []string
	links  *network.Links

	// A fault that works on the process or on state.dir holds busy.
	busy sync.Mutex
	// A command of an operator holds operated.
	operated sync.Mutex

	mu     sync.Mutex // guards the fields below
	child  *testenv.Child
	done   chan struct{} // closed when noteEnd has recorded the end of child
	killed bool          // a fault has ended the process
	exits  []string      // ends that no fault has caused
	closed bool
}

// startProcess starts the daemon unless it is running or closed.
func (d *daemonProcess) startProcess() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.child != nil || d.closed {
		return nil
	}
	cmd := exec.Command(d.binary, "-c", d.config, "run")
	cmd.Dir = filepath.Dir(d.config)
	cmd.Env = append(os.Environ(), d.env...)
	child, err := testenv.StartChild(cmd, d.log, syscall.SIGKILL)
	if err != nil {
		return fmt.Errorf("start %s: %w", d.name, err)
	}
	done := make(chan struct{})
	d.child, d.done, d.killed = child, done, false
	go func() {
		defer close(done)
		<-child.Done()
		d.noteEnd(child)
	}()
	return nil
}

// noteEnd records how the process ended and schedules a restart unless a fault
// or close ended it.
func (d *daemonProcess) noteEnd(child *testenv.Child) {
	d.mu.Lock()
	d.child = nil
	asked := d.killed || d.closed
	switch {
	case !asked:
		d.exits = append(d.exits, fmt.Sprintf("%s ended by itself: %v", d.name, child.Err()))
	case d.closed && child.ExitCode() > 0:
		d.exits = append(d.exits, fmt.Sprintf("%s ended badly after SIGTERM: %v", d.name, child.Err()))
	}
	d.mu.Unlock()
	if !asked {
		time.AfterFunc(restartPause, d.restart)
	}
}

// restart starts the daemon again unless a fault has killed it meanwhile.
func (d *daemonProcess) restart() {
	d.mu.Lock()
	killed := d.killed
	d.mu.Unlock()
	if !killed {
		_ = d.startProcess() // a failed start shows as a daemon that is never ready
	}
}

// killProcess sends SIGKILL, which also ends a stopped process, and returns when the
// process is gone.
func (d *daemonProcess) killProcess() { _, _ = d.endProcess(syscall.SIGKILL, stopLimit) } // SIGKILL always ends it

// terminateProcess sends SIGTERM; a daemon that does not drain in time is an error.
func (d *daemonProcess) terminateProcess() error {
	ran, ok := d.endProcess(syscall.SIGTERM, stopLimit)
	if ran && !ok {
		d.killProcess()
		return fmt.Errorf("%s did not end within %s after SIGTERM", d.name, stopLimit)
	}
	return nil
}

func (d *daemonProcess) endProcess(sig syscall.Signal, limit time.Duration) (ran, ended bool) {
	d.mu.Lock()
	child, done := d.child, d.done
	d.killed = true
	d.mu.Unlock()
	if child == nil {
		return false, true
	}
	_ = child.Signal(sig) // a process that is gone has closed done
	select {
	case <-done:
		return true, true
	case <-time.After(limit):
		return true, false
	}
}

// freezeProcess sends SIGSTOP, thaw SIGCONT.
func (d *daemonProcess) freezeProcess() bool { return d.sendSignal(syscall.SIGSTOP) }
func (d *daemonProcess) thawProcess()        { d.sendSignal(syscall.SIGCONT) }

func (d *daemonProcess) sendSignal(sig syscall.Signal) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.child.Running() && d.child.Signal(sig) == nil
}

func (d *daemonProcess) isRunning() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.child != nil
}

// anonymousMemory returns the bytes of resident memory that the process has allocated,
// without the pages of its program's file, which the kernel loads and drops as it likes.
func (d *daemonProcess) anonymousMemory() (float64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.child == nil {
		return 0, fmt.Errorf("%s is not running", d.name)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.child.PID()))
	if err != nil {
		return 0, fmt.Errorf("read memory of %s: %w", d.name, err)
	}
	for line := range bytes.Lines(text) {
		if value, ok := bytes.CutPrefix(line, []byte("RssAnon:")); ok {
			var kilobytes float64
			_, err := fmt.Sscan(string(value), &kilobytes)
			return kilobytes * kilobyte, err
		}
	}
	return 0, fmt.Errorf("read memory of %s: no RssAnon in /proc/%d/status", d.name, d.child.PID())
}

// closeForGood ends the daemon for good; a bad exit is an error.
func (d *daemonProcess) closeForGood() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	return d.terminateProcess()
}

// unaskedExits lists the exits that no fault caused.
func (d *daemonProcess) unaskedExits() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.exits...)
}

// daemonStatus is the part of /api/status that shows whether a daemon has
// caught up.
type daemonStatus struct {
	Ready   bool     `json:"ready"`
	Reasons []string `json:"reasons"`
	Source  struct {
		State string `json:"state"`
	} `json:"source"`
	Lanes []struct {
		Partition  int32  `json:"partition"`
		Decided    int64  `json:"decided"`
		Shipped    int64  `json:"shipped"`
		NextOffset int64  `json:"next_offset"`
		State      string `json:"state"`
		LastError  string `json:"last_error"`
	} `json:"lanes"`
	Campaigns struct {
		Live int64 `json:"live"`
	} `json:"campaigns"`
	Halted json.RawMessage `json:"halted"`
}

// fetchStatus reads /api/status.
func (d *daemonProcess) fetchStatus(ctx context.Context) (*daemonStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	body, err := testenv.Get(ctx, "http://"+d.http+"/api/status")
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", d.name, err)
	}
	s := &daemonStatus{}
	if err := json.Unmarshal(body, s); err != nil {
		return nil, fmt.Errorf("ask %s: %w", d.name, err)
	}
	if h := bytes.TrimSpace(s.Halted); len(h) > 0 && !bytes.Equal(h, []byte("null")) {
		return s, fmt.Errorf("%s: %w: %s", d.name, errHalted, h)
	}
	return s, nil
}

// errHalted means that a lane or the source waits for an operator. No fault of
// this program may lead to a halt.
var errHalted = errors.New("halted")

// wipeState deletes state.dir of a killed daemon. If another fault has started
// the daemon in between, wipeState kills it again.
func (d *daemonProcess) wipeState() error {
	var err error
	for range 5 {
		if err = os.RemoveAll(d.dir); err == nil {
			return nil
		}
		d.killProcess()
	}
	return fmt.Errorf("wipe state of %s: %w", d.name, err)
}

// copyState copies state.dir to the folder that restoreState reads. The daemon
// is stopped or frozen, so the copied files are those that a crash would leave.
func (d *daemonProcess) copyState() error {
	old := d.dir + ".old"
	if err := os.RemoveAll(old); err != nil {
		return fmt.Errorf("copy state of %s: %w", d.name, err)
	}
	return copyDir(d.dir, old)
}

// restoreState replaces state.dir by the copy; false means that no copy exists.
func (d *daemonProcess) restoreState() (bool, error) {
	old := d.dir + ".old"
	if _, err := os.Stat(old); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err := d.wipeState(); err != nil {
		return false, err
	}
	return true, copyDir(old, d.dir)
}

// copyDir copies regular files only; the socket is left out.
func copyDir(from, to string) error {
	source, err := os.OpenRoot(from)
	if err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	defer func() { _ = source.Close() }()
	if err := os.MkdirAll(to, 0o750); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	target, err := os.OpenRoot(to)
	if err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	defer func() { _ = target.Close() }()
	return fs.WalkDir(source.FS(), ".", func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir():
			return target.MkdirAll(path, 0o750)
		case !e.Type().IsRegular():
			return nil
		}
		text, err := source.ReadFile(path)
		if err != nil {
			return err
		}
		return target.WriteFile(path, text, 0o600)
	})
}

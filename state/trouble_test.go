package state

import (
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"dinnerbell/state/statedir"
)

// faultInjector makes operations of one kind fail, on paths with a word in them, a given
// number of times.
type faultInjector struct {
	kind  errorfs.OpKind
	word  string
	errno syscall.Errno

	mu    sync.Mutex // Pebble's own goroutines use the files as well
	times int
}

// String implements errorfs.Injector.
func (f *faultInjector) String() string { return f.word }

// MaybeError implements errorfs.Injector.
func (f *faultInjector) MaybeError(op errorfs.Op) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.times == 0 || op.Kind != f.kind || !strings.Contains(op.Path, f.word) {
		return nil
	}
	f.times--
	return &os.PathError{Op: "open", Path: op.Path, Err: f.errno}
}

// An error of the machine while the store is opened sets no good store aside: Open waits
// while the error is temporary, and returns an error that lasts.
func TestOpenInTrouble(t *testing.T) {
	t.Parallel()
	at := map[string]struct {
		kind errorfs.OpKind
		word string
	}{ // read errors only: a MANIFEST that cannot be written ends the process
		"list store":      {kind: errorfs.OpList, word: statedir.StoreName},
		"open MANIFEST":   {kind: errorfs.OpOpen, word: "MANIFEST"},
		"open table":      {kind: errorfs.OpOpen, word: ".sst"},
		"stat table":      {kind: errorfs.OpStat, word: ".sst"},
		"open log":        {kind: errorfs.OpOpen, word: ".log"},
		"remove load":     {kind: errorfs.OpRemoveAll, word: statedir.LoadName},
		"list checkpoint": {kind: errorfs.OpList, word: statedir.CheckpointsName},
		"read mark":       {kind: errorfs.OpOpen, word: statedir.CorruptName},
	}
	for _, errno := range []syscall.Errno{syscall.EINTR, syscall.EBUSY, syscall.ESTALE, syscall.ETIMEDOUT, syscall.EAGAIN, syscall.EACCES, syscall.EMFILE, syscall.EPERM} {
		for name, fault := range at {
			t.Run(name+" "+errno.Error(), func(t *testing.T) {
				t.Parallel()
				mem := vfs.NewMem()
				o := testOptions()
				o.fs, o.openPauses = mem, []time.Duration{time.Millisecond, time.Millisecond}
				s, err := Open("/d", o)
				if err != nil {
					t.Fatal(err)
				}
				loadRows(t, s, 100, makeIDs(1, 1), 5)
				if err := errors.Join(mem.MkdirAll("/d/"+statedir.LoadName, 0o700), mem.MkdirAll("/d/"+statedir.CheckpointsName, 0o700), s.Close()); err != nil {
					t.Fatal(err)
				}
				for _, times := range []int{1, 1 << 30} {
					o.fs = errorfs.Wrap(mem, &faultInjector{kind: fault.kind, word: fault.word, errno: errno, times: times})
					o.Fatal = nil
					s, err := Open("/d", o)
					if err == nil {
						checkTroubled(t, s)
						if err := s.Close(); err != nil {
							t.Error(err)
						}
					} else if !errors.Is(err, errno) || times == 1 && isTemporary(err) {
						t.Errorf("%d times: %v", times, err)
					}
				}
				o.fs = mem
				checkTroubled(t, openStore(t, "/d", o))
			})
		}
	}
}

// While Pebble opens a store it flushes on a goroutine of its own: a failure there that
// could be damage ends the process in order, because no panic of it can be recovered.
func TestFailureBesideOpenIsFatal(t *testing.T) {
	t.Parallel()
	for what, fail := range map[string]func(*pebbleLogger){
		"MANIFEST": func(l *pebbleLogger) { l.Fatalf("MANIFEST sync failed: %v", syscall.EIO) },
		"log":      func(l *pebbleLogger) { _ = l.logFailed("write log", syscall.EIO) },
	} {
		ended := make(chan string, 1)
		l := &pebbleLogger{log: slog.New(slog.DiscardHandler), fatal: func(message string) { ended <- message; runtime.Goexit() }}
		l.opening.Store(true)
		go func() {
			defer close(ended)
			defer func() { _ = recover() }()
			fail(l)
		}()
		if message := <-ended; !strings.Contains(message, what) {
			t.Errorf("%s: the process would end with %q", what, message)
		}
	}
}

// A log that cannot be made while a store is opened is an error of Open: it does
// not end the process. An Open of Pebble 2.1.7 that fails this late leaves a
// goroutine behind, so a child runs it; and the store is a new one, for with tables
// in it another goroutine that is left (collectTableStats) panics.
func TestOpenCannotMakeLog(t *testing.T) {
	t.Parallel()
	child := exec.Command(os.Args[0], "-test.run=^TestOpenCannotMakeLogChild$", "-test.v")
	child.Env = append(os.Environ(), "STATE_TEST_NO_LOG=1")
	out, err := child.CombinedOutput()
	if child.ProcessState == nil || child.ProcessState.ExitCode() != childGood {
		t.Fatalf("%v\n%s", err, out[max(0, len(out)-8<<10):])
	}
}

// TestOpenCannotMakeLogChild does the work of TestOpenCannotMakeLog.
func TestOpenCannotMakeLogChild(t *testing.T) {
	if os.Getenv("STATE_TEST_NO_LOG") == "" {
		t.Skip("runs as a child")
	}
	for _, errno := range []syscall.Errno{syscall.EACCES, syscall.EMFILE, syscall.EIO} {
		mem := vfs.NewMem()
		o := testOptions()
		o.fs = errorfs.Wrap(mem, &faultInjector{kind: errorfs.OpCreate, word: ".log", errno: errno, times: 1 << 30})
		o.Fatal = func(message string) { t.Errorf("%v: the process would end: %s", errno, message) }
		if _, err := Open("/d", o); !errors.Is(err, errno) {
			t.Errorf("Open returns %v, want %v", err, errno)
		}
		o.fs = mem
		openStore(t, "/d", o)
	}
	if t.Failed() {
		os.Exit(1)
	}
	os.Exit(childGood)
}

// checkTroubled checks that the store is as it was.
func checkTroubled(t *testing.T, s *Store) {
	t.Helper()
	if s.Subscriptions() != 100 || s.EndLSN() != 5 {
		t.Errorf("%d subscriptions at %s", s.Subscriptions(), s.EndLSN())
	}
	if aside, was := s.SetAside(); was {
		t.Errorf("the store was set aside: %+v", aside)
	}
}

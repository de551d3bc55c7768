// Package envtest gives tests real servers: one Postgres and one broker per
// test binary, started when a test first asks, and a database and topics of
// its own for each test, so that tests run in parallel.
//
// A package that uses it has
//
//	func TestMain(m *testing.M) { envtest.Main(m) }
package envtest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dinnerbell/internal/testenv"

	"go.uber.org/goleak"
)

// brokerChild as the first argument turns the test binary into the broker.
const brokerChild = "envtest-broker-child"

// tempPrefix names this package's folders; the process id follows.
const tempPrefix = "dinnerbell-envtest-"

// servers are the servers of this test binary, the one global: the tests of a
// package share them, and Main stops them.
var servers sharedServers

// sharedServers start on first use.
type sharedServers struct {
	mu                sync.Mutex
	dir               string // holds the servers' folders; below the system's temporary folder
	postgres          *testenv.Postgres
	templateClause    string // of CREATE DATABASE; written once, with postgres
	broker            *testenv.Broker
	binary            string
	databases, topics int // counters for names
}

// Main runs a package's tests, stops the servers they started, and fails if a
// goroutine is left. It is also the broker's side of StartBroker, which starts
// the test binary a second time.
func Main(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == brokerChild {
		os.Exit(serveBroker(os.Args[2], os.Args[3]))
	}
	removeStale(os.TempDir())
	raiseParallel()
	code := m.Run()
	if err := servers.stopAll(); err != nil {
		fmt.Fprintln(os.Stderr, "envtest:", err)
		code = max(code, 1)
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, "envtest:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// raiseParallel lets more tests of a package run at once than there are cores, unless the
// command line has a limit: most of the time they wait for servers.
func raiseParallel() {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if given {
		return
	}
	if err := flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0))); err != nil {
		fmt.Fprintln(os.Stderr, "envtest:", err) // package testing has no such flag any more; the tests run all the same
	}
}

func serveBroker(dir, listen string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	signal.Ignore(syscall.SIGINT) // SIGINT is the parent's business
	if err := testenv.ServeBroker(ctx, dir, listen); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// folderLocked returns the shared folder; the caller holds mu. It is made on
// first use below the system's temporary folder and open to every user: if this
// process is root, Postgres runs as another user, who cannot enter t.TempDir().
func (s *sharedServers) folderLocked() (string, error) {
	if s.dir != "" {
		return s.dir, nil
	}
	dir, err := os.MkdirTemp("", tempPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return "", fmt.Errorf("make test folder: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", fmt.Errorf("open test folder: %w", err)
	}
	s.dir = dir
	return dir, nil
}

// stopAll stops the servers and removes the folder.
func (s *sharedServers) stopAll() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	if s.broker != nil {
		errs = append(errs, s.broker.Stop())
	}
	if s.postgres != nil {
		errs = append(errs, s.postgres.Stop())
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}

// removeStale removes the folders of test processes that were killed.
func removeStale(tmp string) {
	dirs, err := filepath.Glob(filepath.Join(tmp, tempPrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		text, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), tempPrefix), "-")
		pid, err := strconv.Atoi(text)
		if err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			_ = os.RemoveAll(dir)
		}
	}
}

// Dir makes a folder for a test that starts its own Postgres. Unlike
// t.TempDir(), every user can enter it.
func Dir(t testing.TB) string {
	t.Helper()
	servers.mu.Lock()
	root, err := servers.folderLocked()
	servers.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(root, "test-") //nolint:usetesting // closed to other users
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// Until calls done until it returns nil, and fails the test with done's last
// error after limit. It is the bounded wait for conditions that send no signal.
func Until(t testing.TB, limit time.Duration, done func() error) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); ; <-tick.C {
		err := done()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still not so after %s: %v", limit, err)
		}
	}
}

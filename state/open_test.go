package state

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"dinnerbell/state/id"
	"dinnerbell/state/statedir"
)

func TestLock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir, testOptions())
	_, err := Open(dir, testOptions())
	if !errors.Is(err, statedir.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("a second Open: %v; want ErrLocked and the holder", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	openStore(t, dir, testOptions())
}

// TestLockChild holds the lock in a process of its own for TestLockDies.
func TestLockChild(t *testing.T) {
	dir := os.Getenv("STATE_TEST_LOCK")
	if dir == "" {
		t.Skip("runs as a child")
	}
	openStore(t, dir, testOptions())
	fmt.Println("locked")
	select {}
}

// TestLockDies: a process that is killed leaves no lock behind.
func TestLockDies(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	child := exec.Command(os.Args[0], "-test.run=^TestLockChild$")
	child.Env = append(os.Environ(), "STATE_TEST_LOCK="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 6)
	if _, err := out.Read(b); err != nil || string(b) != "locked" {
		t.Fatalf("child says %q, %v", b, err)
	}
	_, err = Open(dir, testOptions())
	if !errors.Is(err, statedir.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint(child.Process.Pid)) {
		t.Errorf("Open: %v; want ErrLocked and process %d", err, child.Process.Pid)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	openStore(t, dir, testOptions())
}

// rawStore opens dir/store as a plain Pebble store.
func rawStore(t *testing.T, dir string, edit func(db *pebble.DB) error) {
	t.Helper()
	db, err := pebble.Open(dir, &pebble.Options{Logger: &pebbleLogger{log: slog.New(slog.DiscardHandler)}})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(edit(db), db.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestFormatRefused(t *testing.T) {
	t.Parallel()
	set := func(key, value []byte) func(*pebble.DB) error {
		return func(db *pebble.DB) error { return db.Set(key, value, pebble.Sync) }
	}
	//nolint:thelper // a failure names the table's row, which t.Helper would hide
	for name, test := range map[string]struct {
		make func(t *testing.T, dir string)
		want error
		says string
	}{
		"newer version": {func(t *testing.T, dir string) {
			rawStore(t, filepath.Join(dir, statedir.StoreName), set(keyFormat, encodeFormat(currentFormat.version+1)))
		}, ErrNewerFormat, fmt.Sprintf("format %d", currentFormat.version+1)},
		"newer Pebble": {func(t *testing.T, dir string) {
			rawStore(t, filepath.Join(dir, statedir.StoreName), set(keyFormat, encodeFormat(currentFormat.version)))
			old, _ := filepath.Glob(filepath.Join(dir, statedir.StoreName, "marker.format-version.*"))
			for _, name := range old {
				if err := os.Rename(name, filepath.Join(dir, statedir.StoreName, "marker.format-version.000099.999")); err != nil {
					t.Fatal(err)
				}
			}
		}, ErrNewerFormat, "999"},
		"other magic": {func(t *testing.T, dir string) {
			rawStore(t, filepath.Join(dir, statedir.StoreName), set(keyFormat, []byte("BREAKFAST\x00\x00\x00\x01")))
		}, ErrForeign, "BREAKFAST"},
		"no magic": {func(t *testing.T, dir string) {
			rawStore(t, filepath.Join(dir, statedir.StoreName), set([]byte("k"), []byte("v")))
		}, ErrForeign, ""},
		"other comparer": {func(t *testing.T, dir string) {
			c := *pebble.DefaultComparer
			c.Name = "other"
			db, err := pebble.Open(filepath.Join(dir, statedir.StoreName), &pebble.Options{Comparer: &c})
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(db.Set([]byte("k"), nil, nil), db.Close()); err != nil {
				t.Fatal(err)
			}
		}, ErrForeign, ""},
		"store in the directory itself": {func(t *testing.T, dir string) {
			rawStore(t, dir, set([]byte("k"), []byte("v")))
		}, ErrForeign, "state.dir"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			test.make(t, dir)
			for range 2 { // the first refusal changes nothing
				_, err := Open(dir, testOptions())
				if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
					t.Errorf("Open: %v; want %v with %q", err, test.want, test.says)
				}
			}
			if aside, _ := filepath.Glob(filepath.Join(dir, statedir.QuarantinePrefix+"*")); aside != nil {
				t.Errorf("it was set aside: %v", aside)
			}
		})
	}
}

// TestEmptyPebble: a crash came between the making of the store and its first record.
func TestEmptyPebble(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rawStore(t, filepath.Join(dir, statedir.StoreName), func(*pebble.DB) error { return nil })
	s := openStore(t, dir, testOptions())
	applyChanges(t, s, 1)
}

func TestQuarantine(t *testing.T) {
	t.Parallel()
	//nolint:thelper // a failure names the table's row, which t.Helper would hide
	for name, damage := range map[string]func(t *testing.T, dir string){
		"flipped byte in MANIFEST": func(t *testing.T, dir string) { editFile(t, dir, "MANIFEST-*", flip(20)) },
		"truncated MANIFEST":       func(t *testing.T, dir string) { editFile(t, dir, "MANIFEST-*", truncate(10)) },
		"empty MANIFEST":           func(t *testing.T, dir string) { editFile(t, dir, "MANIFEST-*", truncate(0)) },
		"no MANIFEST":              func(t *testing.T, dir string) { editFile(t, dir, "MANIFEST-*", nil) },
		"no tables":                func(t *testing.T, dir string) { editFile(t, dir, "*.sst", nil) },
		"truncated tables":         func(t *testing.T, dir string) { editFile(t, dir, "*.sst", truncate(30)) },
		"bad state record": func(t *testing.T, dir string) {
			rawStore(t, dir, func(db *pebble.DB) error { return db.Set(keyState, []byte("bad"), pebble.Sync) })
		},
		"bad source record": func(t *testing.T, dir string) {
			rawStore(t, dir, func(db *pebble.DB) error { return db.Set(keySource, []byte("{"), pebble.Sync) })
		},
		"condemned while running": func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "..", statedir.CorruptName), []byte("checksum"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			makeStore(t, dir)
			damage(t, filepath.Join(dir, statedir.StoreName))
			var log bytes.Buffer
			o := testOptions()
			o.Logger = slog.New(slog.NewTextHandler(&log, nil))
			s := openStore(t, dir, o)
			if _, ok := s.Source(); ok || s.EndLSN() != 0 || s.Subscriptions() != 0 {
				t.Fatalf("the damaged store is in use: %d rows at %s", s.Subscriptions(), s.EndLSN())
			}
			aside, _ := filepath.Glob(filepath.Join(dir, statedir.QuarantinePrefix+"*", "*"))
			if len(aside) == 0 || !strings.Contains(log.String(), "reason=") {
				t.Errorf("set aside: %v; logged: %s", aside, log.String())
			}
			loadRows(t, s, 10, makeIDs(1, 1), 5)
		})
	}
}

func makeStore(t *testing.T, dir string) {
	t.Helper()
	s, err := Open(dir, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	loadRows(t, s, 1000, makeIDs(3, 1), 7)
	applyChanges(t, s, 8, id.Change{Op: id.Delete, Row: rowN(1)})
	if err := errors.Join(s.db.Flush(), s.Close()); err != nil {
		t.Fatal(err)
	}
}

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte { b[at] ^= 0xff; return b }
}

func truncate(to int) func([]byte) []byte {
	return func(b []byte) []byte { return b[:to] }
}

// editFile rewrites every file that matches; without edit it removes them.
func editFile(t *testing.T, dir, pattern string, edit func([]byte) []byte) {
	t.Helper()
	names, _ := filepath.Glob(filepath.Join(dir, pattern))
	if len(names) == 0 {
		t.Fatalf("no %s", pattern)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err == nil && edit != nil {
			err = os.WriteFile(name, edit(b), 0o600)
		} else if err == nil {
			err = os.Remove(name)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestCorruptionWhileRunning: to read a damaged block returns ErrCorrupt, and the next
// Open sets the store aside.
func TestCorruptionWhileRunning(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	makeStore(t, dir)
	editFile(t, filepath.Join(dir, statedir.StoreName), "*.sst", func(b []byte) []byte {
		for i := 0; i < min(len(b)/2, 20_000); i += 64 {
			b[i] ^= 0x55
		}
		return b
	})
	s, err := Open(dir, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Source(); ok {
		_, err = s.Audience(makeIDs(3, 1)[0])
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("read of damaged blocks: %v, want ErrCorrupt", err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, testOptions())
	if _, ok := s.Source(); ok {
		t.Error("the damaged store is in use again")
	}
}

// TestSurroundings: an error that is not the store's fault does not set it aside.
func TestSurroundings(t *testing.T) {
	t.Parallel()
	for _, err := range []error{syscall.ENOSPC, syscall.EACCES, syscall.EMFILE, os.ErrPermission} {
		if !isEnvironmental(fmt.Errorf("open: %w", err)) {
			t.Errorf("%v sets a store aside", err)
		}
	}
	if isEnvironmental(pebble.ErrCorruption) {
		t.Error("corruption keeps a store")
	}
}

// TestUnreadableMark: a mark of damage that cannot be opened is an error of Open; the
// store is neither set aside nor opened.
func TestUnreadableMark(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	makeStore(t, dir)
	if err := os.WriteFile(filepath.Join(dir, statedir.CorruptName), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o := testOptions()
	o.fs = errorfs.Wrap(vfs.Default, &faultInjector{kind: errorfs.OpOpen, word: statedir.CorruptName, errno: syscall.EMFILE, times: 1})
	s, err := Open(dir, o)
	if err == nil {
		t.Fatal(errors.Join(errors.New("the mark was ignored"), s.Close()))
	}
	if !errors.Is(err, syscall.EMFILE) {
		t.Errorf("Open: %v, want %v", err, syscall.EMFILE)
	}
	if err := os.Remove(filepath.Join(dir, statedir.CorruptName)); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, testOptions())
	if _, ok := s.Source(); !ok {
		t.Error("the store was set aside")
	}
}

// TestTornStoreSetAside: the fresh store that replaces one in the middle of a transaction
// is outside of a transaction.
func TestTornStoreSetAside(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := Open(dir, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	applyChanges(t, s, 0, id.Change{Op: id.Insert, Row: rowN(1), Restaurant: packID(t, "r"), Client: packID(t, "c")})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	o := testOptions()
	o.fs = errorfs.Wrap(vfs.Default, &faultInjector{kind: errorfs.OpList, word: statedir.CheckpointsName, errno: syscall.EIO, times: 1})
	s = openStore(t, dir, o)
	if _, aside := s.SetAside(); !aside {
		t.Fatal("the store was not set aside")
	}
	applyChanges(t, s, 10)
	if s.Torn() || s.EndLSN() != 10 {
		t.Errorf("a fresh store is at %s after a transaction up to 0/A, torn: %v", s.EndLSN(), s.Torn())
	}
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	mem := vfs.NewMem()
	o := Options{ReserveBytes: 100 << 20, fs: mem, memTableBytes: 1 << 20}
	s := openStore(t, "state", o)
	change := id.Change{Op: id.Insert, Row: rowN(1), Restaurant: makeIDs(1, 1)[0], Client: makeIDs(1, 2)[0]}
	mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 99 << 20})
	if err := s.Apply(&Batch{Changes: []id.Change{change}, End: 1}); !errors.Is(err, ErrDiskFull) {
		t.Fatalf("Apply on a full disk: %v, want ErrDiskFull", err)
	}
	mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 200 << 20})
	applyChanges(t, s, 1, change)
	if s.Subscriptions() != 1 {
		t.Errorf("%d rows, want 1", s.Subscriptions())
	}
}

// TestClosed: no call after Close reaches Pebble, which would panic.
func TestClosed(t *testing.T) {
	t.Parallel()
	s, err := Open(t.TempDir(), testOptions())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	var list id.List
	calls := map[string]error{"Apply": s.Apply(&Batch{End: 1})}
	_, calls["Sync"] = s.Sync()
	_, calls["NewScan"] = s.NewScan()
	_, calls["NewGeneration"] = s.NewGeneration()
	_, calls["Audience"] = s.Audience("x")
	calls["ForgetDelivered"] = s.ForgetDelivered("x")
	calls["ForgetAllDelivered"] = s.ForgetAllDelivered()
	calls["MarkDelivered"] = s.MarkDelivered("x", &list, false)
	for name, err := range calls {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v, want ErrClosed", name, err)
		}
	}
}

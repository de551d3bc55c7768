package state

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dinnerbell/state/id"
	"dinnerbell/state/statedir"
)

// openRestored opens the directory after a restore of id.
func openRestored(t *testing.T, dir, id string) (*Store, string) {
	t.Helper()
	_, replaced, err := Restore(t.Context(), dir, id, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	return s, replaced
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// A restored store has the checkpoint's rows and position, and takes changes.
// The checkpoint can be restored again afterwards.
func TestRestore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := Open(dir, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	restaurants := makeIDs(2, 1)
	loadRows(t, s, 1000, restaurants, 10)
	var list id.List
	list.Append(restaurants[1])
	if err := s.MarkDelivered(restaurants[0], &list, false); err != nil {
		t.Fatal(err)
	}
	applyChanges(t, s, 15, insertOne(1500, restaurants[0], restaurants[1]))
	m := checkpoint(t, s, CauseAsked)
	applyChanges(t, s, 17)
	if _, err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	if at, err := s.MoveCheckpoint(); err != nil || at != 17 {
		t.Fatalf("moved to %s, %v", at, err)
	}
	applyChanges(t, s, 20, insertOne(2000, restaurants[0], restaurants[1]), id.Change{Op: id.Delete, Row: rowN(1500)})
	if _, _, err := Restore(t.Context(), dir, m.ID, testOptions()); !errors.Is(err, statedir.ErrLocked) {
		t.Fatalf("restore while the store is open: %v", err)
	}
	closeStore(t, s)
	for range 2 {
		s, replaced := openRestored(t, dir, m.ID)
		if s.EndLSN() != 17 || s.DurableLSN() != 17 || s.Subscriptions() != 1001 || s.Torn() {
			t.Errorf("restored %d rows at %s", s.Subscriptions(), s.EndLSN())
		}
		if err := s.CheckRows(t.Context()); err != nil {
			t.Error(err)
		}
		if src, ok := s.Source(); !ok || src != m.Source {
			t.Errorf("source is %+v", src)
		}
		if newest, ok := s.NewestCheckpoint(); !ok || newest.ID != m.ID {
			t.Errorf("newest checkpoint is %+v", newest)
		}
		if all, some := len(listClients(t, s, "", restaurants[0], 100)), len(listClients(t, s, restaurants[0], restaurants[0], 100)); all != some {
			t.Errorf("%d of %d clients count as delivered still", all-some, all)
		}
		if names, err := s.Replaced(); err != nil || len(names) != 1 || names[0] != replaced {
			t.Errorf("replaced are %v, %v; want %s", names, err, replaced)
		}
		applyChanges(t, s, 30, insertOne(3000, restaurants[0], restaurants[1]))
		if names, err := s.DropReplaced(t.Context()); err != nil || len(names) != 1 {
			t.Errorf("dropped %v, %v", names, err)
		}
		if names, err := s.Replaced(); err != nil || len(names) != 0 {
			t.Errorf("replaced are still %v, %v", names, err)
		}
		closeStore(t, s)
	}
}

// A store whose rows are damaged does not drop the store that it replaced.
func TestReplacedStaysWhereRowsAreWrong(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	makeStore(t, dir)
	s, err := Open(dir, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	m := checkpoint(t, s, CauseAsked)
	closeStore(t, s)
	s, replaced := openRestored(t, dir, m.ID)
	s.written.sum++
	if _, err := s.DropReplaced(t.Context()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("rows that do not have the fingerprint: %v", err)
	}
	closeStore(t, s)
	if _, err := os.Stat(filepath.Join(dir, replaced)); err != nil {
		t.Errorf("what was replaced is gone: %v", err)
	}
}

// Every fault of a checkpoint's files is an error that names it, and nothing is changed.
func TestRestoreRefusesDamage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	makeStore(t, dir)
	s, err := Open(dir, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	applyChanges(t, s, s.EndLSN()+1, insertOne(77, makeIDs(1, 1)[0], makeIDs(1, 2)[0]))
	m := checkpoint(t, s, CauseAsked)
	applyChanges(t, s, s.EndLSN()+1, insertOne(78, makeIDs(1, 1)[0], makeIDs(1, 2)[0]))
	rows := s.Subscriptions()
	closeStore(t, s)
	store := filepath.Join(dir, statedir.CheckpointsName, m.ID, statedir.StoreName)
	for name, size := range m.Files {
		for what, damage := range map[string]func(b []byte) []byte{
			"missing": nil,
			"cut":     func(b []byte) []byte { return b[:len(b)-1] },
			"flipped": func(b []byte) []byte { b[len(b)/2] ^= 0x40; return b },
		} {
			// A flip in text, in unused space of a log or in a marker may have no
			// effect: then the store is good.
			harmless := what == "flipped" && (!strings.HasSuffix(name, ".sst"))
			if size == 0 && what != "missing" || strings.HasPrefix(name, "marker") && what != "missing" {
				continue
			}
			good, err := os.ReadFile(filepath.Join(store, name))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(filepath.Join(store, name)); err != nil { // tables are shared: not in place
				t.Fatal(err)
			}
			if damage != nil {
				if err := os.WriteFile(filepath.Join(store, name), damage(append([]byte{}, good...)), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			before := listing(t, dir)
			_, _, err = Restore(t.Context(), dir, m.ID, testOptions())
			switch {
			case harmless && err == nil:
				s := openStore(t, dir, testOptions())
				if s.Subscriptions() != m.Subscriptions || s.CheckRows(t.Context()) != nil {
					t.Errorf("%s of %s: restored %d wrong rows", what, name, s.Subscriptions())
				}
				rows = m.Subscriptions
				closeStore(t, s)
			case !errors.Is(err, ErrBadCheckpoint):
				t.Errorf("%s %s: %v", name, what, err)
			default:
				if after := listing(t, dir); after != before {
					t.Errorf("%s %s: there are %s, were %s", name, what, after, before)
				}
			}
			if err := os.WriteFile(filepath.Join(store, name), good, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if s := openStore(t, dir, testOptions()); s.Subscriptions() != rows {
		t.Errorf("%d rows are left, want %d", s.Subscriptions(), rows)
	}
}

func listing(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// A checkpoint of a later format is refused, and the error names its writer.
func TestRestoreRefusesNewer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	makeStore(t, dir)
	s := openStore(t, dir, testOptions())
	m := checkpoint(t, s, CauseAsked)
	m.Format, m.Writer = currentFormat.version+1, "v9.8.7"
	if err := s.replaceManifest(&m); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	if _, _, err := Restore(t.Context(), dir, m.ID, testOptions()); !errors.Is(err, ErrNewerFormat) || !strings.Contains(err.Error(), "v9.8.7") {
		t.Errorf("error is %v", err)
	}
}

// TestCrashRestore crashes at every write of a restore, and of the Open that completes it,
// and opens the directory: it holds one of the two stores, whole, and the new store for
// certain once Restore has returned. The other store still exists.
func TestCrashRestore(t *testing.T) {
	t.Parallel()
	for _, corrupt := range []bool{false, true} {
		rec := &crashRecorder{mem: vfs.NewCrashableMem(), r: rand.New(rand.NewPCG(5, 5))}
		s, err := Open("state", crashOptions(rec.mem))
		if err != nil {
			t.Fatal(err)
		}
		restaurants := makeIDs(3, 1)
		loadRows(t, s, 100, restaurants, 10)
		m := checkpoint(t, s, CauseAsked)
		applyChanges(t, s, 20, insertOne(1000, restaurants[0], restaurants[1]))
		if corrupt {
			s.markCorrupt(errors.New("test"))
		}
		closeStore(t, s)
		o := crashOptions(rec.fs())
		if _, _, err := Restore(context.Background(), "state", m.ID, o); err != nil {
			t.Fatal(err)
		}
		rec.crashes = append(rec.crashes, crashImage{disk: rec.mem.CrashClone(vfs.CrashCloneCfg{})})
		seen := map[int64]int{}
		for i, c := range rec.crashes {
			rows := afterCrashedRestore(t, c, corrupt)
			seen[rows]++
			if i == len(rec.crashes)-1 && rows != 100 {
				t.Errorf("after a restore that returned there are %d rows", rows)
			}
		}
		t.Logf("%d crashes; by rows found: %v", len(rec.crashes), seen)
		if seen[100] < 3 || seen[101]+seen[0] == 0 {
			t.Error("the crashes did not come before and after the moment of the swap")
		}
	}
}

// afterCrashedRestore opens the store once with a second crash at each write, then for
// good; it returns the rows.
func afterCrashedRestore(t *testing.T, c crashImage, corrupt bool) int64 {
	t.Helper()
	// Pebble's own Open relies on file systems that keep the order in which a
	// directory's entries were made, so the second crash leaves all or nothing.
	again := &crashRecorder{mem: c.disk, whole: true, r: rand.New(rand.NewPCG(6, 6))}
	s, err := Open("state", crashOptions(again.fs()))
	if err != nil {
		t.Fatalf("crash at write %d: %v", c.write, err)
	}
	want := s.Subscriptions()
	// A store that was marked as corrupt and not replaced is set aside.
	if before := map[bool]int64{false: 101, true: 0}[corrupt]; want != before && want != 100 {
		t.Fatalf("crash at write %d: %d rows", c.write, want)
	}
	names, err := s.Replaced()
	// This file system can show a directory under both names after a crash.
	if err != nil || (want == 100) != (len(names) > 0) {
		t.Fatalf("crash at write %d: %d rows and replaced are %v, %v", c.write, want, names, err)
	}
	closeStore(t, s)
	for _, second := range again.crashes[:min(len(again.crashes), 12)] {
		s, err := Open("state", crashOptions(second.disk))
		if err != nil {
			t.Fatalf("crash at write %d, then at %d: %v", c.write, second.write, err)
		}
		if s.Subscriptions() != want {
			t.Fatalf("crash at write %d, then at %d: %d rows, want %d", c.write, second.write, s.Subscriptions(), want)
		}
		closeStore(t, s)
	}
	return want
}

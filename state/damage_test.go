package state

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state/id"
	"dinnerbell/state/pebblecheck"
	"dinnerbell/state/statedir"
)

// growingHistory returns the history of a store that becomes large enough for several
// tables and logs: a load, then transactions without TRUNCATE.
func growingHistory(seed uint64) (h *batchHistory, w *storeModel, first modelRows) {
	r := rand.New(rand.NewPCG(seed, 3))
	w = &storeModel{r: r, restaurants: makeIDs(5, seed)}
	m := modelRows{}
	for i := range 1500 {
		m[rowN(i)] = storedRow{w.restaurants[r.IntN(5)], randomUUID(1, r), true}
	}
	first = maps.Clone(m)
	h = &batchHistory{at: map[id.LSN]modelRows{0: {}, 5: first}}
	for i := range 60 {
		end := id.LSN(i+1) * 10
		var changes []id.Change
		for range 50 {
			c := id.Change{Row: rowN(r.IntN(6000)), Restaurant: w.restaurants[r.IntN(5)], Client: randomUUID(1, r), Op: id.Insert}
			if _, ok := m[c.Row]; ok {
				c.Op = []id.Op{id.Update, id.Delete}[r.IntN(2)]
			}
			m.apply(c)
			changes = append(changes, c)
		}
		h.batches = append(h.batches, Batch{Changes: changes, End: end})
		h.at[end] = maps.Clone(m)
		h.ends = append(h.ends, end)
	}
	return h, w, first
}

// damageOptions make small blocks: where a checksum fails, Pebble looks for the one
// flipped bit that explains it, in time that grows with the square of the block size.
func damageOptions(fs vfs.FS) Options {
	o := crashOptions(fs)
	o.blockBytes = 1 << 10
	return o
}

// crashImages returns most stores or a few more as crashes leave them, and one store
// that was closed in order.
func crashImages(t *testing.T, seed uint64, most int) ([]*vfs.MemFS, *batchHistory, *storeModel) {
	t.Helper()
	h, w, first := growingHistory(seed)
	rec := &crashRecorder{mem: vfs.NewCrashableMem(), r: w.r}
	s, err := Open("state", damageOptions(rec.fs()))
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.NewGeneration()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range slices.Sorted(maps.Keys(first)) {
		if err := l.Add(id, first[id].restaurant, first[id].client); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Finish(Source{Slot: "test"}, 5); err != nil {
		t.Fatal(err)
	}
	begin := len(rec.crashes)
	for i := range h.batches {
		if err := s.Apply(&h.batches[i]); err != nil {
			t.Fatal(err)
		}
		if i%5 == 4 {
			if _, err := s.Sync(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	disks := []*vfs.MemFS{rec.mem}
	for i := begin; i < len(rec.crashes); i += max(1, (len(rec.crashes)-begin)/most) {
		disks = append(disks, rec.crashes[i].disk)
	}
	return disks, h, w
}

// fileHarm is one way in which a file can go bad; it returns nil for a file that is
// gone.
type fileHarm func(r *rand.Rand, content []byte) []byte

var harms = map[string]fileHarm{
	"flip": func(r *rand.Rand, b []byte) []byte {
		b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		return b
	},
	"truncate": func(r *rand.Rand, b []byte) []byte { return b[:r.IntN(len(b))] },
	"delete":   func(*rand.Rand, []byte) []byte { return nil },
}

// TestAnyFileDamaged flips a byte in a file of a store, 200 times, and cuts off and
// removes files: of stores that were closed and of stores that crashed. Every read
// afterwards returns the rows of a position that the store had, or an error. A store
// that was found damaged is set aside and not opened again.
func TestAnyFileDamaged(t *testing.T) {
	t.Parallel()
	damageFiles(t, false)
}

// TestLongEveryFileDamaged damages each file of the store in each run.
func TestLongEveryFileDamaged(t *testing.T) {
	envtest.Long(t)
	t.Parallel()
	damageFiles(t, true)
}

func damageFiles(t *testing.T, each bool) {
	t.Helper()
	for how, runs := range map[string]int{"flip": 200, "truncate": 50, "delete": 50} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			disks, h, w := crashImages(t, uint64(len(how)), 20)
			r, seen := rand.New(rand.NewPCG(11, 11)), map[string]int{}
			for run := range runs {
				disk := disks[run%len(disks)]
				names := slices.DeleteFunc(storeFiles(t, disk), func(name string) bool { return fileKind(name) == "LOCK" })
				if !each {
					names = []string{names[r.IntN(len(names))]}
				}
				for _, name := range names {
					if copied, ok := copyDamaged(t, disk, name, harms[how], r); ok {
						seen[classifyDamage(t, copied, fmt.Sprintf("run %d, %s of %s", run, how, name), h, w)+" after "+fileKind(name)]++
					}
				}
			}
			for _, what := range slices.Sorted(maps.Keys(seen)) {
				t.Logf("%4d %s", seen[what], what)
			}
			if seen["set aside after .sst"]+seen["found when read after .sst"] == 0 {
				t.Error("no damage was seen")
			}
		})
	}
}

func storeFiles(t *testing.T, disk *vfs.MemFS) []string {
	t.Helper()
	names, err := disk.List("state/" + statedir.StoreName)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

// TestMissingLog removes each log that is followed by another one, of stores that ended
// while tables were written. Pebble opens such a store with a hole.
func TestMissingLog(t *testing.T) {
	t.Parallel()
	seen := map[string]int{}
	for seed := range uint64(2) {
		disks, h, w := crashImages(t, seed, 40)
		for i, disk := range disks {
			logs := slices.DeleteFunc(storeFiles(t, disk), func(name string) bool { return fileKind(name) != ".log" })
			for _, name := range logs[:max(0, len(logs)-1)] {
				if copied, ok := copyDamaged(t, disk, name, harms["delete"], nil); ok {
					seen[classifyDamage(t, copied, fmt.Sprintf("image %d, %s of %v", i, name, logs), h, w)]++
				}
			}
			missesNoLog(t, disk)
		}
	}
	t.Log(seen)
	if seen["set aside"] == 0 {
		t.Error("no hole was seen")
	}
}

// missesNoLog checks that a good store is not taken for a store with a missing log: to
// read all rows at each start would make the start long.
func missesNoLog(t *testing.T, disk *vfs.MemFS) {
	t.Helper()
	if missing, err := pebblecheck.MissesLog(disk, "state/"+statedir.StoreName); missing || err != nil {
		t.Errorf("a sound store misses a log: %v, %v", missing, err)
	}
}

func fileKind(name string) string {
	for _, k := range []string{"MANIFEST", "OPTIONS", "marker", "LOCK", ".sst", ".log"} {
		if strings.Contains(name, k) {
			return k
		}
	}
	return name
}

// copyDamaged copies a disk and damages one file of the store. ok is false for a file
// that cannot be damaged in this way.
func copyDamaged(t *testing.T, disk *vfs.MemFS, name string, how fileHarm, r *rand.Rand) (copied *vfs.MemFS, ok bool) {
	t.Helper()
	copied = vfs.NewMem()
	if _, err := vfs.Clone(disk, copied, "state", "state"); err != nil {
		t.Fatal(err)
	}
	path := "state/" + statedir.StoreName + "/" + name
	b, err := statedir.ReadFile(copied, path)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) == 0 && !strings.Contains(name, "marker") {
		return nil, false
	}
	if len(b) > 0 {
		b = how(r, b)
	} else {
		b = nil // the name of a marker file holds all its content
	}
	if err := copied.Remove(path); err != nil {
		t.Fatal(err)
	}
	if b != nil {
		if err := statedir.WriteFile(copied, path, b); err != nil {
			t.Fatal(err)
		}
	}
	return copied, true
}

// classifyDamage opens a damaged store and returns in words how that ended.
func classifyDamage(t *testing.T, disk *vfs.MemFS, what string, h *batchHistory, w *storeModel) string {
	t.Helper()
	s, err := Open("state", damageOptions(disk))
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	verdict, err := readEverything(s, h, w)
	if cerr := s.Close(); cerr != nil && err == nil {
		t.Errorf("%s: %v", what, cerr)
	}
	switch {
	case err == nil:
		return verdict
	case !errors.Is(err, ErrCorrupt):
		t.Errorf("%s: %v", what, err)
		return "wrong"
	}
	if s.Damage() == nil {
		t.Errorf("%s: the store does not know of its damage", what)
	}
	s = openStore(t, "state", damageOptions(disk))
	if _, aside := s.SetAside(); !aside || s.EndLSN() != 0 {
		t.Errorf("%s: it was found damaged and is in use again", what)
	}
	return "found when read"
}

// readEverything reads everything by each index, and compares.
func readEverything(s *Store, h *batchHistory, w *storeModel) (string, error) {
	if _, ok := s.Source(); !ok {
		if s.EndLSN() != 0 || s.Subscriptions() != 0 {
			return "", fmt.Errorf("no source, and %d rows at %s", s.Subscriptions(), s.EndLSN())
		}
		if _, aside := s.SetAside(); aside {
			return "set aside", nil
		}
		return "before the load", nil // its last write was cut off
	}
	m, known := h.at[s.EndLSN()]
	if !known || s.Subscriptions() != m.subscriptions() {
		return "", fmt.Errorf("%d rows at %s, should be %d", s.Subscriptions(), s.EndLSN(), m.subscriptions())
	}
	for _, r := range w.restaurants {
		got, err := listAudience(s, r)
		if err != nil {
			return "", err
		}
		if !slices.Equal(got, m.audience(r)) {
			return "", fmt.Errorf("audience of %s at %s is wrong: %d, should be %d", r.Text(), s.EndLSN(), len(got), len(m.audience(r)))
		}
	}
	// Point reads go through the filters: a row that they hide would leave its
	// join key behind.
	var all []id.Change
	for rowID := range m {
		all = append(all, id.Change{Op: id.Delete, Row: rowID})
	}
	if err := s.Apply(&Batch{Changes: all, End: 1 << 20}); err != nil {
		return "", err
	}
	for _, r := range w.restaurants {
		if left, err := listAudience(s, r); err != nil || len(left) > 0 {
			return "", errors.Join(err, fmt.Errorf("%d clients of %s are left", len(left), r.Text()))
		}
	}
	if s.Subscriptions() != 0 {
		return "", fmt.Errorf("%d rows are left", s.Subscriptions())
	}
	return "whole", nil
}

// listAudience lists a restaurant's clients.
func listAudience(s *Store, restaurant id.ID) ([]string, error) {
	scan, err := s.NewScan()
	if err != nil {
		return nil, err
	}
	var list id.List
	var out []string
	for after, done := id.ID(""), false; !done && err == nil; {
		list.Reset()
		if after, done, err = scan.Undelivered(&list, "", restaurant, after, 500); err != nil {
			break
		}
		for i := range list.Len() {
			out = append(out, list.At(i).Text())
		}
	}
	return out, errors.Join(err, scan.Close())
}

// TestDamageIsTold: damage that Pebble finds in the background, and a block that the
// disk cannot read, mark the store as corrupt as a read does.
func TestDamageIsTold(t *testing.T) {
	t.Parallel()
	told := func(t *testing.T, s *Store, mem *vfs.MemFS) {
		t.Helper()
		select {
		case <-s.Damaged():
		case <-time.After(envtest.Patience):
			t.Fatal("nobody is told")
		}
		if s.Damage() == nil {
			t.Error("no reason")
		}
		_ = s.Close() // it may fail: the store is damaged
		s = openStore(t, "state", damageOptions(mem))
		if aside, ok := s.SetAside(); !ok || s.EndLSN() != 0 || aside.Reason == "" {
			t.Errorf("the store is in use again at %s: %+v", s.EndLSN(), aside)
		}
	}
	made := func(t *testing.T) *vfs.MemFS {
		t.Helper()
		disks, _, _ := crashImages(t, 9, 1)
		mem := vfs.NewMem()
		if _, err := vfs.Clone(disks[0], mem, "state", "state"); err != nil {
			t.Fatal(err)
		}
		return mem
	}
	t.Run("compaction", func(t *testing.T) {
		t.Parallel()
		mem := made(t)
		s, err := Open("state", damageOptions(mem))
		if err != nil {
			t.Fatal(err)
		}
		// Over all keys, so that the tables below have to be read.
		err = errors.Join(s.db.Set([]byte{1}, nil, nil), s.db.Set([]byte{0xfe}, nil, nil), s.db.Flush())
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range storeFiles(t, mem) {
			if fileKind(name) == ".sst" {
				flipAll(t, mem, "state/"+statedir.StoreName+"/"+name)
			}
		}
		if err := s.db.Compact(t.Context(), []byte{0}, []byte{0xff}, false); err == nil {
			t.Error("damaged tables were compacted")
		}
		told(t, s, mem)
	})
	t.Run("EIO", func(t *testing.T) {
		t.Parallel()
		mem := made(t)
		var broken atomic.Bool
		s, err := Open("state", damageOptions(errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if broken.Load() && op.Kind == errorfs.OpFileReadAt {
				return &fs.PathError{Op: "read", Path: op.Path, Err: syscall.EIO}
			}
			return nil
		}))))
		if err != nil {
			t.Fatal(err)
		}
		broken.Store(true)
		if err := s.CheckRows(t.Context()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("got %v, want ErrCorrupt", err)
		}
		broken.Store(false)
		told(t, s, mem)
	})
}

// flipAll flips a bit in each few bytes of a file, in place, so that a process that has
// the file open reads the damage.
func flipAll(t *testing.T, mem *vfs.MemFS, name string) {
	t.Helper()
	f, err := mem.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	for at := int64(0); at < info.Size(); at += 50 {
		if _, err := f.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		b[0] ^= 0x20
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

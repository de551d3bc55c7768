package state

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"dinnerbell/state/id"
	"dinnerbell/state/statedir"
)

// batchHistory lists the batches that a store gets, and the rows that it must hold at
// each position.
type batchHistory struct {
	batches []Batch              // in order; parts have End 0
	at      map[id.LSN]modelRows // at the end of each transaction
	ends    []id.LSN
	flips   bool // a generation takes over somewhere, and the log begins anew
}

func makeHistory(w *storeModel, transactions int) *batchHistory {
	h, m := &batchHistory{at: map[id.LSN]modelRows{0: {}}}, modelRows{}
	for i := range transactions {
		end := id.LSN(i+1) * 10
		changes := w.transaction(m, 8, false)
		if i%3 == 1 {
			h.batches = append(h.batches, Batch{Changes: changes[:len(changes)/2]}, Batch{Changes: changes[len(changes)/2:]}, Batch{End: end})
		} else {
			h.batches = append(h.batches, Batch{Changes: changes, End: end})
		}
		h.at[end] = maps.Clone(m)
		h.ends = append(h.ends, end)
	}
	return h
}

// crashImage is a disk as a crash may leave it, and the position that was promised
// before the crash.
type crashImage struct {
	write   int
	disk    *vfs.MemFS
	durable id.LSN
	loaded  bool
}

// crashRecorder crashes a copy of the file system at every write. Unsynced data
// survives not at all, in some blocks, or as a whole, in turn.
type crashRecorder struct {
	mem     *vfs.MemFS
	store   atomic.Pointer[Store]
	whole   bool // all or nothing survives
	mu      sync.Mutex
	r       *rand.Rand
	crashes []crashImage
	reuse   sync.RWMutex // see reuseFS
}

// count returns how many crashes were recorded, while the store still writes.
func (rec *crashRecorder) count() int {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return len(rec.crashes)
}

// fs is the file system to run the store on.
func (rec *crashRecorder) fs() vfs.FS {
	return errorfs.Wrap(reuseFS{rec.mem, &rec.reuse}, errorfs.InjectorFunc(rec.record))
}

// reuseFS keeps MemFS's ReuseForWrite and CrashClone apart: ReuseForWrite takes a read
// lock twice, and never gets it the second time once CrashClone waits for the lock.
type reuseFS struct {
	vfs.FS
	mu *sync.RWMutex // held by CrashClone
}

// ReuseForWrite implements vfs.FS.
func (f reuseFS) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.FS.ReuseForWrite(from, to, c)
}

func (rec *crashRecorder) record(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() != errorfs.OpIsWrite || op.Kind == errorfs.OpLock || op.Kind == errorfs.OpFileClose {
		return nil
	}
	rec.mu.Lock()
	defer rec.mu.Unlock()
	c := crashImage{write: len(rec.crashes)}
	if s := rec.store.Load(); s != nil && s.mu.TryRLock() {
		// A writer that holds the lock has promised nothing new yet, but the position
		// that it promised before cannot be read now.
		c.durable, c.loaded = s.view.durable, s.view.loaded
		s.mu.RUnlock()
	}
	survives := []int{0, 50, 100}
	if rec.whole {
		survives = []int{0, 100}
	}
	rec.reuse.Lock()
	defer rec.reuse.Unlock()
	c.disk = rec.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: survives[rec.r.IntN(len(survives))], RNG: rec.r})
	rec.crashes = append(rec.crashes, c)
	return nil
}

// crashOptions make flushes and compactions frequent.
func crashOptions(fs vfs.FS) Options {
	return Options{
		CacheBytes: 1 << 20, ReserveBytes: -1, memTableBytes: 256 << 10, chunkBytes: 2 << 10, fs: fs,
		Log: LogOptions{Bytes: 1 << 20}, logPieceBytes: 100,
	}
}

// TestCrash crashes at every write of a run of transactions, reopens, and
// applies again from the position found.
func TestCrash(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, seed)
			h := makeHistory(w, 25)
			rec := &crashRecorder{mem: vfs.NewCrashableMem(), r: w.r}
			recordRun(t, rec, h)
			torn := 0
			for _, c := range rec.crashes {
				if checkCrash(t, c, h, w) {
					torn++
				}
			}
			t.Logf("%d crashes, %d between parts", len(rec.crashes), torn)
			if torn == 0 {
				t.Error("no crash came between the parts of a transaction")
			}
		})
	}
}

func recordRun(t *testing.T, rec *crashRecorder, h *batchHistory) { //nolint:thelper // half of the test itself: a failure must name its line here
	s, err := Open("state", crashOptions(rec.fs()))
	if err != nil {
		t.Fatal(err)
	}
	rec.store.Store(s)
	for i := range h.batches {
		if err := s.Apply(&h.batches[i]); err != nil {
			t.Fatal(err)
		}
		if i%4 == 3 {
			if _, err := s.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		if i%16 == 15 {
			if err := s.db.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func checkCrash(t *testing.T, c crashImage, h *batchHistory, w *storeModel) (torn bool) {
	t.Helper()
	s, err := Open("state", crashOptions(c.disk))
	if err != nil {
		t.Fatalf("crash at write %d: %v", c.write, err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	end, torn := s.EndLSN(), s.Torn()
	m, ok := h.at[end]
	if !ok || end < c.durable {
		t.Fatalf("crash at write %d: end is %s, durable was %s", c.write, end, c.durable)
	}
	noQuarantine(t, c)
	if floor, on := s.LogFloor(); floor != 1 && !h.flips || !on {
		t.Fatalf("crash at write %d: the log begins at %d, %v", c.write, floor, on)
	}
	checkLogged(t, s, h, 5, false)
	if !torn {
		checkModel(t, s, m, w.restaurants)
		checkRows(t, s, m)
	}
	if torn { // a keepalive does not mend it
		applyChanges(t, s, end+1)
		if !s.Torn() || s.EndLSN() != end {
			t.Fatalf("crash at write %d: a position alone mended a cut transaction", c.write)
		}
	}
	repeatHistory(t, s, h, end)
	last := h.ends[len(h.ends)-1]
	if s.Torn() || s.EndLSN() != last {
		t.Fatalf("crash at write %d: torn %v, end %s; want %s", c.write, s.Torn(), s.EndLSN(), last)
	}
	checkModel(t, s, h.at[last], w.restaurants)
	checkRows(t, s, h.at[last])
	checkLogged(t, s, h, 3, false)
	checkLogSize(t, s)
	return torn
}

// noQuarantine checks that Open set no store aside: a crash is not corruption. Only a
// store that was still empty may have been set aside.
func noQuarantine(t *testing.T, c crashImage) {
	t.Helper()
	names, err := c.disk.List("state")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, statedir.QuarantinePrefix) && (c.durable > 0 || c.loaded) {
			t.Fatalf("crash at write %d: a good store was set aside (%s)", c.write, name)
		}
	}
}

// repeatHistory applies the transactions that end after from.
func repeatHistory(t *testing.T, s *Store, h *batchHistory, from id.LSN) {
	t.Helper()
	start := 0
	for i, b := range h.batches {
		if b.End != 0 && b.End <= from {
			start = i + 1
		}
	}
	for i := start; i < len(h.batches); i++ {
		if err := s.Apply(&h.batches[i]); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCrashLoad crashes at every write of a load that takes over from another load.
// After the crash one of the two is there, whole.
func TestCrashLoad(t *testing.T) {
	t.Parallel()
	rec := &crashRecorder{mem: vfs.NewCrashableMem(), r: rand.New(rand.NewPCG(1, 1))}
	s, err := Open("state", crashOptions(rec.fs()))
	if err != nil {
		t.Fatal(err)
	}
	rec.store.Store(s)
	restaurants := makeIDs(3, 1)
	loadRows(t, s, 100, restaurants, 50)
	first := len(rec.crashes)
	loadRows(t, s, 300, restaurants, 40)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	seen := map[int64]int{}
	for _, c := range rec.crashes {
		seen[checkCrashLoad(t, c, c.write >= first, restaurants)]++
	}
	t.Logf("crashes by rows found: %v", seen)
	if seen[100] == 0 || seen[300] == 0 {
		t.Error("the crashes did not come before and after the flip")
	}
}

func checkCrashLoad(t *testing.T, c crashImage, second bool, restaurants []id.ID) int64 {
	t.Helper()
	s := openStore(t, "state", crashOptions(c.disk))
	noQuarantine(t, c)
	n, end := s.Subscriptions(), s.EndLSN()
	if _, ok := s.Source(); ok != (n > 0) || c.loaded && !ok {
		t.Fatalf("crash at write %d: source known: %v, loaded before: %v, %d rows", c.write, ok, c.loaded, n)
	}
	// The second load sets the position back.
	if log, _ := s.LogStart(); n == 100 && log != (LogStart{Floor: 51}) || n == 300 && (log.Floor != 41 || log.History == 0) {
		t.Fatalf("crash at write %d: the log of %d rows begins at %+v", c.write, n, log)
	}
	if want := map[int64]id.LSN{0: 0, 100: 50, 300: 40}; want[n] != end || second && n == 0 {
		t.Fatalf("crash at write %d: %d rows at %s", c.write, n, end)
	}
	total := 0
	for _, r := range restaurants {
		total += len(listClients(t, s, "", r, 50))
	}
	if int64(total) != n {
		t.Fatalf("crash at write %d: %d clients, %d rows", c.write, total, n)
	}
	loadRows(t, s, 7, restaurants, 60)
	if s.Subscriptions() != 7 {
		t.Fatalf("crash at write %d: the next load has %d rows, want 7", c.write, s.Subscriptions())
	}
	return n
}

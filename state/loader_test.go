package state

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"dinnerbell/state/id"
	"dinnerbell/state/statedir"
)

// smallChunks makes a load spill after some hundred rows.
func smallChunks() Options {
	o := testOptions()
	o.chunkBytes = 16 << 10
	return o
}

// TestLoad loads shuffled rows in many runs, with duplicates of pairs and NULLs,
// over a generation in use, and reopens.
func TestLoad(t *testing.T) {
	t.Parallel()
	for _, rows := range []int{0, 1, 100, 5000} {
		w, m, dir := newWorld(t, uint64(rows)), modelRows{}, t.TempDir()
		s, err := Open(dir, smallChunks())
		if err != nil {
			t.Fatal(err)
		}
		applyChanges(t, s, 500, id.Change{Op: id.Insert, Row: rowN(1), Restaurant: w.restaurants[0], Client: w.clients[0]})
		l, err := s.NewGeneration()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.NewGeneration(); !errors.Is(err, ErrLoading) {
			t.Errorf("a second load: %v, want ErrLoading", err)
		}
		for _, i := range rand.New(rand.NewPCG(1, 2)).Perm(rows) {
			r := storedRow{w.pick(w.restaurants), w.pick(w.clients), true}
			m[rowN(i)] = r
			if err := l.Add(rowN(i), r.restaurant, r.client); err != nil {
				t.Fatal(err)
			}
		}
		if _, ok := s.Source(); ok || l.Rows() != int64(rows) {
			t.Errorf("source known: %v, rows %d; want false, %d", ok, l.Rows(), rows)
		}
		want := Source{SystemID: "1", Timeline: 2, Slot: "s", TableOID: 3}
		if err := l.Finish(want, 100); err != nil {
			t.Fatal(err)
		}
		checkLoaded(t, s, m, w, want)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, dir, smallChunks())
		checkLoaded(t, s, m, w, want)
		applyChanges(t, s, 200, w.transaction(m, 50, true)...)
		checkModel(t, s, m, w.restaurants)
		checkRows(t, s, m)
	}
}

func checkLoaded(t *testing.T, s *Store, m modelRows, w *storeModel, want Source) {
	t.Helper()
	if src, ok := s.Source(); !ok || src != want {
		t.Errorf("source is %+v, %v; want %+v", src, ok, want)
	}
	if s.EndLSN() != 100 || s.DurableLSN() != 100 {
		t.Errorf("end %s, durable %s; want 0/64", s.EndLSN(), s.DurableLSN())
	}
	checkModel(t, s, m, w.restaurants)
	checkRows(t, s, m)
	if _, err := os.Stat(filepath.Join(s.dir, statedir.LoadName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder of the load is still there: %v", err)
	}
}

// TestLoadDuplicate: a row id that comes twice, in one run or in two, is an error, and
// the old generation is still served.
func TestLoadDuplicate(t *testing.T) {
	t.Parallel()
	for name, distance := range map[string]int{"one run": 3, "two runs": 2000} {
		s := openStore(t, t.TempDir(), smallChunks())
		loadRows(t, s, 10, makeIDs(1, 1), 1)
		l, err := s.NewGeneration()
		if err != nil {
			t.Fatal(err)
		}
		clients := makeIDs(distance, 2)
		for i, c := range clients {
			id := rowN(i % (distance - 1))
			if err = l.Add(id, makeIDs(1, 1)[0], c); err != nil {
				break
			}
		}
		if err == nil {
			err = l.Finish(Source{}, 2)
		}
		if !errors.Is(err, ErrDuplicateRow) {
			t.Errorf("%s: got %v, want ErrDuplicateRow", name, err)
		}
		if err := l.Abort(); err != nil {
			t.Error(err)
		}
		if s.Subscriptions() != 10 || s.EndLSN() != 1 || len(clients) == 0 {
			t.Errorf("%s: %d rows at %s, want the old 10 at 0/1", name, s.Subscriptions(), s.EndLSN())
		}
		loadRows(t, s, 20, makeIDs(1, 1), 3)
		if s.Subscriptions() != 20 {
			t.Errorf("%s: the next load has %d rows, want 20", name, s.Subscriptions())
		}
	}
}

// TestLoadEndsParts: a load takes over in the middle of a transaction.
func TestLoadEndsParts(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), testOptions())
	r, c := makeIDs(1, 1)[0], makeIDs(3, 2)
	fillRestaurant(t, s, 10, r, c, 1)
	applyChanges(t, s, 0, id.Change{Op: id.Truncate})
	loadRows(t, s, 5, []id.ID{r}, 7)
	if got := listClients(t, s, "", r, 9); len(got) != 5 || s.EndLSN() != 7 {
		t.Errorf("%d clients at %s, want 5 at 0/7", len(got), s.EndLSN())
	}
	applyChanges(t, s, 8, id.Change{Op: id.Delete, Row: rowN(1)})
	if s.Subscriptions() != 4 || s.EndLSN() != 8 {
		t.Errorf("%d rows at %s, want 4 at 0/8", s.Subscriptions(), s.EndLSN())
	}
}

func TestLoadAbort(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), smallChunks())
	l, err := s.NewGeneration()
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range makeIDs(1000, 1) {
		if err := l.Add(rowN(i), c, c); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(l.Abort(), l.Abort()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Add(rowN(1), "", ""), l.Finish(Source{}, 1)); !errors.Is(err, ErrClosed) {
		t.Errorf("after Abort: %v, want ErrClosed", err)
	}
	checkRows(t, s, modelRows{})
}

// TestLoadWithFewDescriptors loads hundreds of runs, of rows and of one range of
// join keys, in a child that may open few files.
func TestLoadWithFewDescriptors(t *testing.T) {
	t.Parallel()
	child := exec.Command(os.Args[0], "-test.run=^TestFewDescriptorsChild$", "-test.v")
	child.Env = append(os.Environ(), "STATE_TEST_DESCRIPTORS="+t.TempDir())
	if out, err := child.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS: TestFewDescriptorsChild") {
		t.Fatalf("%v\n%s", err, out[max(0, len(out)-8<<10):])
	}
}

func TestFewDescriptorsChild(t *testing.T) {
	dir := os.Getenv("STATE_TEST_DESCRIPTORS")
	if dir == "" {
		t.Skip("runs as a child")
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	limit.Cur = 64
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	o := smallChunks()
	o.fanIn = 50
	s := openStore(t, dir, o)
	l, err := s.NewGeneration()
	if err != nil {
		t.Fatal(err)
	}
	const n = 50_000
	restaurants, order := makeIDs(2, 1), rand.New(rand.NewPCG(1, 1)).Perm(n)
	for _, i := range order {
		// The first chunk has other keys than the rest: nearly all keys fall into one range.
		restaurant := restaurants[min(1, int(l.Rows())/500)]
		if err := l.Add(rowN(i), restaurant, packID(t, fmt.Sprint("client ", i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.awaitSpill(); err != nil || l.runs.Count() < 150 {
		t.Fatalf("%d runs, want some hundred; %v", l.runs.Count(), err)
	}
	if err := l.Finish(Source{Table: "x"}, 100); err != nil {
		t.Fatal(err)
	}
	if err := s.CheckRows(t.Context()); err != nil || s.Subscriptions() != n {
		t.Errorf("%d subscriptions, want %d; %v", s.Subscriptions(), n, err)
	}
}

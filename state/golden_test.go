package state

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"dinnerbell/state/id"
)

// testdata/format-N.tar.gz is a state directory as the first program that wrote format N
// left it, and format-N.txt lists its content. They are made once, when the format is new,
// and never again:
//
//	STATE_GOLDEN=1 go test ./state -run TestGoldenStores
//
// writes the two files of the present format if they are missing.

// TestGoldenStores opens a store of each released format, and its checkpoint,
// and finds the rows in them.
func TestGoldenStores(t *testing.T) {
	t.Parallel()
	own := filepath.Join("testdata", fmt.Sprintf("format-%d", currentFormat.version))
	if _, err := os.Stat(own + ".tar.gz"); errors.Is(err, os.ErrNotExist) && os.Getenv("STATE_GOLDEN") == "1" {
		writeGolden(t, own)
	}
	names, err := filepath.Glob(filepath.Join("testdata", "format-*.tar.gz"))
	if err != nil || !slices.Contains(names, own+".tar.gz") {
		t.Fatalf("there is no golden store of the present format: %v, %v", names, err)
	}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(strings.TrimSuffix(name, ".tar.gz") + ".txt")
			if err != nil {
				t.Fatal(err)
			}
			checkGolden(t, name, string(text))
		})
	}
}

// checkGolden opens the store, changes it, and restores its checkpoint.
func checkGolden(t *testing.T, archive, want string) {
	t.Helper()
	dir := t.TempDir()
	unpack(t, archive, dir)
	s := openStore(t, dir, testOptions())
	if aside, was := s.SetAside(); was {
		t.Fatalf("it was set aside: %+v", aside)
	}
	if got := describeState(t, s); got != want {
		t.Errorf("it has\n%s\nwant\n%s", got, want)
	}
	if err := s.CheckRows(t.Context()); err != nil {
		t.Error(err)
	}
	applyChanges(t, s, s.EndLSN()+1, id.Change{Op: id.Delete, Row: id.PackRow("7")})
	list, err := ListCheckpoints(dir)
	if err != nil || len(list) != 1 {
		t.Fatalf("checkpoints are %+v, %v", list, err)
	}
	closeStore(t, s)
	s, _ = openRestored(t, dir, list[0].ID)
	if got := describeState(t, s); got != want {
		t.Errorf("the checkpoint has\n%s\nwant\n%s", got, want)
	}
	closeStore(t, s)
}

// describeState returns everything that a store holds, as text.
func describeState(t *testing.T, s *Store) string {
	t.Helper()
	src, ok := s.Source()
	// Not %+v: a source has more fields some day.
	from := fmt.Sprintf("%s %s %s.%s %d %s", src.SystemID, src.Database, src.Schema, src.Table, src.TableOID, src.Slot)
	lines := []string{fmt.Sprintf("%d subscriptions at %s, torn %v, loaded %v, source %s", s.Subscriptions(), s.EndLSN(), s.Torn(), ok, from)}
	for row, r := range maps.Collect(storedRows(t, s)) {
		lines = append(lines, fmt.Sprintf("row %s: restaurant %q client %q", row.Text(), r.restaurant.Text(), r.client.Text()))
	}
	for _, restaurant := range goldenIDs(t) {
		for _, client := range listClients(t, s, "", restaurant, 7) {
			lines = append(lines, fmt.Sprintf("audience of %q: %q", restaurant.Text(), client))
		}
	}
	slices.Sort(lines[1:])
	return strings.Join(lines, "\n") + "\n"
}

// storedRows returns the stored rows by their keys.
func storedRows(t *testing.T, s *Store) func(yield func(id.RowID, storedRow) bool) {
	t.Helper()
	return func(yield func(id.RowID, storedRow) bool) {
		more := errors.New("enough")
		err := eachKey(t.Context(), s.db, spaceRow, s.written.gen, func(key, value []byte) error {
			r, err := parseRow(value)
			if err == nil && !yield(id.RowID(key[genLen:]), r) {
				err = more
			}
			return err
		})
		if err != nil && !errors.Is(err, more) {
			t.Error(err)
		}
	}
}

// goldenIDs returns ids of every form.
func goldenIDs(t *testing.T) []id.ID {
	t.Helper()
	var list []id.ID
	for _, text := range []string{
		"123e4567-e89b-12d3-a456-426614174000", "123E4567-E89B-12D3-A456-426614174000", "7", "pizza", "Zoë's", strings.Repeat("long ", 60), "a%b:c",
	} {
		list = append(list, packID(t, text))
	}
	return list
}

// writeGolden makes the pair.
func writeGolden(t *testing.T, own string) {
	t.Helper()
	dir := t.TempDir()
	o := testOptions()
	o.Writer = "golden"
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	all := goldenIDs(t)
	l, err := s.NewGeneration()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 60 {
		if err := l.Add(rowN(i-10), all[i%len(all)], all[(i*5+i/7)%len(all)]); err != nil {
			t.Fatal(err)
		}
	}
	src := Source{SystemID: "7000000000000000001", Timeline: 1, Database: "de", Slot: "dinnerbell", Publication: "dinnerbell", PublicationOID: 16500, Schema: "public", Table: "subscribers_restaurants", TableOID: 16400, Catalog: "c"}
	if err := l.Finish(src, 0x16B374D8); err != nil {
		t.Fatal(err)
	}
	applyChanges(t, s, 0x16B37500,
		id.Change{Op: id.Delete, Row: rowN(3)},
		id.Change{Op: id.Update, Row: rowN(4), Restaurant: all[0], Client: all[5]},
		id.Change{Op: id.Insert, Row: id.PackRow("composite,key"), Restaurant: all[3], Client: all[4]},
		id.Change{Op: id.Insert, Row: id.PackRow("123e4567-e89b-12d3-a456-426614174000"), Restaurant: all[3], Client: all[4]},
		id.Change{Op: id.Insert, Row: rowN(-99), Restaurant: all[1]})
	var list id.List
	list.Append(all[2])
	if err := s.MarkDelivered(all[3], &list, false); err != nil {
		t.Fatal(err)
	}
	checkpoint(t, s, CauseTimed)
	text := describeState(t, s)
	closeStore(t, s)
	pack(t, dir, own+".tar.gz")
	if err := os.WriteFile(own+".txt", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func pack(t *testing.T, dir, archive string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(archive), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(f)
	w := tar.NewWriter(z)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close(), z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func unpack(t *testing.T, archive, dir string) {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, filepath.FromSlash(h.Name))
		if h.FileInfo().IsDir() {
			err = os.MkdirAll(to, 0o700)
		} else {
			var b []byte
			if b, err = io.ReadAll(r); err == nil {
				err = errors.Join(os.MkdirAll(filepath.Dir(to), 0o700), os.WriteFile(to, b, 0o600))
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// nextFormat returns a format after the present one, to test upgrades: it has one more
// record.
func nextFormat(step uint32) storeFormat {
	return storeFormat{version: currentFormat.version + step, upgrade: func(_ *pebble.DB, b *pebble.Batch) error {
		return b.Set([]byte{spaceMeta, 'n', 'e', 'x', 't'}, []byte{byte(step)}, nil)
	}}
}

// A store of the previous format is upgraded in place, with its checkpoints. Then the
// previous program refuses the store and names the program that upgraded it.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	makeStore(t, dir)
	s := openStore(t, dir, testOptions())
	want := describeState(t, s)
	m := checkpoint(t, s, CauseAsked)
	closeStore(t, s)
	o := testOptions()
	o.format, o.Writer = nextFormat(1), "v2.0.0"
	check := func() {
		t.Helper()
		s := openStore(t, dir, o)
		if got := describeState(t, s); got != want {
			t.Errorf("after the upgrade there are\n%s\nwant\n%s", got, want)
		}
		if value, err := getCopy(s.db, []byte{spaceMeta, 'n', 'e', 'x', 't'}); err != nil || string(value) != "\x01" {
			t.Errorf("the record is %q, %v", value, err)
		}
		closeStore(t, s)
	}
	check()
	if _, err := Open(dir, testOptions()); !errors.Is(err, ErrNewerFormat) || !strings.Contains(err.Error(), "dinnerbell v2.0.0 wrote it") {
		t.Errorf("the program before says %v", err)
	}
	if _, _, err := Restore(t.Context(), dir, m.ID, o); err != nil {
		t.Fatal(err)
	}
	check()
}

// A store that cannot be upgraded is set aside for a rebuild.
func TestTooOldIsRebuilt(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]storeFormat{
		"two behind": nextFormat(2), "without a step": {version: currentFormat.version + 1},
		"a step that fails": {version: currentFormat.version + 1, upgrade: func(*pebble.DB, *pebble.Batch) error { return ErrCorrupt }},
	} {
		dir := t.TempDir()
		makeStore(t, dir)
		o := testOptions()
		o.format = f
		s := openStore(t, dir, o)
		if aside, was := s.SetAside(); !was || s.Subscriptions() != 0 {
			t.Errorf("%s: %d rows, set aside: %+v", name, s.Subscriptions(), aside)
		}
		closeStore(t, s)
	}
}

// TestCrashUpgrade crashes at every write of an upgrade: the next Open completes it.
func TestCrashUpgrade(t *testing.T) {
	t.Parallel()
	rec := &crashRecorder{mem: vfs.NewCrashableMem(), whole: true, r: rand.New(rand.NewPCG(8, 8))}
	s, err := Open("state", crashOptions(rec.mem))
	if err != nil {
		t.Fatal(err)
	}
	loadRows(t, s, 100, makeIDs(3, 1), 10)
	closeStore(t, s)
	o := crashOptions(rec.fs())
	o.format = nextFormat(1)
	if s, err = Open("state", o); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	before := 0
	for _, c := range rec.crashes {
		if s, err := Open("state", crashOptions(c.disk)); err == nil {
			before++
			closeStore(t, s)
		} else if !errors.Is(err, ErrNewerFormat) {
			t.Fatalf("crash at write %d: %v", c.write, err)
		}
		o.fs = c.disk
		s := openStore(t, "state", o)
		if s.Subscriptions() != 100 || s.EndLSN() != 10 {
			t.Fatalf("crash at write %d: %d rows at %s", c.write, s.Subscriptions(), s.EndLSN())
		}
		closeStore(t, s)
	}
	if before == 0 || before == len(rec.crashes) {
		t.Errorf("%d of %d crashes came before the upgrade", before, len(rec.crashes))
	}
}

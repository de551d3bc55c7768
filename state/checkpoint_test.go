package state

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"dinnerbell/state/id"
	"dinnerbell/state/statedir"
)

// insertOne is one subscription.
func insertOne(n int, restaurant, client id.ID) id.Change {
	return id.Change{Op: id.Insert, Row: rowN(n), Restaurant: restaurant, Client: client}
}

func checkpoint(t testing.TB, s *Store, cause Cause) Manifest {
	t.Helper()
	m, err := s.Checkpoint(cause, map[int32]int64{0: 7})
	if err != nil {
		t.Fatal(err)
	}
	return *m
}

func TestCheckpointIsListed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o := testOptions()
	o.Writer = "v1.2.3"
	s := openStore(t, dir, o)
	if _, err := s.Checkpoint(CauseAsked, nil); !errors.Is(err, ErrNotWhole) {
		t.Fatalf("a checkpoint of nothing: %v", err)
	}
	restaurants := makeIDs(2, 1)
	loadRows(t, s, 1000, restaurants, 10)
	first := checkpoint(t, s, CauseAsked)
	applyChanges(t, s, 20, insertOne(2000, restaurants[0], restaurants[1]))
	second := checkpoint(t, s, CauseTimed)
	list, err := ListCheckpoints(dir)
	if err != nil || len(list) != 2 {
		t.Fatalf("list is %+v, %v", list, err)
	}
	for i, want := range []Manifest{first, second} {
		got, err := ReadManifest(dir, want.ID)
		if err != nil || fmt.Sprint(*got) != fmt.Sprint(list[i]) || fmt.Sprint(*got) != fmt.Sprint(want) {
			t.Errorf("manifest is %+v, %v\nlisted as %+v\nwant %+v", got, err, list[i], want)
		}
		if got.Writer != "v1.2.3" || got.NextOffsets[0] != 7 || got.Subscriptions != 1000+int64(i) || got.EndLSN != id.LSN(10+10*i) || got.Bytes() < 10_000 {
			t.Errorf("manifest is %+v", got)
		}
	}
	for _, id := range []string{"", "x", "..", "20260101T000000.000Z"} {
		if _, err := ReadManifest(dir, id); !errors.Is(err, ErrNoCheckpoint) {
			t.Errorf("manifest of %q: %v", id, err)
		}
	}
}

// Damage to any byte of a manifest is found, and hides no other checkpoint.
func TestDamagedCheckpointManifest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir, testOptions())
	loadRows(t, s, 10, makeIDs(1, 1), 10)
	bad, good := checkpoint(t, s, CauseAsked), checkpoint(t, s, CauseAsked)
	name := filepath.Join(dir, statedir.CheckpointsName, bad.ID, manifestName)
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for i := range text {
		text[i] ^= 1
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
		text[i] ^= 1
		if _, err := ReadManifest(dir, bad.ID); !errors.Is(err, ErrBadCheckpoint) {
			t.Fatalf("byte %d of %d flipped: %v", i, len(text), err)
		}
	}
	list, err := ListCheckpoints(dir)
	if !errors.Is(err, ErrBadCheckpoint) || len(list) != 1 || list[0].ID != good.ID {
		t.Errorf("list is %+v, %v; want %s alone and an error", list, err, good.ID)
	}
}

// Each cause has its own share: checkpoints of the clock do not displace those that an
// operator asked for.
func TestOldCheckpointsGo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o := testOptions()
	o.KeepCheckpoints = 2
	s := openStore(t, dir, o)
	loadRows(t, s, 10, makeIDs(1, 1), 10)
	var want []string
	for i, cause := range []Cause{CauseAsked, CauseTimed, CauseWAL, CauseTimed, CauseTimed, CauseWAL, CauseAsked, CauseTimed, CauseWAL} {
		m := checkpoint(t, s, cause)
		if i == 0 || i == 4 || i > 5 {
			want = append(want, m.ID)
		}
	}
	list, err := ListCheckpoints(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range list {
		got = append(got, m.ID)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("left are %v, want %v", got, want)
	}
}

// A checkpoint moves with the position while its rows stay the same, and only then.
func TestCheckpointMoves(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), testOptions())
	restaurants := makeIDs(2, 1)
	loadRows(t, s, 10, restaurants, 10)
	if at, err := s.MoveCheckpoint(); at != 0 || err != nil {
		t.Fatalf("without a checkpoint: %s, %v", at, err)
	}
	m := checkpoint(t, s, CauseTimed)
	other := insertOne(99, restaurants[0], restaurants[1])
	for _, step := range []struct {
		what    string
		end     id.LSN
		changes []id.Change
		sync    bool
		want    id.LSN
	}{
		{"a position that is not durable", 20, nil, false, 10},
		{"a durable one", 30, nil, true, 30},
		{"a row", 40, []id.Change{other}, true, 30},
		{"only a position", 50, nil, true, 30},
		{"the row goes again", 60, []id.Change{{Op: id.Delete, Row: other.Row}}, true, 60},
		{"a row comes and goes in one batch", 70, []id.Change{other, {Op: id.Delete, Row: other.Row}}, true, 70},
		{"a part of a transaction", 0, []id.Change{other}, true, 70},
		{"its end", 80, nil, true, 70},
	} {
		applyChanges(t, s, step.end, step.changes...)
		if step.sync {
			if _, err := s.Sync(); err != nil {
				t.Fatal(err)
			}
		}
		if at, err := s.MoveCheckpoint(); at != step.want || err != nil {
			t.Errorf("after %s the checkpoint stands for %s, %v; want %s", step.what, at, err, step.want)
		}
		if got, err := ReadManifest(s.dir, m.ID); err != nil || got.EndLSN != step.want {
			t.Errorf("after %s the manifest says %+v, %v; want %s", step.what, got, err, step.want)
		}
	}
	loadRows(t, s, 10, restaurants, 90)
	if _, ok := s.NewestCheckpoint(); ok {
		t.Error("a checkpoint of the former load counts as the newest")
	}
	if at, err := s.MoveCheckpoint(); at != 0 || err != nil {
		t.Errorf("a checkpoint of the former load was moved to %s, %v", at, err)
	}
}

// A checkpoint that was made before rows were mended does not count: it holds wrong
// rows.
func TestCheckpointBeforeMending(t *testing.T) {
	t.Parallel()
	o := testOptions()
	o.fs = vfs.NewMem()
	s, m := filledStore(t, o, 50)
	checkpoint(t, s, CauseTimed)
	f := freezeRows(t, s)
	for id := range m { // a row that the source does not have
		delete(m, id)
		break
	}
	if _, ok := s.NewestCheckpoint(); !ok {
		t.Fatal("no newest checkpoint")
	}
	if n, err := f.Mend(compareWithModel(t, f, m, nil)); n != 1 || err != nil {
		t.Fatalf("mended %d, %v", n, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if newest, ok := s.NewestCheckpoint(); ok {
		t.Errorf("%+v counts still", newest)
	}
	if at, err := s.MoveCheckpoint(); at != 0 || err != nil {
		t.Errorf("moved to %s, %v", at, err)
	}
	made := checkpoint(t, s, CauseTimed)
	if newest, ok := s.NewestCheckpoint(); !ok || newest.ID != made.ID {
		t.Errorf("newest is %+v, want %s", newest, made.ID)
	}
}

// A transaction in parts makes a checkpoint wait.
func TestCheckpointBetweenParts(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), testOptions())
	restaurants := makeIDs(2, 1)
	loadRows(t, s, 10, restaurants, 10)
	applyChanges(t, s, 0, insertOne(99, restaurants[0], restaurants[1]))
	if _, err := s.Checkpoint(CauseTimed, nil); !errors.Is(err, ErrNotWhole) {
		t.Errorf("in the middle of a transaction: %v", err)
	}
	applyChanges(t, s, 20)
	if m := checkpoint(t, s, CauseTimed); m.EndLSN != 20 || m.Subscriptions != 11 {
		t.Errorf("checkpoint is %+v", m)
	}
}

// TestCrashCheckpoint crashes at every write while checkpoints are made, moved and
// removed. Each checkpoint that is found is whole, and every checkpoint that was
// promised is there.
func TestCrashCheckpoint(t *testing.T) {
	t.Parallel()
	rec := &crashRecorder{mem: vfs.NewCrashableMem(), r: rand.New(rand.NewPCG(4, 4))}
	o := crashOptions(rec.fs())
	o.KeepCheckpoints = 1
	s, err := Open("state", o)
	if err != nil {
		t.Fatal(err)
	}
	restaurants := makeIDs(3, 1)
	loadRows(t, s, 100, restaurants, 10)
	type promise struct {
		id  string
		end id.LSN
	}
	promised := map[int]promise{}
	var now promise
	for i := range 4 {
		applyChanges(t, s, s.EndLSN()+10, insertOne(1000+i, restaurants[0], restaurants[1]))
		m := checkpoint(t, s, CauseTimed)
		now = promise{m.ID, m.EndLSN}
		promised[rec.count()] = now
		applyChanges(t, s, s.EndLSN()+1)
		if _, err := s.Sync(); err != nil {
			t.Fatal(err)
		}
		if now.end, err = s.MoveCheckpoint(); err != nil || now.end != m.EndLSN+1 {
			t.Fatalf("moved to %s, %v", now.end, err)
		}
		promised[rec.count()] = now
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	now = promise{}
	for i, c := range rec.crashes {
		if p, ok := promised[i]; ok {
			now = p
		}
		checkCheckpoints(t, c, now.id, now.end)
	}
	t.Logf("%d crashes", len(rec.crashes))
}

// checkCheckpoints looks at all checkpoints that a crash left.
func checkCheckpoints(t *testing.T, c crashImage, id string, end id.LSN) {
	t.Helper()
	openStore(t, "state", crashOptions(c.disk))
	names, err := c.disk.List(c.disk.PathJoin("state", statedir.CheckpointsName))
	if err != nil && id != "" {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, statedir.Unfinished) {
			t.Errorf("crash at write %d: %s is still there", c.write, name)
		}
	}
	list, err := listCheckpoints(c.disk, "state")
	if err != nil {
		t.Fatalf("crash at write %d: %v", c.write, err)
	}
	if id != "" && (len(list) == 0 || list[len(list)-1].ID < id || list[len(list)-1].ID == id && list[len(list)-1].EndLSN < end) {
		t.Fatalf("crash at write %d: %s at %s was promised, found are %+v", c.write, id, end, list)
	}
	for _, m := range list {
		if err := m.checkFiles(c.disk, "state"); err != nil {
			t.Fatalf("crash at write %d: %v", c.write, err)
		}
	}
}

// Checkpoints keep the files of former rows. Where disk space gets short the store
// removes them, the oldest first, except those that an operator asked for and the
// newest, up to which the slot is acknowledged. Otherwise there would never be room,
// because every further checkpoint fails.
func TestCheckpointsGoForRoom(t *testing.T) {
	t.Parallel()
	mem := vfs.NewMem()
	o := testOptions()
	o.ReserveBytes, o.fs = 100<<20, mem
	usage := func(free uint64) { mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: free}) }
	usage(200 << 20)
	s := openStore(t, "state", o)
	loadRows(t, s, 10, makeIDs(1, 1), 10)
	asked, old := checkpoint(t, s, CauseAsked), checkpoint(t, s, CauseTimed)
	loadRows(t, s, 20, makeIDs(1, 1), 20) // as a rebuild does
	older, newest := checkpoint(t, s, CauseTimed), checkpoint(t, s, CauseTimed)
	left := func() string {
		t.Helper()
		list, err := listCheckpoints(mem, "state")
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, m := range list {
			ids = append(ids, m.ID)
		}
		return strings.Join(ids, " ")
	}
	if err := s.MakeRoom(50 << 20); err != nil || left() != strings.Join([]string{asked.ID, old.ID, older.ID, newest.ID}, " ") {
		t.Errorf("with room enough: %v, left %s", err, left())
	}
	if err := s.MakeRoom(150 << 20); !errors.Is(err, ErrDiskFull) || left() != asked.ID+" "+newest.ID {
		t.Errorf("for more than there is: %v, left %s; want %v, %s %s", err, left(), ErrDiskFull, asked.ID, newest.ID)
	}
	if m, ok := s.NewestCheckpoint(); !ok || m.ID != newest.ID {
		t.Errorf("the newest is %s, %v; want %s", m.ID, ok, newest.ID)
	}
	loadRows(t, s, 30, makeIDs(1, 1), 30) // no checkpoint holds these rows
	usage(99 << 20)
	if _, err := s.Checkpoint(CauseTimed, nil); !errors.Is(err, ErrDiskFull) || left() != asked.ID {
		t.Errorf("checkpoint on a full disk: %v, left %s; want %v, %s", err, left(), ErrDiskFull, asked.ID)
	}
}

package state

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"dinnerbell/state/id"
)

// logOptions are testOptions with a log that is never full.
func logOptions() Options {
	o := testOptions()
	o.Log = LogOptions{Bytes: 64 << 20}
	return o
}

// readLog reads the log behind from, step entries at a time, and describes each.
func readLog(t testing.TB, s *Store, from id.LSN, step int) (lines []string, end id.LSN) {
	t.Helper()
	for c := (LogCursor{End: from}); ; {
		next, done, err := s.ReadLog(c, step, func(e *LogEntry) error {
			lines = append(lines, describeEntry(e))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if c = next; done {
			return lines, c.End
		}
	}
}

func describeEntry(e *LogEntry) string {
	at := "-"
	if !e.Time.IsZero() {
		at = e.Time.Format("05.000")
	}
	if e.Kind == LogTruncated {
		return fmt.Sprintf("%d %s %s", e.End, at, e.Kind)
	}
	return fmt.Sprintf("%d %s %s %s %s", e.End, at, e.Kind, e.Restaurant.Text(), e.Client.Text())
}

func insertion(t testing.TB, row int, restaurant, client string) id.Change {
	t.Helper()
	return id.Change{Op: id.Insert, Row: rowN(row), Restaurant: packID(t, restaurant), Client: packID(t, client)}
}

func checkLines(t testing.TB, got []string, want string) {
	t.Helper()
	if text := strings.Join(got, "\n"); text != want {
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
}

// The entries of whole transactions, in one batch and in several, as readers get them.
func TestLogEntries(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), logOptions())
	if floor, on := s.LogFloor(); floor != 1 || !on {
		t.Errorf("an empty log begins at %d, %v", floor, on)
	}
	at := func(second int64) time.Time { return time.Unix(second, 0) }
	batch := Batch{
		Changes: []id.Change{
			insertion(t, 1, "r1", "c1"),
			insertion(t, 2, "r1", "c2"),
			{Op: id.Update, Row: rowN(1), Restaurant: packID(t, "r2"), KeepClient: true},
			{Op: id.Update, Row: rowN(2), Restaurant: packID(t, "r1"), Client: packID(t, "c2")},
			{Op: id.Delete, Row: rowN(1)},
		},
		End:          40,
		Transactions: []TransactionEnd{{2, 10, at(1)}, {1, 20, at(2)}, {0, 30, at(3)}, {2, 40, at(4)}},
	}
	if err := s.Apply(&batch); err != nil {
		t.Fatal(err)
	}
	applyChanges(t, s, 50, id.Change{Op: id.Truncate}, insertion(t, 2, "r1", "c2"), id.Change{Op: id.Insert, Row: rowN(3), Client: packID(t, "c3")})
	applyChanges(t, s, 60)
	const first, rest = "10 01.000 appeared r1 c1\n10 01.000 appeared r1 c2\n", "20 02.000 gone r1 c1\n20 02.000 appeared r2 c1\n" +
		"40 04.000 gone r2 c1\n50 - truncated\n50 - appeared r1 c2"
	for step := 1; step < 9; step++ {
		lines, end := readLog(t, s, 1, step)
		checkLines(t, lines, first+rest)
		if end != 60 {
			t.Errorf("read up to %d, want 60", end)
		}
		lines, _ = readLog(t, s, 15, step)
		checkLines(t, lines, rest)
	}
	if _, _, err := s.ReadLog(LogCursor{}, 1, nil); !errors.Is(err, ErrLogGap) {
		t.Errorf("a read before the floor gives %v", err)
	}
	h, err := s.History(t.Context(), packID(t, "r1"), packID(t, "c1"), 2)
	if err != nil || !h.On || h.Floor != 1 {
		t.Fatalf("history is %+v, %v", h, err)
	}
	var lines []string
	for i := range h.Entries {
		lines = append(lines, describeEntry(&h.Entries[i]))
	}
	checkLines(t, lines, "50 - truncated\n20 02.000 gone r1 c1")
}

// The entries of a transaction in parts come out together, with its end.
func TestLogOfParts(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), logOptions())
	applyChanges(t, s, 10, insertion(t, 1, "r", "a"))
	applyChanges(t, s, 0, insertion(t, 2, "r", "b"), insertion(t, 3, "r", "c"))
	applyChanges(t, s, 0, id.Change{Op: id.Delete, Row: rowN(1)})
	lines, end := readLog(t, s, 1, 1)
	checkLines(t, lines, "10 - appeared r a")
	if end != 10 {
		t.Errorf("read up to %d in the middle of a transaction", end)
	}
	applyChanges(t, s, 20)
	applyChanges(t, s, 30, insertion(t, 4, "r", "d"))
	for step := 1; step < 6; step++ {
		for _, from := range []id.LSN{10, 11, 19} {
			lines, _ := readLog(t, s, from, step)
			checkLines(t, lines, "20 - appeared r b\n20 - appeared r c\n20 - gone r a\n30 - appeared r d")
		}
		lines, _ := readLog(t, s, 20, step)
		checkLines(t, lines, "30 - appeared r d")
	}
	h, err := s.History(t.Context(), "", packID(t, "a"), 10)
	if err != nil || len(h.Entries) != 2 || h.Entries[0].End != 20 || h.Entries[1].Kind != LogAppeared {
		t.Errorf("history is %+v, %v", h, err)
	}
}

// A watcher gets a token when something becomes visible, and none for a part.
func TestWatchApplied(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), testOptions())
	applied, stop := s.WatchApplied()
	got := func() bool {
		select {
		case <-applied:
			return true
		default:
			return false
		}
	}
	applyChanges(t, s, 10)
	if !got() || got() {
		t.Error("no token, or two, for a batch")
	}
	applyChanges(t, s, 0, insertion(t, 1, "r", "c"))
	if got() {
		t.Error("a token for a part")
	}
	applyChanges(t, s, 20)
	if !got() {
		t.Error("no token for the last part")
	}
	loadRows(t, s, 1, makeIDs(1, 1), 30)
	if !got() {
		t.Error("no token for a load")
	}
	stop()
	applyChanges(t, s, 40)
	if got() || slices.Contains(s.watchers, nil) {
		t.Error("a token after the end")
	}
}

// A transaction that is committed to the store, and not shown yet, has no entries.
func TestLogShowsWhatRowsShow(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), logOptions())
	applyChanges(t, s, 10, insertion(t, 1, "r", "a"))
	applyChanges(t, s, 0, insertion(t, 2, "r", "b"))
	applyChanges(t, s, 20, insertion(t, 3, "r", "c"))
	s.view.end = 10 // as between the commit and showRecord
	lines, end := readLog(t, s, 1, 9)
	checkLines(t, lines, "10 - appeared r a")
	if end != 10 {
		t.Errorf("read up to %d", end)
	}
	if h, err := s.History(t.Context(), "", packID(t, "b"), 9); err != nil || len(h.Entries) > 0 {
		t.Errorf("history is %+v, %v", h, err)
	}
	if h, err := s.History(t.Context(), "", packID(t, "c"), 9); err != nil || len(h.Entries) > 0 {
		t.Errorf("history is %+v, %v", h, err)
	}
}

// A program without the log applied a part, and a crash came. The transaction comes
// again, over rows that have its pairs already.
func TestLogOfRepeatAfterHole(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openStore(t, dir, logOptions())
	applyChanges(t, s, 10, insertion(t, 1, "r", "a"))
	closeStore(t, s)
	s = openStore(t, dir, testOptions())
	applyChanges(t, s, 0, insertion(t, 2, "r", "b"))
	closeStore(t, s)
	s = openStore(t, dir, logOptions())
	if floor, _ := s.LogFloor(); floor != 11 || !s.Torn() {
		t.Fatalf("the log begins at %d, torn %v", floor, s.Torn())
	}
	applyChanges(t, s, 0, insertion(t, 2, "r", "b"))
	applyChanges(t, s, 20)
	lines, _ := readLog(t, s, 11, 9)
	checkLines(t, lines, "20 - appeared r b")
}

// A log that is dropped in the middle of a transaction does not tell of its first parts.
func TestLogDroppedInTransaction(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), logOptions())
	applyChanges(t, s, 10, insertion(t, 1, "r", "a"))
	if err := s.db.Set(appendLogKey(nil, 10, 0), []byte("nonsense"), nil); err != nil {
		t.Fatal(err)
	}
	applyChanges(t, s, 0, insertion(t, 2, "r", "b"))
	if h, err := s.History(t.Context(), "", packID(t, "a"), 9); err == nil {
		t.Errorf("the search of a damaged log gives %+v", h)
	}
	if floor, _ := s.LogFloor(); floor != 11 {
		t.Errorf("the log begins at %d", floor)
	}
	applyChanges(t, s, 0, insertion(t, 3, "r", "c"))
	applyChanges(t, s, 20)
	applyChanges(t, s, 30, insertion(t, 4, "r", "d"))
	if floor, _ := s.LogFloor(); floor != 20 {
		t.Errorf("the log begins at %d, and not behind the transaction", floor)
	}
	lines, _ := readLog(t, s, 20, 9)
	checkLines(t, lines, "30 - appeared r d")
}

// A transaction that is larger than the log leaves an empty log behind it, and the one
// after it is there.
func TestLogOverflow(t *testing.T) {
	t.Parallel()
	o := logOptions()
	o.Log.Bytes = 100_000
	s := openStore(t, t.TempDir(), o)
	applyChanges(t, s, 10, insertion(t, 1, "r", "a"))
	clients := makeIDs(6000, 3)
	for part := range slices.Chunk(clients, 1000) {
		var changes []id.Change
		for _, c := range part {
			changes = append(changes, id.Change{Op: id.Insert, Row: rowN(len(changes) + 2), Restaurant: packID(t, "r"), Client: c})
		}
		applyChanges(t, s, 0, changes...)
		checkLogSize(t, s)
	}
	applyChanges(t, s, 20)
	applyChanges(t, s, 30, insertion(t, 9000, "r", "b"))
	if floor, _ := s.LogFloor(); floor != 20 {
		t.Errorf("the log begins at %d", floor)
	}
	lines, _ := readLog(t, s, 20, 9)
	checkLines(t, lines, "30 - appeared r b")
}

// Small transactions share keys, and a full log has few of them.
func TestLogKeysAreFew(t *testing.T) {
	t.Parallel()
	o := logOptions()
	o.Log.Bytes = 1_000_000
	s := openStore(t, t.TempDir(), o)
	restaurants, clients := makeIDs(10, 1), makeIDs(1000, 2)
	end := id.LSN(10)
	for floor := id.LSN(1); floor == 1; floor, _ = s.LogFloor() {
		end += 10
		n := int(end)
		applyChanges(t, s, end, id.Change{Op: id.Insert, Row: rowN(n % 7000), Restaurant: restaurants[n/7%10], Client: clients[n/3%1000]})
	}
	checkLogSize(t, s)
	it, err := s.db.NewIter(logBounds())
	if err != nil {
		t.Fatal(err)
	}
	keys := 0
	for ok := it.First(); ok; ok = it.Next() {
		keys++
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	if end < 50_000 || keys > 1000 {
		t.Errorf("%d keys hold %d transactions", keys, end/10)
	}
	floor, _ := s.LogFloor()
	if lines, _ := readLog(t, s, floor, 1000); len(lines) < 10_000 {
		t.Errorf("%d entries behind %d", len(lines), floor)
	}
}

// Entries go when they are too old, except for the newest KeepBytes.
func TestLogAge(t *testing.T) {
	t.Parallel()
	for keep, want := range map[int64]id.LSN{0: 30, 1 << 20: 1} {
		o := logOptions()
		clock := time.Unix(1e9, 0)
		o.Log.Age, o.Log.KeepBytes, o.now = time.Hour, keep, func() time.Time { return clock }
		s := openStore(t, t.TempDir(), o)
		applyChanges(t, s, 10, insertion(t, 1, "r", "a"))
		clock = clock.Add(2 * time.Minute)
		applyChanges(t, s, 20, insertion(t, 2, "r", "b"))
		clock = clock.Add(time.Minute)
		applyChanges(t, s, 30)
		clock = clock.Add(time.Hour)
		applyChanges(t, s, 40, insertion(t, 3, "r", "c"))
		floor, _ := s.LogFloor()
		h, err := s.History(t.Context(), "", packID(t, "c"), 1)
		if floor == 20 { // the segment ended with its last entry
			floor = 30
		}
		if floor != want || err != nil || len(h.Entries) != 1 {
			t.Errorf("with %d bytes kept the log begins at %d, want %d; %+v, %v", keep, floor, want, h, err)
		}
	}
}

// A restore brings the log of its checkpoint, if the log is complete up to the position
// to which the checkpoint has moved.
func TestLogRestored(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		between []id.Change // after the checkpoint; they leave the rows as they were
		floor   id.LSN
		want    string
	}{
		"quiet":   {nil, 6, "10 - appeared r a\n40 - appeared r z"},
		"changed": {[]id.Change{insertion(t, 9, "r", "x"), {Op: id.Delete, Row: rowN(9)}}, 31, "40 - appeared r z"},
	} {
		dir := t.TempDir()
		s := openStore(t, dir, logOptions())
		loadRows(t, s, 3, makeIDs(1, 1), 5)
		applyChanges(t, s, 10, insertion(t, 100, "r", "a"))
		m := checkpoint(t, s, CauseAsked)
		applyChanges(t, s, 20, c.between...)
		applyChanges(t, s, 30)
		if _, err := s.Sync(); err != nil {
			t.Fatal(err)
		}
		if at, err := s.MoveCheckpoint(); err != nil || at != 30 {
			t.Fatalf("the checkpoint moved to %d, %v", at, err)
		}
		applyChanges(t, s, 40, insertion(t, 101, "r", "b"))
		closeStore(t, s)
		if _, _, err := Restore(t.Context(), dir, m.ID, logOptions()); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, dir, logOptions())
		applyChanges(t, s, 40, insertion(t, 101, "r", "z"))
		floor, _ := s.LogFloor()
		if floor != c.floor {
			t.Errorf("%s: the log begins at %d, want %d", name, floor, c.floor)
		}
		lines, _ := readLog(t, s, floor, 9)
		checkLines(t, lines, c.want)
		closeStore(t, s)
	}
}

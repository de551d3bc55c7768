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

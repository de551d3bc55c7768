package state

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"dinnerbell/state/id"
)

// pairs returns the pairs that some row has.
func (m modelRows) pairs() map[IDPair]bool {
	set := map[IDPair]bool{}
	for _, r := range m {
		if r.isSubscription() {
			set[IDPair{r.restaurant, r.client}] = true
		}
	}
	return set
}

// checkLogged checks the invariant of the log against the rows at the end of each
// transaction: every transaction that ends after the floor and made a pair appear has its
// entry, as soon as readers see the rows, and none has an entry before. With gone, pairs
// that went have theirs too. It returns how many appearances it found.
func checkLogged(t testing.TB, s *Store, h *batchHistory, step int, gone bool) (found int) {
	t.Helper()
	floor, _ := s.LogFloor()
	type key struct {
		end  id.LSN
		kind LogKind
		pair IDPair
	}
	logged, truncated := map[key]bool{}, map[id.LSN]bool{}
	last := id.LSN(0)
	for c, done := (LogCursor{End: floor}), false; !done; {
		var err error
		c, done, err = s.ReadLog(c, step, func(e *LogEntry) error {
			if e.End < last || e.End > s.EndLSN() || h.at[e.End] == nil {
				return fmt.Errorf("entry of transaction %d after %d, with rows of %d", e.End, last, s.EndLSN())
			}
			last = e.End
			if e.Kind == LogTruncated {
				truncated[e.End] = true
			}
			c := e.cloneEntry()
			logged[key{e.End, e.Kind, IDPair{c.Restaurant, c.Client}}] = true
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if done && c.End != max(floor, s.EndLSN()) {
			t.Fatalf("read up to %d, rows are at %d", c.End, s.EndLSN())
		}
	}
	before := id.LSN(0)
	for _, end := range slices.Sorted(maps.Keys(h.at)) {
		was, is := h.at[before].pairs(), h.at[end].pairs()
		before = end
		if end <= floor || end > s.EndLSN() {
			continue
		}
		for p := range is {
			if !was[p] {
				found++
				if !logged[key{end, LogAppeared, p}] {
					t.Fatalf("%q %q appeared at %d, and the log from %d has no entry", p.Restaurant.Text(), p.Client.Text(), end, floor)
				}
			}
		}
		for p := range was {
			if gone && !is[p] && !truncated[end] && !logged[key{end, LogGone, p}] {
				t.Fatalf("%q %q went at %d, and the log from %d has no entry", p.Restaurant.Text(), p.Client.Text(), end, floor)
			}
		}
	}
	return found
}

// checkLogSize compares the size that the log counts with what is stored.
func checkLogSize(t testing.TB, s *Store) {
	t.Helper()
	it, err := s.db.NewIter(logBounds())
	if err != nil {
		t.Fatal(err)
	}
	size := int64(0)
	for ok := it.First(); ok; ok = it.Next() {
		size += blobSize(len(it.Value()) - blobHeadLen - blobSumLen)
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	if l := &s.logw; size != l.total+l.bytes || size > l.o.Bytes {
		t.Fatalf("the log has %d bytes, counts %d and %d, may have %d", size, l.total, l.bytes, l.o.Bytes)
	}
}

// logModel applies random transactions to a store with a log.
type logModel struct {
	*storeModel
	s     *Store
	o     Options
	dir   string
	m     modelRows
	h     *batchHistory
	end   id.LSN
	clock time.Time
	found int
}

// TestLogModel applies random transactions, alone, in groups and in parts that come
// again, with everything between them that trims the log or puts a hole into it.
func TestLogModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			l := &logModel{storeModel: newWorld(t, seed), m: modelRows{}, dir: t.TempDir(), clock: time.Unix(1e9, 0)}
			l.h = &batchHistory{at: map[id.LSN]modelRows{0: {}}}
			l.o = testOptions()
			l.o.Log = LogOptions{Bytes: []int64{700, 2_000, 1 << 20}[seed%3], Age: time.Hour, KeepBytes: int64(seed%2) * 600}
			l.o.logPieceBytes = []int{40, 100, 400}[seed/3]
			l.o.now = func() time.Time { return l.clock }
			l.open(t, l.o)
			defer func() { _ = l.s.Close() }()
			for range 80 {
				l.step(t)
				l.found += checkLogged(t, l.s, l.h, 1+l.r.IntN(9), true)
				checkLogSize(t, l.s)
			}
			checkRows(t, l.s, l.m)
			if l.found < 60 {
				t.Errorf("only %d appearances were looked for", l.found)
			}
		})
	}
}

func (l *logModel) open(t *testing.T, o Options) {
	t.Helper()
	s, err := Open(l.dir, o)
	if err != nil {
		t.Fatal(err)
	}
	l.s = s
}

// transactionAt makes a transaction that ends after the last one, and notes its rows.
func (l *logModel) transactionAt(size int, keep bool) []id.Change {
	changes := l.transaction(l.m, size, keep)
	l.end += 10
	l.h.at[l.end] = maps.Clone(l.m)
	return changes
}

func (l *logModel) step(t *testing.T) { //nolint:thelper // the test itself: a failure must name its line here
	l.clock = l.clock.Add(time.Duration(l.r.IntN(120)) * time.Second)
	switch n := l.r.IntN(20); {
	case n < 6:
		b := Batch{}
		for range 1 + l.r.IntN(4) {
			changes := l.transactionAt(l.r.IntN(8), true)
			b.Changes = append(b.Changes, changes...)
			b.Transactions = append(b.Transactions, TransactionEnd{Changes: len(changes), End: l.end, Time: l.clock})
		}
		b.End = l.end
		if err := l.s.Apply(&b); err != nil {
			t.Fatal(err)
		}
	case n < 12:
		before := maps.Clone(l.m)
		changes := l.transactionAt(24, false)
		applyParts(t, l.s, l.storeModel, before, changes, l.end)
	case n < 14:
		changes := l.transactionAt(1+l.r.IntN(6), true)
		applyChanges(t, l.s, l.end, changes...)
	case n < 15:
		l.reopen(t, l.o, l.o)
	case n < 16:
		off := l.o
		off.Log = LogOptions{}
		l.reopen(t, off, l.o)
	case n < 17:
		l.load(t)
	case n < 18:
		if err := l.s.TrimLog(l.end - id.LSN(l.r.IntN(100))); err != nil {
			t.Fatal(err)
		}
	case n < 19:
		l.damage(t)
	default:
		l.clock = l.clock.Add(time.Duration(l.r.IntN(90)) * time.Minute)
	}
}

// reopen applies a transaction to the store as opened with between, and opens it with
// after.
func (l *logModel) reopen(t *testing.T, between, after Options) {
	t.Helper()
	floor, _ := l.s.LogFloor()
	record, err := getCopy(l.s.db, keyLogRecord)
	if err != nil {
		t.Fatal(err)
	}
	for i, o := range []Options{between, after} {
		if i == 1 && between.Log.Bytes == 0 && l.r.IntN(2) == 0 { // an older program leaves the log as it is
			if err := l.s.db.Set(keyLogRecord, record, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.s.Close(); err != nil {
			t.Fatal(err)
		}
		l.open(t, o)
		if o.Log.Bytes == 0 || between.Log.Bytes > 0 {
			changes := l.transactionAt(3, true)
			applyChanges(t, l.s, l.end, changes...)
		}
	}
	now, _ := l.s.LogFloor()
	if between.Log.Bytes == 0 && now != l.end+1 {
		t.Fatalf("after a hole the log begins at %d, want %d", now, l.end+1)
	}
	if l.o.Log.Bytes == 1<<20 && between.Log.Bytes > 0 && now != floor && l.clock.Sub(time.Unix(1e9, 0)) < l.o.Log.Age {
		t.Fatalf("the log began at %d and begins at %d after Open", floor, now)
	}
}

// load replaces all rows by a load that began a while ago.
func (l *logModel) load(t *testing.T) {
	t.Helper()
	load, err := l.s.NewGeneration()
	if err != nil {
		t.Fatal(err)
	}
	before := l.end
	began, _ := l.s.LogStart()
	l.end += 20
	l.m = modelRows{}
	for i := range 5 {
		r := storedRow{l.pick(l.restaurants), l.pick(l.clients), true}
		l.m[rowN(i)] = r
		if err := load.Add(rowN(i), r.restaurant, r.client); err != nil {
			t.Fatal(err)
		}
	}
	at := l.end - id.LSN(l.r.IntN(2)*30) // before the present position, or after it
	if err := load.Finish(Source{}, at); err != nil {
		t.Fatal(err)
	}
	start, _ := l.s.LogStart()
	switch was := began.History; {
	case at < before && (start.History == was || start.Floor != at+1):
		t.Fatalf("after a load at %d over %d, set back, the log begins at %+v, before at %+v", at, before, start, began)
	case at >= before && (start.History != was || start.Floor <= max(at, began.Floor)):
		t.Fatalf("after a load at %d over %d the log begins at %+v, before at %+v", at, before, start, began)
	}
	for end := range l.h.at {
		if end > 0 {
			delete(l.h.at, end)
		}
	}
	applyChanges(t, l.s, l.end)
	l.h.at[at] = maps.Clone(l.m)
	l.h.at[l.end] = maps.Clone(l.m)
}

// damage spoils a blob. A reader notices it, and the log begins anew.
func (l *logModel) damage(t *testing.T) {
	t.Helper()
	it, err := l.s.db.NewIter(logBounds())
	if err != nil {
		t.Fatal(err)
	}
	var keys [][]byte
	for ok := it.First(); ok; ok = it.Next() {
		keys = append(keys, slices.Clone(it.Key()))
	}
	if err := it.Close(); err != nil || len(keys) == 0 {
		return
	}
	key := keys[l.r.IntN(len(keys))]
	value, err := getCopy(l.s.db, key)
	if err != nil {
		t.Fatal(err)
	}
	value[l.r.IntN(len(value))]++
	if err := l.s.db.Set(key, value, pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	floor, _ := l.s.LogFloor()
	for c, done := (LogCursor{End: floor}), false; !done && err == nil; {
		c, done, err = l.s.ReadLog(c, 5, func(*LogEntry) error { return nil })
	}
	if !errors.Is(err, ErrLogGap) || l.s.Damage() != nil {
		t.Fatalf("a damaged blob gives %v, the store %v", err, l.s.Damage())
	}
	if floor, _ := l.s.LogFloor(); floor != l.end+1 {
		t.Fatalf("after the damage the log begins at %d, want %d", floor, l.end+1)
	}
}

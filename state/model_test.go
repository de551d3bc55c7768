package state

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"dinnerbell/state/id"
)

// modelRows is the store as a map: the rows that it must hold after a transaction.
type modelRows map[id.RowID]storedRow

// apply applies a change in the plainest way.
func (m modelRows) apply(c id.Change) {
	switch c.Op {
	case id.Truncate:
		clear(m)
	case id.Delete:
		delete(m, c.Row)
	default:
		next := storedRow{c.Restaurant, c.Client, true}
		from := c.Row
		if c.OldRow != "" {
			from = c.OldRow
		}
		if c.KeepRestaurant {
			next.restaurant = m[from].restaurant
		}
		if c.KeepClient {
			next.client = m[from].client
		}
		delete(m, from)
		m[c.Row] = next
	}
}

func (m modelRows) subscriptions() (n int64) {
	for _, r := range m {
		if r.isSubscription() {
			n++
		}
	}
	return n
}

// audience returns the distinct clients of a restaurant in packed order.
func (m modelRows) audience(restaurant id.ID) []string {
	set := map[id.ID]bool{}
	for _, r := range m {
		if r.isSubscription() && r.restaurant == restaurant {
			set[r.client] = true
		}
	}
	var out []string
	for _, c := range slices.Sorted(maps.Keys(set)) {
		out = append(out, c.Text())
	}
	return out
}

// storeModel makes random transactions of few ids, so that they collide.
type storeModel struct {
	r           *rand.Rand
	restaurants []id.ID
	clients     []id.ID
	rows        int
}

func newWorld(t testing.TB, seed uint64) *storeModel {
	t.Helper()
	w := &storeModel{r: rand.New(rand.NewPCG(seed, 9)), rows: 24}
	w.restaurants = append(makeIDs(2, seed), packID(t, "pizza"), packID(t, "pizz"), packID(t, "p\xc3\xa9"))
	w.clients = append(makeIDs(5, seed+1), packID(t, "7"), packID(t, "7 "), packID(t, "{7}"))
	return w
}

func (w *storeModel) row() id.RowID { return rowN(w.r.IntN(w.rows) - w.rows/2) }

// pick returns one of list, sometimes NULL.
func (w *storeModel) pick(list []id.ID) id.ID {
	if w.r.IntN(12) == 0 {
		return ""
	}
	return list[w.r.IntN(len(list))]
}

// transaction makes changes that Postgres could send at the state m, and applies them to
// m. Without keep no change alters a row's key and keeps values.
func (w *storeModel) transaction(m modelRows, size int, keep bool) []id.Change {
	var changes []id.Change
	for range size {
		c, ok := w.change(m)
		if !ok {
			continue
		}
		if !keep && c.OldRow != "" {
			c.KeepRestaurant, c.KeepClient = false, false
		}
		m.apply(c)
		changes = append(changes, c)
	}
	return changes
}

func (w *storeModel) change(m modelRows) (id.Change, bool) {
	c := id.Change{Row: w.row(), Restaurant: w.pick(w.restaurants), Client: w.pick(w.clients)}
	_, exists := m[c.Row]
	switch n := w.r.IntN(100); {
	case n < 2:
		return id.Change{Op: id.Truncate}, true
	case !exists:
		c.Op = id.Insert
		return c, true
	case n < 30:
		return id.Change{Op: id.Delete, Row: c.Row}, true
	}
	c.Op = id.Update
	if w.r.IntN(4) == 0 {
		c.KeepRestaurant, c.Restaurant = true, ""
	}
	if w.r.IntN(4) == 0 {
		c.KeepClient, c.Client = true, ""
	}
	if w.r.IntN(3) == 0 {
		c.OldRow, c.Row = c.Row, w.row()
		if _, taken := m[c.Row]; taken {
			return id.Change{}, false
		}
	}
	return c, true
}

// checkModel compares everything that readers see, and the two indexes.
func checkModel(t testing.TB, s *Store, m modelRows, restaurants []id.ID) {
	t.Helper()
	if got := s.Subscriptions(); got != m.subscriptions() {
		t.Fatalf("%d subscriptions, want %d", got, m.subscriptions())
	}
	for i, r := range restaurants {
		want := m.audience(r)
		if got := listClients(t, s, "", r, 1+i); !slices.Equal(got, want) {
			t.Fatalf("clients of %q are %q, want %q", r.Text(), got, want)
		}
		if n, err := s.Audience(r); err != nil || n != int64(len(want)) {
			t.Fatalf("audience of %q is %d, %v; want %d", r.Text(), n, err, len(want))
		}
	}
}

// checkRows compares the row index, which holds NULLs too, and counts the join keys. Do
// not call it in the middle of a transaction: it reads all that is written.
func checkRows(t testing.TB, s *Store, m modelRows) {
	t.Helper()
	rows, joins := modelRows{}, int64(0)
	for _, space := range loadSpaces {
		it, err := s.db.NewIter(nil)
		if err != nil {
			t.Fatal(err)
		}
		prefix := appendGen(nil, space, s.written.gen)
		for ok := it.SeekGE([]byte{space}); ok && it.Key()[0] == space; ok = it.Next() {
			if !slices.Equal(it.Key()[:genLen], prefix) {
				t.Fatalf("key %x of another generation than %d", it.Key(), s.written.gen)
			}
			if space == spaceJoin {
				joins++
				continue
			}
			r, err := parseRow(it.Value())
			if err != nil {
				t.Fatal(err)
			}
			rows[id.RowID(it.Key()[genLen:])] = r
		}
		if err := it.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if !maps.Equal(rows, m) {
		t.Fatalf("rows are %v, want %v", rows, m)
	}
	if joins != m.subscriptions() {
		t.Fatalf("%d join keys, want %d", joins, m.subscriptions())
	}
	if err := s.CheckRows(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestModel applies random transactions, alone, in groups and in parts, with
// reopening and interrupted parts between them, against a map.
func TestModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			runModel(t, seed, 80)
		})
	}
}

func runModel(t *testing.T, seed uint64, steps int) { //nolint:thelper // the test itself: a failure must name its line here
	w, m, dir := newWorld(t, seed), modelRows{}, t.TempDir()
	s, err := Open(dir, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	for step := range steps {
		end := id.LSN(step+1) * 10
		switch w.r.IntN(4) {
		case 0:
			changes := w.transaction(m, 1+w.r.IntN(12), true)
			changes = append(changes, w.transaction(m, 1+w.r.IntN(12), true)...)
			applyChanges(t, s, end, changes...)
		case 1:
			before := maps.Clone(m)
			changes := w.transaction(m, 12, false)
			applyParts(t, s, w, before, changes, end)
		case 2:
			applyChanges(t, s, end, w.transaction(m, 1+w.r.IntN(6), true)...)
		case 3:
			applyChanges(t, s, end)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if s, err = Open(dir, testOptions()); err != nil {
				t.Fatal(err)
			}
		}
		if s.EndLSN() != end || s.Torn() {
			t.Fatalf("step %d: end %s, torn %v; want %s, false", step, s.EndLSN(), s.Torn(), end)
		}
		checkModel(t, s, m, w.restaurants)
		checkRows(t, s, m)
	}
}

// applyParts applies one transaction in parts, sometimes interrupted and sent again.
// Readers must see the state before the transaction until its end.
func applyParts(t *testing.T, s *Store, w *storeModel, before modelRows, changes []id.Change, end id.LSN) {
	t.Helper()
	from := s.EndLSN()
	for cut := w.r.IntN(2) == 0; ; cut = false {
		for part := range slices.Chunk(changes, 3) {
			applyChanges(t, s, 0, part...)
			checkModel(t, s, before, w.restaurants)
			if s.EndLSN() != from || s.Torn() {
				t.Fatalf("in parts: end %s, torn %v; want %s, false", s.EndLSN(), s.Torn(), from)
			}
			if cut && w.r.IntN(2) == 0 {
				break
			}
		}
		if !cut {
			break
		}
		s.Rewind()
	}
	applyChanges(t, s, end)
}

func TestApplyRules(t *testing.T) {
	t.Parallel()
	r, c := makeIDs(2, 1), makeIDs(3, 2)
	row1 := id.Change{Op: id.Insert, Row: rowN(1), Restaurant: r[0], Client: c[0]}
	keepOf := func(rowID, old id.RowID) id.Change {
		return id.Change{Op: id.Update, Row: rowID, OldRow: old, Restaurant: r[1], KeepClient: true}
	}
	for name, test := range map[string]struct {
		batches []Batch
		want    error
	}{
		"kept value of a missing row":  {[]Batch{{Changes: []id.Change{keepOf(rowN(2), "")}, End: 10}}, ErrMissingRow},
		"kept value after a truncate":  {[]Batch{{Changes: []id.Change{row1}, End: 10}, {Changes: []id.Change{{Op: id.Truncate}, keepOf(rowN(1), "")}, End: 20}}, ErrMissingRow},
		"kept value of the same batch": {[]Batch{{Changes: []id.Change{row1, keepOf(rowN(2), rowN(1))}, End: 10}}, nil},
		"parts that end behind":        {[]Batch{{Changes: []id.Change{row1}, End: 10}, {Changes: []id.Change{row1}, End: 0}, {End: 10}}, ErrBehind},
		"known transactions":           {[]Batch{{Changes: []id.Change{row1}, End: 10}, {Changes: []id.Change{keepOf(rowN(9), "")}, End: 10}}, nil},
		"delete of a missing row":      {[]Batch{{Changes: []id.Change{{Op: id.Delete, Row: rowN(5)}}, End: 10}}, nil},
		"no row id":                    {[]Batch{{Changes: []id.Change{{Op: id.Delete}}, End: 10}}, errAny},
		"no operation":                 {[]Batch{{Changes: []id.Change{{Row: rowN(1)}}, End: 10}}, errAny},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openStore(t, t.TempDir(), testOptions())
			var err error
			for i := range test.batches {
				err = errors.Join(err, s.Apply(&test.batches[i]))
			}
			if errors.Is(test.want, errAny) && err != nil {
				return
			}
			if !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

// errAny stands for an error that callers do not distinguish.
var errAny = errors.New("any error")

// TestRefusedBatchChangesNothing: an error in the middle of a batch changes nothing.
func TestRefusedBatchChangesNothing(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), testOptions())
	r, c := makeIDs(1, 1)[0], makeIDs(2, 2)
	applyChanges(t, s, 10, id.Change{Op: id.Insert, Row: rowN(1), Restaurant: r, Client: c[0]})
	err := s.Apply(&Batch{End: 20, Changes: []id.Change{
		{Op: id.Truncate},
		{Op: id.Insert, Row: rowN(2), Restaurant: r, Client: c[1]},
		{Op: id.Update, Row: rowN(3), Restaurant: r, KeepClient: true},
	}})
	if !errors.Is(err, ErrMissingRow) {
		t.Fatalf("got %v, want ErrMissingRow", err)
	}
	checkModel(t, s, modelRows{rowN(1): {r, c[0], true}}, []id.ID{r})
	if s.EndLSN() != 10 {
		t.Errorf("end is %s, want 0/A", s.EndLSN())
	}
}

// TestTornKeep: a torn transaction that changes a row's key and keeps a value cannot be
// repeated; a torn transaction that only keeps values can.
func TestTornKeep(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), testOptions())
	r, c := makeIDs(2, 1), makeIDs(1, 2)[0]
	applyChanges(t, s, 10, id.Change{Op: id.Insert, Row: rowN(1), Restaurant: r[0], Client: c})
	keepIt := id.Change{Op: id.Update, Row: rowN(1), Restaurant: r[1], KeepClient: true}
	gone := id.Change{Op: id.Delete, Row: rowN(1)}
	applyChanges(t, s, 0, keepIt, gone)
	s.Rewind()
	applyChanges(t, s, 0, keepIt)
	err := s.Apply(&Batch{End: 20, Changes: []id.Change{{Op: id.Update, Row: rowN(2), OldRow: rowN(1), KeepClient: true}}})
	if !errors.Is(err, ErrTorn) {
		t.Fatalf("got %v, want ErrTorn", err)
	}
	applyChanges(t, s, 20, gone)
	checkModel(t, s, modelRows{}, r)
}

func TestSync(t *testing.T) {
	t.Parallel()
	s := openStore(t, t.TempDir(), testOptions())
	applyChanges(t, s, 10, id.Change{Op: id.Insert, Row: rowN(1), Restaurant: makeIDs(1, 1)[0], Client: makeIDs(1, 2)[0]})
	if s.DurableLSN() != 0 {
		t.Errorf("durable %s before Sync", s.DurableLSN())
	}
	for range 2 {
		if got, err := s.Sync(); err != nil || got != 10 || s.DurableLSN() != 10 {
			t.Errorf("Sync = %s, %v; durable %s; want 0/A", got, err, s.DurableLSN())
		}
	}
}

package state

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2"

	"dinnerbell/state/id"
)

// IDPair holds the two ids of a row; "" is NULL.
type IDPair struct{ Restaurant, Client id.ID }

// Difference is a row that the store and the source do not have alike.
type Difference struct {
	Row id.RowID
	// Source is the row as the source has it, if InSource.
	Source   IDPair
	InSource bool
	// Stored is the row as the row index has it, if InRows.
	Stored IDPair
	InRows bool
	// Joins are the entries of the join index that name the row, sorted: there
	// should be one if the source's row has both ids, else none.
	Joins []IDPair
}

// The indexes, and the faults that a row can have in an index.
const (
	IndexRows = "rows"
	IndexJoin = "join"

	FaultMissing   = "missing"
	FaultExtra     = "extra"
	FaultDifferent = "different"
)

// Fault is a fault of one row in one index.
type Fault struct {
	Index string
	What  string
	// IDPair is the row as the source has it; with FaultExtra, as the index has it.
	IDPair
	// Found is the row as the index has it, with FaultDifferent.
	Found IDPair
}

// Faults returns the faults of the row, index by index.
func (d *Difference) Faults() []Fault {
	var faults []Fault
	switch {
	case d.InSource && !d.InRows:
		faults = append(faults, Fault{Index: IndexRows, What: FaultMissing, IDPair: d.Source})
	case d.InRows && !d.InSource:
		faults = append(faults, Fault{Index: IndexRows, What: FaultExtra, IDPair: d.Stored})
	case d.Stored != d.Source:
		faults = append(faults, Fault{Index: IndexRows, What: FaultDifferent, IDPair: d.Source, Found: d.Stored})
	}
	extra := d.extraJoins()
	missing := d.belongsInJoin() && !slices.Contains(d.Joins, d.Source)
	if missing && len(extra) > 0 {
		faults = append(faults, Fault{Index: IndexJoin, What: FaultDifferent, IDPair: d.Source, Found: extra[0]})
		missing, extra = false, extra[1:]
	}
	if missing {
		faults = append(faults, Fault{Index: IndexJoin, What: FaultMissing, IDPair: d.Source})
	}
	for _, p := range extra {
		faults = append(faults, Fault{Index: IndexJoin, What: FaultExtra, IDPair: p})
	}
	return faults
}

// belongsInJoin reports whether the join index must have an entry of the row.
func (d *Difference) belongsInJoin() bool {
	return storedRow{d.Source.Restaurant, d.Source.Client, d.InSource}.isSubscription()
}

// extraJoins returns the entries of the join index that should not exist.
func (d *Difference) extraJoins() []IDPair {
	var extra []IDPair
	for _, p := range d.Joins {
		if !d.belongsInJoin() || p != d.Source {
			extra = append(extra, p)
		}
	}
	return extra
}

// Comparison compares the rows of some parts one by one. It holds all their rows in
// memory: choose the parts accordingly.
type Comparison struct {
	f        *Frozen
	parts    [Parts]bool
	excluded map[id.RowID]struct{}
	rows     map[id.RowID]*Difference
}

// Compare begins a comparison of the parts, without the rows in without.
func (f *Frozen) Compare(parts []int, without map[id.RowID]struct{}) *Comparison {
	c := &Comparison{f: f, excluded: without, rows: map[id.RowID]*Difference{}}
	for _, p := range parts {
		c.parts[p] = true
	}
	return c
}

// Add takes a row as the source has it and ignores rows of other parts. It copies the
// ids.
func (c *Comparison) Add(rowID id.RowID, restaurant, client id.ID) error {
	if d := c.rowToCompare(rowID); d != nil {
		d.Source, d.InSource = IDPair{id.ID(strings.Clone(string(restaurant))), id.ID(strings.Clone(string(client)))}, true
	}
	return nil
}

// rowToCompare returns the difference that collects the row's values; nil if the row
// is not compared.
func (c *Comparison) rowToCompare(rowID id.RowID) *Difference {
	if !c.parts[PartOf(rowID)] {
		return nil
	}
	if _, left := c.excluded[rowID]; left {
		return nil
	}
	d := c.rows[rowID]
	if d == nil {
		d = &Difference{Row: id.RowID(strings.Clone(string(rowID)))}
		c.rows[d.Row] = d
	}
	return d
}

// Finish reads both indexes and returns the differences, in the order of row ids.
func (c *Comparison) Finish(ctx context.Context) ([]Difference, error) {
	f := c.f
	err := eachKey(ctx, f.snap, spaceRow, f.r.gen, func(key, value []byte) error {
		if !c.parts[PartOf(key[genLen:])] {
			return nil
		}
		r, err := parseRow(value)
		if d := c.rowToCompare(id.ViewRowID(key[genLen:])); d != nil {
			d.Stored, d.InRows = IDPair{r.restaurant, r.client}, true
		}
		return err
	})
	if err != nil {
		return nil, f.s.checkDamage(err)
	}
	err = eachKey(ctx, f.snap, spaceJoin, f.r.gen, func(key, _ []byte) error {
		at, ok := joinRow(key)
		if !ok || !c.parts[PartOf(key[at:])] {
			return nil // Tally has returned an error for malformed keys
		}
		if d := c.rowToCompare(id.ViewRowID(key[at:])); d != nil {
			client := at - genLen
			restaurant := id.PackedLen(key[genLen:])
			both := string(key[genLen:at])
			d.Joins = append(d.Joins, IDPair{id.ID(both[:restaurant]), id.ID(both[restaurant:client])})
		}
		return nil
	})
	if err != nil {
		return nil, f.s.checkDamage(err)
	}
	return c.listDifferences(), nil
}

// listDifferences returns the rows that have faults, in the order of row ids.
func (c *Comparison) listDifferences() []Difference {
	var out []Difference
	for _, d := range c.rows {
		if len(d.Faults()) > 0 {
			out = append(out, *d)
		}
	}
	slices.SortFunc(out, func(a, b Difference) int { return strings.Compare(string(a.Row), string(b.Row)) })
	return out
}

// Parts is the number of parts into which rows are divided by their ids. Two sets of
// rows are compared by a few numbers for each part, and row by row only in the parts
// where these differ. It is a power of two.
const Parts = 1 << 15

// PartOf returns the part that a row belongs to: of an integer key the low bits,
// in two's complement, which SQL computes too; of any other key a hash.
func PartOf[T id.RowID | []byte](row T) int {
	if v, ok := id.RowNumber(row); ok {
		return int(uint64(v) % Parts)
	}
	return int(xxhash.Sum64String(string(row)) % Parts)
}

// PartSum holds the number of rows in a part and the sum of their fingerprints.
type PartSum struct {
	Rows int64
	sum  uint64
}

// Tally counts and sums rows for each part ([PartOf]), separately for the row index
// and the join index.
type Tally struct {
	rows, joins [Parts]PartSum
	buf         []byte
}

// Add adds a row, in any order. "" is NULL.
func (t *Tally) Add(id id.RowID, restaurant, client id.ID) error {
	r, part := storedRow{restaurant, client, true}, PartOf(id)
	var sum uint64
	sum, t.buf = r.fingerprint(id, t.buf)
	t.rows[part].addRow(sum)
	if r.isSubscription() {
		t.joins[part].addRow(sum)
	}
	return nil
}

// Rows returns the number of rows added.
func (t *Tally) Rows() (n int64) {
	for i := range t.rows {
		n += t.rows[i].Rows
	}
	return n
}

func (s *PartSum) addRow(sum uint64) {
	s.Rows++
	s.sum += sum
}

// Differing returns the parts in which t and other do not hold the same rows, and the
// approximate number of rows in each.
func (t *Tally) Differing(other *Tally) (parts []int, rows []int64) {
	for i := range t.rows {
		if t.rows[i] != other.rows[i] || t.joins[i] != other.joins[i] {
			parts = append(parts, i)
			rows = append(rows, max(t.rows[i].Rows, other.rows[i].Rows, other.joins[i].Rows))
		}
	}
	return parts, rows
}

// tallyRows sums both indexes of db, without the rows in without. all holds the counts
// of all rows, as a correct state record has them.
func tallyRows(ctx context.Context, db pebble.Reader, gen uint32, without map[id.RowID]struct{}) (t *Tally, all stateRecord, err error) {
	t = &Tally{}
	err = eachKey(ctx, db, spaceRow, gen, func(key, value []byte) error {
		rowID := key[genLen:]
		t.buf = append(append(t.buf[:0], value...), rowID...)
		sum := xxhash.Sum64(t.buf)
		all.sum += sum
		if _, left := without[id.RowID(rowID)]; !left {
			t.rows[PartOf(rowID)].addRow(sum)
		}
		return nil
	})
	if err != nil {
		return nil, all, err
	}
	err = eachKey(ctx, db, spaceJoin, gen, func(key, _ []byte) error {
		at, ok := joinRow(key)
		if !ok {
			return fmt.Errorf("read join key %x: %w", key, ErrCorrupt)
		}
		all.rows++
		if _, left := without[id.RowID(key[at:])]; !left {
			t.joins[PartOf(key[at:])].addRow(xxhash.Sum64(key[genLen:]))
		}
		return nil
	})
	return t, all, err
}

// joinRow returns where the row id begins in a join key; ok is false for a malformed
// key.
func joinRow(key []byte) (at int, ok bool) {
	restaurant := id.PackedLen(key[genLen:])
	client := id.PackedLen(key[genLen+restaurant:])
	at = genLen + restaurant + client
	return at, restaurant > 0 && client > 0 && at < len(key)
}

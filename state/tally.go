package state

import (
	"context"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2"

	"dinnerbell/state/id"
)

// Parts is into how many parts rows are divided by their ids, so that two sets
// of rows can be compared by a few numbers, and looked at in detail only where
// these differ. It is a power of two.
const Parts = 1 << 15

// PartOf returns the part that a row belongs to: of an integer key the low bits,
// in two's complement, which SQL computes too; of any other key a hash.
func PartOf[T id.RowID | []byte](row T) int {
	if v, ok := id.RowNumber(row); ok {
		return int(uint64(v) % Parts)
	}
	return int(xxhash.Sum64String(string(row)) % Parts)
}

// Sum is the number of the rows in a part, and the sum of their fingerprints.
type Sum struct {
	Rows int64
	sum  uint64
}

// Tally adds rows up, each part by itself: in the order of [PartOf], once
// as they stand in the row index and once as in the join.
type Tally struct {
	rows, joins [Parts]Sum
	buf         []byte
}

// Add adds a row, in any order. "" is NULL.
func (t *Tally) Add(id id.RowID, restaurant, client id.ID) error {
	r, part := row{restaurant, client, true}, PartOf(id)
	var sum uint64
	sum, t.buf = r.fingerprint(id, t.buf)
	t.rows[part].add(sum)
	if r.subscribed() {
		t.joins[part].add(sum)
	}
	return nil
}

// Rows is the number of rows added.
func (t *Tally) Rows() (n int64) {
	for i := range t.rows {
		n += t.rows[i].Rows
	}
	return n
}

func (s *Sum) add(sum uint64) {
	s.Rows++
	s.sum += sum
}

// Differing gives the parts in which t and other do not hold the same rows, and
// about how many rows each has.
func (t *Tally) Differing(other *Tally) (parts []int, rows []int64) {
	for i := range t.rows {
		if t.rows[i] != other.rows[i] || t.joins[i] != other.joins[i] {
			parts = append(parts, i)
			rows = append(rows, max(t.rows[i].Rows, other.rows[i].Rows, other.joins[i].Rows))
		}
	}
	return parts, rows
}

// tally adds both indexes up as they stand in db, apart from rows in without.
// all is the true record of everything that is there.
func tally(ctx context.Context, db pebble.Reader, gen uint32, without map[id.RowID]struct{}) (t *Tally, all record, err error) {
	t = &Tally{}
	err = eachKey(ctx, db, spaceRow, gen, func(key, value []byte) error {
		rowID := key[genLen:]
		t.buf = append(append(t.buf[:0], value...), rowID...)
		sum := xxhash.Sum64(t.buf)
		all.sum += sum
		if _, left := without[id.RowID(rowID)]; !left {
			t.rows[PartOf(rowID)].add(sum)
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
			t.joins[PartOf(key[at:])].add(xxhash.Sum64(key[genLen:]))
		}
		return nil
	})
	return t, all, err
}

// joinRow is where the row id begins in a join key.
func joinRow(key []byte) (at int, ok bool) {
	restaurant := id.PackedLen(key[genLen:])
	client := id.PackedLen(key[genLen+restaurant:])
	at = genLen + restaurant + client
	return at, restaurant > 0 && client > 0 && at < len(key)
}

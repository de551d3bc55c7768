package state

import (
	"context"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2"
	"golang.org/x/sync/errgroup"

	"dinnerbell/state/id"
)

// The state record holds a fingerprint of all rows: the sum, modulo 2^64, of the
// xxHash64 of each row (restaurant, client, row id, as in the join key). A sum does
// not depend on the order of rows, and each change adjusts it.
//
// The fingerprint shows rows that Pebble lost without noticing (package pebblecheck):
// the position then claims rows that are not there.

// fingerprint returns the row's share of the sum. buf is scratch memory, returned for
// reuse.
func (r storedRow) fingerprint(id id.RowID, buf []byte) (sum uint64, _ []byte) {
	buf = append(r.appendValue(buf[:0]), id...)
	return xxhash.Sum64(buf), buf
}

// checkStoredRows compares the rows of r's generation with the counts and the
// fingerprint of r. A difference is an error that wraps ErrCorrupt.
func checkStoredRows(ctx context.Context, db pebble.Reader, r stateRecord) error {
	var all, subscribed, joins uint64
	var n int64
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { all, subscribed, err = sumRowIndex(ctx, db, r.gen); return err })
	g.Go(func() (err error) { joins, n, err = sumJoinIndex(ctx, db, r.gen); return err })
	if err := g.Wait(); err != nil {
		return err
	}
	if all != r.sum || joins != subscribed || n != r.rows {
		return fmt.Errorf("%w: the rows stored are not those of position %s (%d subscriptions, should be %d)", ErrCorrupt, r.end, n, r.rows)
	}
	return nil
}

// sumRowIndex returns the fingerprint of the row index: of all rows, and of the rows
// that must have a join key.
func sumRowIndex(ctx context.Context, db pebble.Reader, gen uint32) (all, subscribed uint64, err error) {
	var buf []byte
	err = eachKey(ctx, db, spaceRow, gen, func(key, value []byte) error {
		n, ok := nullableLen(value)
		m, ok2 := nullableLen(value[n:])
		if !ok || !ok2 || n+m != len(value) {
			return fmt.Errorf("read row value %x: %w", value, ErrCorrupt)
		}
		buf = append(append(buf[:0], value...), key[genLen:]...)
		sum := xxhash.Sum64(buf)
		all += sum
		if value[0] != nullID && value[n] != nullID {
			subscribed += sum
		}
		return nil
	})
	return all, subscribed, err
}

// sumJoinIndex returns the fingerprint and the number of the join keys.
func sumJoinIndex(ctx context.Context, db pebble.Reader, gen uint32) (sum uint64, n int64, err error) {
	err = eachKey(ctx, db, spaceJoin, gen, func(key, _ []byte) error {
		sum += xxhash.Sum64(key[genLen:])
		n++
		return nil
	})
	return sum, n, err
}

// eachKey calls do for every key of a generation in one keyspace.
func eachKey(ctx context.Context, db pebble.Reader, space byte, gen uint32, do func(key, value []byte) error) (err error) {
	start, end := genSpan(space, gen)
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: start, UpperBound: end, KeyTypes: pebble.IterKeyTypePointsOnly})
	if err != nil {
		return fmt.Errorf("read rows: %w", err)
	}
	defer func() { err = errors.Join(err, it.Error(), it.Close()) }()
	const often = 1 << 16
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		if n++; n%often == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if err := do(it.Key(), it.Value()); err != nil {
			return err
		}
	}
	return nil
}

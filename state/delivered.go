package state

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"dinnerbell/state/id"
)

// MarkDelivered remembers, under a name, that clients have got a campaign. It
// is a cache: what a crash takes of it costs time, not a second notification,
// so it is not synced.
func (s *Store) MarkDelivered(name id.ID, clients *id.List) error {
	done, err := s.use()
	if err != nil {
		return err
	}
	defer done()
	if name == "" || clients.Len() == 0 {
		return nil
	}
	if err := s.room(); err != nil {
		return err
	}
	batch := s.db.NewBatch()
	defer batch.Close()
	key := appendDeliveredPrefix(nil, name)
	prefix := len(key)
	for i := range clients.Len() {
		key = append(key[:prefix], clients.At(i)...)
		if err := batch.Set(key, nil, nil); err != nil {
			return fmt.Errorf("mark delivered: %w", err)
		}
	}
	if err := batch.Commit(pebble.NoSync); err != nil {
		return fmt.Errorf("mark delivered: %w", err)
	}
	return nil
}

// ForgetDelivered drops the pairs that were marked under the names.
func (s *Store) ForgetDelivered(names ...id.ID) error {
	if len(names) == 0 {
		return nil
	}
	prefixes := make([][]byte, len(names))
	for i, name := range names {
		prefixes[i] = appendDeliveredPrefix(nil, name)
	}
	return s.forgetDelivered(prefixes)
}

// ForgetAllDelivered drops all pairs.
func (s *Store) ForgetAllDelivered() error {
	return s.forgetDelivered([][]byte{{spaceDelivered}})
}

func (s *Store) forgetDelivered(prefixes [][]byte) error {
	done, err := s.use()
	if err != nil {
		return err
	}
	defer done()
	batch := s.db.NewBatch()
	defer batch.Close()
	for _, prefix := range prefixes {
		if err := batch.DeleteRange(prefix, prefixEnd(nil, prefix), nil); err != nil {
			return s.check(fmt.Errorf("forget delivered pairs: %w", err))
		}
	}
	if err := batch.Commit(pebble.NoSync); err != nil {
		return s.check(fmt.Errorf("forget delivered pairs: %w", err))
	}
	return nil
}

// Delivered counts the pairs in the cache. It reads all of them.
func (s *Store) Delivered() (n int, err error) {
	done, err := s.use()
	if err != nil {
		return 0, err
	}
	defer done()
	space := []byte{spaceDelivered}
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: space, UpperBound: prefixEnd(nil, space)})
	if err != nil {
		return 0, s.check(fmt.Errorf("count delivered pairs: %w", err))
	}
	for ok := it.First(); ok; ok = it.Next() {
		n++
	}
	if err := it.Close(); err != nil {
		return 0, s.check(fmt.Errorf("count delivered pairs: %w", err))
	}
	return n, nil
}

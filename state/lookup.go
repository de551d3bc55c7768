package state

import (
	"errors"
	"fmt"

	"dinnerbell/state/id"
)

// Rows are the rows of one subscription.
type Rows struct {
	IDs []id.RowID // some of them; none: not subscribed
	End id.LSN     // the position that they are as of, or a later one
}

// LookUp returns up to limit rows of a client and a restaurant, as readers see them now.
// It costs one seek.
func (s *Store) LookUp(restaurant, client id.ID, limit int) (r Rows, err error) {
	r.End = s.EndLSN() // before the scan, which may be younger and never older
	scan, err := s.NewScan()
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, scan.Close()) }()
	done, err := s.acquire()
	if err != nil {
		return r, err
	}
	defer done()
	prefix := append(appendJoinPrefix(nil, scan.gen, restaurant), client...)
	scan.subs.SetBounds(prefix, prefixEnd(nil, prefix))
	for ok := scan.subs.First(); ok && len(r.IDs) < limit; ok = scan.subs.Next() {
		r.IDs = append(r.IDs, id.RowID(scan.subs.Key()[len(prefix):]))
	}
	if err := scan.subs.Error(); err != nil {
		return r, s.checkDamage(fmt.Errorf("look up a subscription: %w", err))
	}
	return r, nil
}

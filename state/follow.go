package state

import (
	"encoding/json"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Follow notes, durably, that the rows are those of src from here on: the same
// table under another name of its history, such as the timeline of a promoted
// standby. The caller knows that both sources agree up to [Store.EndLSN].
//
// It is refused with [ErrTorn] while a transaction lies there in parts, or may
// come again: whether src has that one is not known.
func (s *Store) Follow(src Source) error {
	done, err := s.use()
	if err != nil {
		return err
	}
	defer done()
	text, err := json.Marshal(src)
	if err != nil {
		return fmt.Errorf("encode source: %w", err)
	}
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if s.partial || s.repeat || s.written.torn || !s.current().loaded {
		return fmt.Errorf("follow another source at %s: %w", s.written.end, ErrTorn)
	}
	if err := s.db.Set(keySource, text, pebble.Sync); err != nil {
		return s.check(fmt.Errorf("write source: %w", err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.view.src, s.view.durable = src, s.view.end // the write took along all before it
	return nil
}

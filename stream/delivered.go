package stream

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"dinnerbell/state"
)

// The delivered cache spares Postgres the question who has a campaign already.
// It is asked for edits alone: the join of a first message needs none, and where
// a fan-out was interrupted the cursor says how far it came. So nothing is
// written per notification; when an edit arrives, its clients are read from the
// feedback table, once, in the order of the unique index.
//
// What it holds may be too little, never too much: it is under a name of its
// own for each edit and forgotten with the campaign's fan-out, with the session
// or at the next start, so a database that was put back to an earlier moment is
// never answered from it.

// deliveredBatch is how many clients are put into the cache at once.
const deliveredBatch = 10_000

// caches are the names that the session has in the delivered cache.
type caches struct {
	mu    sync.Mutex // intake adds, decide and close forget
	names map[state.ID]struct{}
}

func (c *caches) add(name state.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.names == nil {
		c.names = map[state.ID]struct{}{}
	}
	c.names[name] = struct{}{}
}

// take removes the given names, or all where none is given, and returns them.
func (c *caches) take(names ...state.ID) []state.ID {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(names) == 0 {
		names = slices.Collect(maps.Keys(c.names))
	}
	for _, name := range names {
		delete(c.names, name)
	}
	return names
}

// forget drops names from the cache, all of the session's where none is given.
// That it fails costs disk until the next start.
func (s *session) forget(names ...state.ID) {
	names = s.caches.take(names...)
	if len(names) == 0 {
		return
	}
	if err := s.lane.svc.store.ForgetDelivered(names...); err != nil {
		s.cfg.Logger.Warn("delivered cache is not dropped", "lane", s.lane.id, "error", err)
	}
}

// loadDelivered fills the cache for a message that edits a campaign.
func (s *session) loadDelivered(ctx context.Context, m *message) error {
	if m.known == nil || m.campaign.End <= time.Now().Unix() || m.known.fingerprint == m.fingerprint {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*s.cfg.SinkTimeout)
	defer cancel()
	name, err := state.PackID(rand.Text())
	if err != nil {
		return fmt.Errorf("name delivered cache: %w", err)
	}
	rows, err := s.reader.Query(ctx, `SELECT client_id FROM `+s.t.feedback+` WHERE adv_campaign_id = $1`, m.campaign.ID)
	if err != nil {
		return fmt.Errorf("read who has campaign %s: %w", m.campaign.ID, err)
	}
	defer rows.Close()
	s.caches.add(name)
	clients := &state.IDList{}
	mark := func() error {
		err := s.lane.svc.store.MarkDelivered(name, clients)
		clients.Reset()
		return err
	}
	for rows.Next() && err == nil {
		var id state.ID
		if id, err = state.PackIDBytes(rows.RawValues()[0]); errors.Is(err, state.ErrBadID) {
			err = nil // a row of another job: no subscription has such an id
			continue
		}
		if clients.Append(id); clients.Len() == deliveredBatch {
			err = mark()
		}
	}
	if err = errors.Join(err, rows.Err()); err == nil {
		err = mark()
	}
	switch {
	case errors.Is(err, state.ErrDiskFull): // Postgres will be asked client by client
		return nil
	case err != nil:
		return fmt.Errorf("read who has campaign %s: %w", m.campaign.ID, err)
	}
	m.delivered = name
	return nil
}

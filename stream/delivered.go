package stream

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

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

// deliveredClients bounds what a lane has in the cache: some 300 MB with UUIDs.
// An edit that does not fit asks Postgres client by client.
const deliveredClients = 16_000_000

// caches are the names that the session has in the delivered cache, each with
// the clients under it.
type caches struct {
	mu    sync.Mutex // intake and a replay add, decide and close forget
	names map[state.ID]int
	total int
}

// grow adds clients to a name, or returns false where the bound is reached.
func (c *caches) grow(name state.ID, clients int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.total+clients > deliveredClients {
		return false
	}
	if c.names == nil {
		c.names = map[state.ID]int{}
	}
	c.names[name] += clients
	c.total += clients
	return true
}

// take removes the given names, or all where none is given, and returns them.
func (c *caches) take(names ...state.ID) []state.ID {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(names) == 0 {
		names = slices.Collect(maps.Keys(c.names))
	}
	for _, name := range names {
		c.total -= c.names[name]
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

// loadDelivered fills the cache with those who have a campaign, and returns how
// many they are and the name that they are under: "" where there is no room.
func (s *session) loadDelivered(ctx context.Context, campaign string) (name state.ID, have int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*s.cfg.SinkTimeout)
	defer cancel()
	if name, err = state.PackID(rand.Text()); err != nil {
		return "", 0, fmt.Errorf("name delivered cache: %w", err)
	}
	rows, err := s.reader.Query(ctx, s.table.clientsSQL(), campaign)
	if err != nil {
		return "", 0, fmt.Errorf("read who has campaign %s: %w", campaign, err)
	}
	defer rows.Close()
	clients := &state.IDList{}
	for err == nil && rows.Next() {
		var id state.ID
		if id, err = state.PackIDBytes(rows.RawValues()[0]); errors.Is(err, state.ErrBadID) {
			err = nil // a row of another job: no subscription has such an id
			continue
		}
		have++
		if clients.Append(id); clients.Len() == deliveredBatch {
			name, err = s.markDelivered(name, clients)
		}
	}
	if err = errors.Join(err, rows.Err()); err == nil {
		name, err = s.markDelivered(name, clients)
	}
	if err != nil {
		return "", 0, fmt.Errorf("read who has campaign %s: %w", campaign, err)
	}
	return name, have, nil
}

// markDelivered adds clients to a cache and empties the list, or gives the cache
// up where there is no room: it returns the name that is left.
func (s *session) markDelivered(name state.ID, clients *state.IDList) (state.ID, error) {
	defer clients.Reset()
	if name == "" {
		return "", nil
	}
	err := state.ErrDiskFull
	if s.caches.grow(name, clients.Len()) {
		err = s.lane.svc.store.MarkDelivered(name, clients)
	}
	if errors.Is(err, state.ErrDiskFull) {
		s.forget(name)
		return "", nil
	}
	return name, err
}

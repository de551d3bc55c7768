package stream

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"dinnerbell/state"
	"dinnerbell/state/id"
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

// deliveredCache is one session's part of the delivered cache: the names that it
// has there, each with the clients under it.
type deliveredCache struct {
	lane    int32
	store   *state.Store
	reader  querier
	table   *feedbackTable
	timeout time.Duration // of one look-up
	log     *slog.Logger

	mu    sync.Mutex // intake and a replay add, decide and close forget
	names map[id.ID]int
	total int
}

// reserve adds clients to a name, or returns false where the bound is reached.
func (c *deliveredCache) reserve(name id.ID, clients int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.total+clients > deliveredClients {
		return false
	}
	if c.names == nil {
		c.names = map[id.ID]int{}
	}
	c.names[name] += clients
	c.total += clients
	return true
}

// forget drops names from the cache. That it fails costs disk until the next start.
func (c *deliveredCache) forget(names ...id.ID) {
	c.release(names)
	c.deleteNames(names)
}

// release gives up the room that names take.
func (c *deliveredCache) release(names []id.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		c.total -= c.names[name]
		delete(c.names, name)
	}
}

// forgetAll drops all names.
func (c *deliveredCache) forgetAll() {
	c.mu.Lock()
	names := slices.Collect(maps.Keys(c.names))
	c.mu.Unlock()
	c.forget(names...)
}

func (c *deliveredCache) deleteNames(names []id.ID) {
	if len(names) == 0 {
		return
	}
	if err := c.store.ForgetDelivered(names...); err != nil {
		c.log.Warn("delivered cache is not dropped", "lane", c.lane, "error", err)
	}
}

// loadClients fills the cache with those who have a campaign, and returns how
// many they are and the name that they are under: "" where there is no room.
func (c *deliveredCache) loadClients(ctx context.Context, campaign string) (name id.ID, have int, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if name, err = id.Pack(rand.Text()); err != nil {
		return "", 0, fmt.Errorf("name delivered cache: %w", err)
	}
	rows, err := c.reader.Query(ctx, c.table.clientsSQL(), campaign)
	if err != nil {
		return "", 0, fmt.Errorf("read who has campaign %s: %w", campaign, err)
	}
	defer rows.Close()
	clients := &id.List{}
	for err == nil && rows.Next() {
		var client id.ID
		if client, err = id.PackBytes(rows.RawValues()[0]); errors.Is(err, id.ErrBadID) {
			err = nil // a row of another job: no subscription has such an id
			continue
		}
		have++
		if clients.Append(client); clients.Len() == deliveredBatch {
			name, err = c.addClients(name, clients)
		}
	}
	if err = errors.Join(err, rows.Err()); err == nil {
		name, err = c.addClients(name, clients)
	}
	if err != nil {
		return "", 0, fmt.Errorf("read who has campaign %s: %w", campaign, err)
	}
	return name, have, nil
}

// addClients adds clients to a cache and empties the list, or gives the cache
// up where there is no room: it returns the name that is left.
func (c *deliveredCache) addClients(name id.ID, clients *id.List) (id.ID, error) {
	defer clients.Reset()
	if name == "" {
		return "", nil
	}
	err := state.ErrDiskFull
	if c.reserve(name, clients.Len()) {
		err = c.store.MarkDelivered(name, clients)
	}
	if errors.Is(err, state.ErrDiskFull) {
		c.forget(name)
		return "", nil
	}
	return name, err
}

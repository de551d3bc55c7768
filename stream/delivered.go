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
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
)

// The delivered cache holds the clients who have a campaign already, so that a join
// need not ask Postgres for each client. Only edits need it: before a campaign's
// first message nobody has the campaign, and the cursor records how far an
// interrupted fan-out came. So no notification is written to the cache; when an edit
// arrives, its clients are read from the feedback table, once, in the order of the
// unique index.
//
// The cache may miss clients who have the campaign; it never names one who has not.
// Each edit has its own name in the cache, which is deleted with the end of the
// fan-out, with the session or at the next start: a database that was restored to
// an earlier moment is never answered from the cache.

// deliveredBatch is how many clients are put into the cache at once.
const deliveredBatch = 10_000

// deliveredClients bounds a lane's clients in the cache, some 300 MB with UUIDs. The
// clients of an edit that does not fit are looked up in Postgres by each step.
const deliveredClients = 16_000_000

// deliveredCache is one session's part of the delivered cache: the session's names
// there, each with the number of its clients.
type deliveredCache struct {
	lane    int32
	store   *state.Store
	reader  sink.Querier
	table   *sink.FeedbackTable
	timeout time.Duration // of one look-up
	log     *slog.Logger

	mu    sync.Mutex // the starter and a replay add, the decider and close forget
	names map[id.ID]int
	total int
}

// reserveRoom counts clients under a name, or returns false where the bound is reached.
func (c *deliveredCache) reserveRoom(name id.ID, clients int) bool {
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

// deleteCaches deletes names from the cache. A failure costs disk space until the next
// start.
func (c *deliveredCache) deleteCaches(names ...id.ID) {
	c.releaseRoom(names)
	c.deleteNames(names)
}

// releaseRoom gives back the room of names.
func (c *deliveredCache) releaseRoom(names []id.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		c.total -= c.names[name]
		delete(c.names, name)
	}
}

// forgetAll deletes all names of the session.
func (c *deliveredCache) forgetAll() {
	c.mu.Lock()
	names := slices.Collect(maps.Keys(c.names))
	c.mu.Unlock()
	c.deleteCaches(names...)
}

func (c *deliveredCache) deleteNames(names []id.ID) {
	if len(names) == 0 {
		return
	}
	if err := c.store.ForgetDelivered(names...); err != nil {
		c.log.Warn("delivered cache is not dropped", "lane", c.lane, "error", err)
	}
}

// loadClients fills the cache with the clients who have a campaign; those who have it by
// this restaurant are marked as its own. It returns their number and their name in the
// cache: "" where there is no room.
func (c *deliveredCache) loadClients(ctx context.Context, of campaign.Key) (name id.ID, have int, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if name, err = id.Pack(rand.Text()); err != nil {
		return "", 0, fmt.Errorf("name delivered cache: %w", err)
	}
	rows, err := c.reader.Query(ctx, c.table.ClientsSQL(), of.Campaign, of.Restaurant)
	if err != nil {
		return "", 0, fmt.Errorf("read who has campaign %s: %w", of.Campaign, err)
	}
	defer rows.Close()
	var lists [2]id.List // own clients in the second one
	for err == nil && rows.Next() {
		var client id.ID
		if client, err = id.PackBytes(rows.RawValues()[0]); errors.Is(err, id.ErrBadID) {
			err = nil // a row of another job: no subscription has such an id
			continue
		}
		have++
		own := len(rows.RawValues()[1]) > 0
		clients := &lists[0]
		if own {
			clients = &lists[1]
		}
		if clients.Append(client); clients.Len() == deliveredBatch {
			name, err = c.addClients(name, clients, own)
		}
	}
	err = errors.Join(err, rows.Err())
	for i := range lists {
		if err == nil {
			name, err = c.addClients(name, &lists[i], i == 1)
		}
	}
	if err != nil {
		return "", 0, fmt.Errorf("read who has campaign %s: %w", of.Campaign, err)
	}
	return name, have, nil
}

// addClients adds clients to a name and empties the list. Where there is no room it
// deletes the name and returns "".
func (c *deliveredCache) addClients(name id.ID, clients *id.List, own bool) (id.ID, error) {
	defer clients.Reset()
	if name == "" {
		return "", nil
	}
	err := state.ErrDiskFull
	if c.reserveRoom(name, clients.Len()) {
		err = c.store.MarkDelivered(name, clients, own)
	}
	if errors.Is(err, state.ErrDiskFull) {
		c.deleteCaches(name)
		return "", nil
	}
	return name, err
}

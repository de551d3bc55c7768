package stream

import (
	"container/heap"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/failpoint"
	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
)

// agendaHorizon is how far ahead starts are kept in memory, and
// agendaReload how often those behind it are looked for in the campaign table.
// Memory is then bounded by the campaigns of an hour, not by all that wait.
const (
	agendaHorizon = time.Hour
	agendaReload  = agendaHorizon / 2
)

// agendaWaiting bounds how many campaigns whose start has come are listed: those
// that wait for fresh subscriptions or for room. The others are looked for in the
// campaign table when these are served.
const agendaWaiting = 1 << 14

// dueBatch bounds how many campaigns pass the barrier together, and loadBatch
// how many of them are loaded at once.
const (
	dueBatch  = 256
	loadBatch = 16
)

// agenda knows when which campaign of the lane starts. What cannot be joined at
// once is due at once: campaigns that were accepted while the freshness barrier
// was shut or room was lacking, edits, and after a takeover those in the middle
// of their fan-out. It holds keys; contents stay in Postgres.
type agenda struct {
	mu      sync.Mutex
	limit   int // of waiting
	queue   appointments
	listed  map[campaign.Key]int64 // what queue holds: versions
	waiting int                    // of queue, those whose start had come when they were listed
	left    bool                   // some that wait are not listed
	brought int                    // not listed any more, and not handed on yet
	live    map[campaign.Key]int64 // due or joined already: versions that a reload may find pending still
	wake    chan struct{}          // something was added; one token
}

type appointment struct {
	start   int64
	key     campaign.Key
	version int64
	waits   bool // its start had come when it was listed
}

type appointments []appointment

func (q appointments) Len() int           { return len(q) }
func (q appointments) Less(i, j int) bool { return q[i].start < q[j].start }
func (q appointments) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }

// Push and Pop implement heap.Interface.
func (q *appointments) Push(x any) {
	if p, ok := x.(appointment); ok { // nothing else is ever pushed
		*q = append(*q, p)
	}
}

// Pop implements heap.Interface.
func (q *appointments) Pop() any {
	old := *q
	last := old[len(old)-1]
	old[len(old)-1] = appointment{}
	*q = old[:len(old)-1]
	return last
}

func newAgenda(limit int) *agenda {
	return &agenda{limit: limit, listed: map[campaign.Key]int64{}, live: map[campaign.Key]int64{}, wake: make(chan struct{}, 1)}
}

// add lists campaigns whose rows were just committed: they take the place of
// what is listed for their keys. One that starts behind the horizon is left to
// a later reload.
func (a *agenda) add(now time.Time, list ...appointment) { a.list(now, true, list) }

// fill lists campaigns that a reload has read, which may be older than what
// was added since.
func (a *agenda) fill(now time.Time, list []appointment) { a.list(now, false, list) }

func (a *agenda) list(now time.Time, replace bool, list []appointment) {
	a.mu.Lock()
	defer a.mu.Unlock()
	horizon := now.Add(agendaHorizon).Unix()
	for _, p := range list {
		v, ok := a.listed[p.key]
		if ok && (v == p.version || !replace) || a.live[p.key] == p.version {
			continue
		}
		p.waits = p.start <= now.Unix()
		if p.waits && a.waiting >= a.limit {
			a.left = true
		}
		if p.start > horizon || p.waits && a.waiting >= a.limit {
			delete(a.listed, p.key) // what is queued for the key is older
			continue
		}
		if p.waits {
			a.waiting++
		}
		a.listed[p.key] = p.version
		heap.Push(&a.queue, p)
	}
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// settle notes a step's rows that were just committed: what waits is listed in
// the place of what was listed for its key, what does not is taken off.
func (a *agenda) settle(now time.Time, st *step) {
	a.mu.Lock()
	for k, r := range st.rows {
		switch {
		case r.state == "":
		case r.state != statePending:
			delete(a.live, k)
		case r.accept && r.started:
			a.live[k] = r.version
		}
		if r.accept && (r.state != statePending || r.started) {
			delete(a.listed, k) // due skips what is still queued for it
		}
	}
	a.mu.Unlock()
	a.add(now, st.appointments()...)
}

// release has a reload list campaigns again that were due before.
func (a *agenda) release(keys []campaign.Key) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, k := range keys {
		delete(a.live, k)
	}
}

// due takes out what starts at or before now, at most dueBatch, earliest first.
func (a *agenda) due(now int64) []appointment {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []appointment
	for len(a.queue) > 0 && a.queue[0].start <= now && len(out) < dueBatch {
		p := a.queue[0]
		heap.Pop(&a.queue)
		if p.waits {
			a.waiting--
		}
		if v, ok := a.listed[p.key]; !ok || v != p.version { // an edit took its place
			continue
		}
		delete(a.listed, p.key)
		a.live[p.key] = p.version
		out = append(out, p)
	}
	a.brought = len(out)
	return out
}

// handed notes that so many of those that were due are handed on.
func (a *agenda) handed(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.brought -= n
}

// next is when the earliest listed campaign starts; false if none is listed.
func (a *agenda) next() (time.Time, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.queue) == 0 {
		return time.Time{}, false
	}
	return time.Unix(a.queue[0].start, 0), true
}

// takeLeft tells whether campaigns that wait are to be looked for in the
// campaign table: there are some, and none that is listed waits. limit is how
// many pending rows have more of these than the agenda takes, or all.
func (a *agenda) takeLeft() (limit int, some bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.left || a.waiting > 0 {
		return 0, false
	}
	a.left = false
	return a.limit + len(a.live) + 1, true
}

// len is how many campaigns wait for their start, and how many for anything else.
func (a *agenda) len() (scheduled, waiting int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	waiting = min(a.waiting, len(a.listed))
	return len(a.listed) - waiting, waiting + a.brought
}

// starter brings the lane's campaigns when they are due.
type starter struct {
	lane      *lane
	t         tables
	reader    querier
	timeout   time.Duration // of one look-up
	times     *agenda
	delivered *deliveredCache
	due       chan<- []*live
}

// run works until ctx ends.
func (s *starter) run(ctx context.Context) error {
	// Everything pending: what was live before the takeover is due at once.
	loaded := time.Now()
	if err := s.reload(ctx, loaded, -1, loaded.Add(agendaHorizon).Unix(), math.MaxInt32); err != nil {
		return err
	}
	for ctx.Err() == nil {
		now := time.Now()
		if now.Sub(loaded) >= agendaReload {
			loaded = now
			if err := s.reload(ctx, now, now.Unix(), now.Add(agendaHorizon).Unix(), math.MaxInt32); err != nil {
				return err
			}
		}
		due := s.times.due(now.Unix())
		switch {
		case len(due) > 0:
			if err := s.bringDue(ctx, due); err != nil {
				return err
			}
		default:
			if limit, some := s.times.takeLeft(); !some {
				s.awaitAgenda(ctx, loaded.Add(agendaReload))
			} else if err := s.reload(ctx, now, -1, now.Unix(), limit); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// awaitAgenda returns when something is due or was listed, at until at the latest.
func (s *starter) awaitAgenda(ctx context.Context, until time.Time) {
	if at, ok := s.times.next(); ok && at.Before(until) {
		until = at
	}
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.times.wake:
	case <-ctx.Done():
	}
}

// bringDue hands campaigns on whose start has come, against the subscriptions
// of this moment or later. It waits for the freshness barrier and for room.
func (s *starter) bringDue(ctx context.Context, due []appointment) error {
	if err := s.lane.awaitFresh(ctx); err != nil {
		return err
	}
	failpoint.Hit("intake/due")
	for batch := range slices.Chunk(due, loadBatch) {
		list, err := bounded(ctx, s.timeout, func(ctx context.Context) ([]*live, error) { return s.load(ctx, batch) })
		if err != nil {
			return err
		}
		// Those that are joined against the delivered cache come last: it may take
		// long to fill.
		ready := list[:0:0]
		var cached []*live
		for _, l := range list {
			if l.contested.Load() && l.cursor == "" {
				cached = append(cached, l)
			} else {
				ready = append(ready, l)
			}
		}
		if err := s.handDueOver(ctx, ready...); err != nil {
			return err
		}
		for _, l := range cached {
			if l.delivered, _, err = s.delivered.load(ctx, l.ID); err != nil {
				return err
			}
			if err := s.handDueOver(ctx, l); err != nil {
				return err
			}
		}
		s.times.handed(len(batch))
	}
	return nil
}

// handDueOver waits until decide has room.
func (s *starter) handDueOver(ctx context.Context, list ...*live) error {
	if len(list) == 0 {
		return nil
	}
	select {
	case s.due <- list:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reload lists the lane's pending campaigns that start in (after, until], at most
// limit. Of those that wait the ones in the middle of their fan-out come first;
// the others are bounded by the agenda.
func (s *starter) reload(ctx context.Context, now time.Time, after, until int64, limit int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*s.timeout)
	defer cancel()
	rows, err := s.reader.Query(ctx, `SELECT adv_campaign_id, restaurant_id, version, adv_campaign_datetime_start FROM `+s.t.campaign+`
WHERE lane = $1 AND state = 'pending' AND adv_campaign_datetime_start > $2 AND adv_campaign_datetime_start <= $3
ORDER BY cursor = '', adv_campaign_datetime_start LIMIT $4`,
		s.lane.id, after, until, limit)
	if err != nil {
		return fmt.Errorf("read agenda of lane %d: %w", s.lane.id, err)
	}
	var list []appointment
	var p appointment
	_, err = pgx.ForEachRow(rows, []any{&p.key.Campaign, &p.key.Restaurant, &p.version, &p.start}, func() error {
		if list = append(list, p); len(list) == dueBatch { // so that what does not fit is not held
			s.times.fill(now, list)
			list = list[:0]
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read agenda of lane %d: %w", s.lane.id, err)
	}
	s.times.fill(now, list)
	return nil
}

// readStarts gives those of the given campaigns that are pending and the lane's.
func (t tables) readStarts(ctx context.Context, conn querier, lane int32, keys []campaign.Key) ([]appointment, error) {
	campaigns, restaurants := make([]string, len(keys)), make([]string, len(keys))
	for i, k := range keys {
		campaigns[i], restaurants[i] = k.Campaign, k.Restaurant
	}
	rows, err := conn.Query(ctx, `SELECT c.adv_campaign_id, c.restaurant_id, c.version, c.adv_campaign_datetime_start FROM unnest($1::text[], $2::text[]) AS k(campaign, restaurant)
JOIN `+t.campaign+` c ON c.adv_campaign_id = k.campaign AND c.restaurant_id = k.restaurant WHERE c.lane = $3 AND c.state = 'pending'`, campaigns, restaurants, lane)
	if err != nil {
		return nil, fmt.Errorf("read agenda of lane %d: %w", lane, err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p appointment, err error) {
		err = row.Scan(&p.key.Campaign, &p.key.Restaurant, &p.version, &p.start)
		return p, err
	})
	if err != nil {
		return nil, fmt.Errorf("read agenda of lane %d: %w", lane, err)
	}
	return list, nil
}

// load reads the campaigns that are due, as of their last committed step. One
// that was edited, finished or taken by another lane since is left out.
func (s *starter) load(ctx context.Context, due []appointment) ([]*live, error) {
	campaigns, restaurants, versions := make([]string, len(due)), make([]string, len(due)), make([]int64, len(due))
	for i, p := range due {
		campaigns[i], restaurants[i], versions[i] = p.key.Campaign, p.key.Restaurant, p.version
	}
	rows, err := s.reader.Query(ctx, `SELECT c.adv_campaign_id, c.restaurant_id, c.version, c.adv_campaign_content, c.adv_campaign_owner, c.adv_campaign_owner_contact,
  c.adv_campaign_datetime_start, c.adv_campaign_datetime_end, c.datetime_created, c.cursor, c.contested, c.msg_lane, c.msg_offset
FROM unnest($1::text[], $2::text[], $3::int8[]) WITH ORDINALITY AS d(campaign, restaurant, version, n)
JOIN `+s.t.campaign+` c ON c.adv_campaign_id = d.campaign AND c.restaurant_id = d.restaurant AND c.version = d.version
WHERE c.lane = $4 AND c.state = 'pending' ORDER BY d.n`, campaigns, restaurants, versions, s.lane.id)
	if err != nil {
		return nil, fmt.Errorf("load due campaigns of lane %d: %w", s.lane.id, err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*live, error) {
		c, l := &campaign.Campaign{}, &live{owner: s.lane.id, started: true}
		var cursor []byte
		var contested bool
		if err := row.Scan(&c.ID, &c.RestaurantID, &l.version, &c.Content, &c.Owner, &c.OwnerContact, &c.Start, &c.End, &c.Created, &cursor, &contested, &l.from.Lane, &l.from.Offset); err != nil {
			return nil, err
		}
		l.Campaign, l.cursor = c, id.ID(cursor)
		l.contested.Store(contested)
		return l, l.pack()
	})
	if err != nil {
		return nil, fmt.Errorf("load due campaigns of lane %d: %w", s.lane.id, err)
	}
	return list, nil
}

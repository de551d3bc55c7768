package stream

import (
	"container/heap"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/state"
)

// agendaHorizon is how far ahead starts are kept in memory, and
// agendaReload how often those behind it are looked for in the campaign table.
// Memory is then bounded by the campaigns of an hour, not by all that wait.
const (
	agendaHorizon = time.Hour
	agendaReload  = agendaHorizon / 2
)

// dueBatch bounds how many campaigns are loaded at once.
const dueBatch = 256

// agenda knows when which campaign of the lane starts. After a takeover it
// also brings back those in the middle of their fan-out: their start has
// passed, so they are due at once. It holds keys; contents stay in Postgres.
type agenda struct {
	mu     sync.Mutex
	queue  appointments
	listed map[key]version // what queue holds
	wake   chan struct{}   // something was added; one token
}

type appointment struct {
	start   int64
	key     key
	version version
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

func newAgenda() *agenda {
	return &agenda{listed: map[key]version{}, wake: make(chan struct{}, 1)}
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
		if ok && (v == p.version || !replace) {
			continue
		}
		if p.start > horizon {
			delete(a.listed, p.key) // what is queued for the key is older
			continue
		}
		a.listed[p.key] = p.version
		heap.Push(&a.queue, p)
	}
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// remove takes campaigns off the list whose rows were just committed as
// anything but scheduled.
func (a *agenda) remove(keys []key) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, k := range keys {
		delete(a.listed, k) // due skips what is still queued for it
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
		if v, ok := a.listed[p.key]; !ok || v != p.version { // an edit took its place
			continue
		}
		delete(a.listed, p.key)
		out = append(out, p)
	}
	return out
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

func (a *agenda) len() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.listed)
}

// reload lists the lane's pending campaigns that start within the horizon.
// onlyAfter leaves out those that start at or before it: they are live already.
func (s *session) reload(ctx context.Context, now time.Time, onlyAfter int64) error {
	rows, err := s.reader.Query(ctx, `SELECT adv_campaign_id, restaurant_id, msg_offset, adv_campaign_datetime_start FROM `+s.t.campaign+`
WHERE lane = $1 AND state = 'pending' AND adv_campaign_datetime_start > $2 AND adv_campaign_datetime_start <= $3`,
		s.lane.id, onlyAfter, now.Add(agendaHorizon).Unix())
	if err != nil {
		return fmt.Errorf("read agenda of lane %d: %w", s.lane.id, err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (appointment, error) {
		p := appointment{version: version{lane: s.lane.id}}
		err := row.Scan(&p.key.campaign, &p.key.restaurant, &p.version.offset, &p.start)
		return p, err
	})
	if err != nil {
		return fmt.Errorf("read agenda of lane %d: %w", s.lane.id, err)
	}
	s.agenda.fill(now, list)
	return nil
}

// load reads the campaigns that are due, as of their last committed step. One
// that was edited, finished or taken by another lane since is left out.
func (s *session) load(ctx context.Context, due []appointment) ([]*live, error) {
	campaigns, restaurants, offsets := make([]string, len(due)), make([]string, len(due)), make([]int64, len(due))
	for i, p := range due {
		campaigns[i], restaurants[i], offsets[i] = p.key.campaign, p.key.restaurant, p.version.offset
	}
	rows, err := s.reader.Query(ctx, `SELECT c.adv_campaign_id, c.restaurant_id, c.msg_offset, c.adv_campaign_content, c.adv_campaign_owner, c.adv_campaign_owner_contact,
  c.adv_campaign_datetime_start, c.adv_campaign_datetime_end, c.datetime_created, c.cursor
FROM unnest($1::text[], $2::text[], $3::int8[]) WITH ORDINALITY AS d(campaign, restaurant, msg_offset, n)
JOIN `+s.t.campaign+` c ON c.adv_campaign_id = d.campaign AND c.restaurant_id = d.restaurant AND c.msg_offset = d.msg_offset
WHERE c.lane = $4 AND c.state = 'pending' ORDER BY d.n`, campaigns, restaurants, offsets, s.lane.id)
	if err != nil {
		return nil, fmt.Errorf("load due campaigns of lane %d: %w", s.lane.id, err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*live, error) {
		c, l := &Campaign{}, &live{version: version{lane: s.lane.id}, started: true}
		var cursor []byte
		if err := row.Scan(&c.ID, &c.RestaurantID, &l.version.offset, &c.Content, &c.Owner, &c.OwnerContact, &c.Start, &c.End, &c.Created, &cursor); err != nil {
			return nil, err
		}
		l.Campaign, l.cursor = c, state.ID(cursor)
		return l, l.pack()
	})
	if err != nil {
		return nil, fmt.Errorf("load due campaigns of lane %d: %w", s.lane.id, err)
	}
	return list, nil
}

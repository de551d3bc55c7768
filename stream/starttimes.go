package stream

import (
	"container/heap"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"dinnerbell/internal/failpoint"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
)

// maxWaitingStarts bounds how many campaigns are listed whose start has come and
// that wait for fresh subscriptions or for room. The rest is read from the campaign
// table once the listed ones are served. scheduledPerWaiting times as many are listed
// whose start lies ahead; a list that grows further is cut to the earlier half.
const (
	maxWaitingStarts    = 1 << 14
	scheduledPerWaiting = 4
)

// clockWatch bounds how long the starter sleeps. Its timer does not notice that the
// clock was set or that the machine was suspended.
const clockWatch = time.Second

// dueBatch bounds how many campaigns pass the barrier together, and loadBatch
// how many of them are loaded at once.
const (
	dueBatch  = 256
	loadBatch = 16
)

// startTimes lists when which campaign of the lane starts. Campaigns whose start has
// come and that were not joined when they were accepted are due at once: the
// freshness barrier was shut, there was no room, or the message is an edit; after a
// takeover also campaigns in the middle of their fan-out. startTimes holds keys;
// contents stay in Postgres.
type startTimes struct {
	mu          sync.Mutex
	limit       int   // of waiting
	horizon     int64 // starts up to this second are listed, but for unlisted; a reload reads the later ones
	cut         bool  // the list was cut: horizon is no hour ahead
	reloaded    int64 // the second of the last reload of a list that was cut
	queue       startQueue
	listed      map[campaign.Key]int64 // version of each campaign in queue
	waiting     int                    // campaigns in queue whose start had come when they were listed
	unlisted    bool                   // some campaigns that start up to unlistedTo are not listed
	unlistedTo  int64
	handingOver int                    // taken out of queue and not yet handed to the decider
	handedDue   time.Time              // when the oldest of those is due
	joining     map[campaign.Key]int64 // versions that are due or joined, and that a reload may still find pending
	distant     distantStarts          // campaigns behind horizon
	wake        chan struct{}          // something was added; one token
}

type startTime struct {
	start   int64
	key     campaign.Key
	version int64
	since   int64 // milliseconds: when the message was produced, or an operator let the campaign go
	waits   bool  // the start had come when it was listed
}

type startQueue []startTime

func (q startQueue) Len() int           { return len(q) }
func (q startQueue) Less(i, j int) bool { return q[i].start < q[j].start }
func (q startQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }

// Push and Pop implement heap.Interface.
func (q *startQueue) Push(x any) {
	if p, ok := x.(startTime); ok { // nothing else is ever pushed
		*q = append(*q, p)
	}
}

// Pop implements heap.Interface.
func (q *startQueue) Pop() any {
	old := *q
	last := old[len(old)-1]
	old[len(old)-1] = startTime{}
	*q = old[:len(old)-1]
	return last
}

func newStartTimes(limit int) *startTimes {
	return &startTimes{limit: limit, horizon: -1, listed: map[campaign.Key]int64{}, joining: map[campaign.Key]int64{}, wake: make(chan struct{}, 1)}
}

// addCommitted lists campaigns whose rows were just committed, in place of any other
// version of their keys. A start beyond the horizon is left to a later reload: the
// horizon is raised before a reload's query, so a row that the query does not see is
// within it.
func (a *startTimes) addCommitted(now time.Time, list ...startTime) { a.insertStarts(now, true, list) }

// addLoaded lists campaigns that a reload has read. Where a version of the key is
// listed already, that one stays: it may be newer than the reload's.
func (a *startTimes) addLoaded(now time.Time, list []startTime) { a.insertStarts(now, false, list) }

// addReleased lists campaigns that an operator has let go, in place of an earlier version
// of their keys.
func (a *startTimes) addReleased(now time.Time, list ...startTime) {
	a.mu.Lock()
	for _, p := range list {
		if v, ok := a.listed[p.key]; ok && v < p.version {
			delete(a.listed, p.key) // takeDue skips its entry in queue
		}
	}
	a.mu.Unlock()
	a.insertStarts(now, false, list)
}

func (a *startTimes) insertStarts(now time.Time, replace bool, list []startTime) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range list {
		v, ok := a.listed[p.key]
		if ok && (v == p.version || !replace) || a.joining[p.key] == p.version {
			continue
		}
		p.waits = p.start <= now.Unix()
		if p.waits && a.waiting >= a.limit {
			a.noteUnlisted(p.start)
		}
		if !p.waits && p.start > a.horizon {
			a.noteDistantLocked()
		}
		if !p.waits && p.start > a.horizon || p.waits && a.waiting >= a.limit {
			delete(a.listed, p.key) // the queue's entry for the key is older
			continue
		}
		if p.waits {
			a.waiting++
		}
		a.listed[p.key] = p.version
		heap.Push(&a.queue, p)
		if len(a.queue)-a.waiting >= a.scheduledLimit() {
			a.cutScheduled()
		}
	}
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// applyStep lists the campaigns of a committed step that wait, and takes off the
// list those that do not.
func (a *startTimes) applyStep(now time.Time, st *step) {
	a.mu.Lock()
	for k, r := range st.rows {
		switch {
		case r.state == "":
		case r.state != sink.StatePending:
			delete(a.joining, k)
		case r.accept && r.started:
			a.joining[k] = r.version
		}
		if r.accept && (r.state != sink.StatePending || r.started) {
			delete(a.listed, k) // takeDue skips its entry in queue
		}
		if r.accept && r.replaces != nil {
			a.distant.changed = true // the version before may have been distant
		}
	}
	a.mu.Unlock()
	a.addCommitted(now, st.waitingStarts()...)
}

// takeDue removes and returns the campaigns that start at or before now, at most
// dueBatch, earliest first.
func (a *startTimes) takeDue(now int64) []startTime {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []startTime
	a.handedDue = time.Time{}
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
		a.joining[p.key] = p.version
		a.handedDue = earlierTime(a.handedDue, dueAt(p.start, p.since))
		out = append(out, p)
	}
	a.handingOver = len(out)
	return out
}

// noteHandedOver records that n of the campaigns that were due are with the decider.
func (a *startTimes) noteHandedOver(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.handingOver -= n
}

// nextStart returns when the earliest listed campaign starts; false if the list is
// empty.
func (a *startTimes) nextStart() (time.Time, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.queue) == 0 {
		return time.Time{}, false
	}
	return time.Unix(a.queue[0].start, 0), true
}

// countStarts returns how many campaigns wait for their start, listed or behind the horizon,
// and how many for fresh subscriptions, room or their turn.
func (a *startTimes) countStarts() (scheduled, waiting int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	waiting = min(a.waiting, len(a.listed))
	return len(a.listed) - waiting + int(a.distant.count), waiting + a.handingOver
}

// campaignStarter loads the lane's campaigns when they are due and hands them to the
// decider.
type campaignStarter struct {
	lane      *lane
	t         sink.Tables
	reader    sink.Querier
	timeout   time.Duration // of one look-up
	starts    *startTimes
	delivered *deliveredCache
	due       chan<- []*liveCampaign
	now       func() time.Time
	watch     time.Duration // see clockWatch
}

// run works until ctx ends.
func (s *campaignStarter) run(ctx context.Context) error {
	for ctx.Err() == nil {
		now := s.now()
		if after, until, limit, due := s.starts.takeReload(now); due {
			n, last, err := s.reloadStarts(ctx, now, after, until, limit)
			if err != nil {
				return err
			}
			s.starts.noteReloaded(n)
			if n == limit {
				s.starts.noteCutReload(last)
			}
		}
		if due := s.starts.takeDue(now.Unix()); len(due) > 0 {
			if err := s.handOverDue(ctx, due); err != nil {
				return err
			}
		} else if limit, some := s.starts.takeUnlisted(now.Unix()); some {
			n, _, err := s.reloadStarts(ctx, now, -1, now.Unix(), limit)
			if err != nil {
				return err
			}
			if n == limit {
				s.starts.noteMoreUnlisted(now.Unix())
			}
		} else {
			s.awaitNextStart(ctx)
		}
	}
	return ctx.Err()
}

// awaitNextStart returns when a campaign is due or was listed, after watch at the latest.
func (s *campaignStarter) awaitNextStart(ctx context.Context) {
	wait := s.watch
	if at, ok := s.starts.nextStart(); ok {
		wait = min(wait, at.Sub(s.now()))
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.starts.wake:
	case <-ctx.Done():
	}
}

// handOverDue hands campaigns whose start has come to the decider, to be joined with
// the subscriptions of this moment or later. It waits for the freshness barrier and
// for room.
func (s *campaignStarter) handOverDue(ctx context.Context, due []startTime) error {
	if err := s.lane.awaitFresh(ctx); err != nil {
		return err
	}
	failpoint.Hit("intake/due")
	for batch := range slices.Chunk(due, loadBatch) {
		list, err := bounded(ctx, s.timeout, func(ctx context.Context) ([]*liveCampaign, error) { return s.loadCampaigns(ctx, batch) })
		if err != nil {
			return err
		}
		if r := s.lane.replay.Load(); r != nil && len(list) < len(batch) {
			r.noteGone(batch, list)
		}
		// Campaigns that need the delivered cache come last: filling it may take long.
		ready := list[:0:0]
		var cached []*liveCampaign
		for _, l := range list {
			if l.contested.Load() && l.cursor == "" {
				cached = append(cached, l)
			} else {
				ready = append(ready, l)
			}
		}
		if err := s.sendDue(ctx, ready...); err != nil {
			return err
		}
		for _, l := range cached {
			if l.delivered, _, err = s.delivered.loadClients(ctx, l.Key()); err != nil {
				return err
			}
			if err := s.sendDue(ctx, l); err != nil {
				return err
			}
		}
		s.starts.noteHandedOver(len(batch))
	}
	return nil
}

// sendDue hands campaigns to the decider and waits until it has room for them.
func (s *campaignStarter) sendDue(ctx context.Context, list ...*liveCampaign) error {
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

func newStartTime(p sink.PendingCampaign) startTime {
	return startTime{start: p.Start, key: p.Key, version: p.Version, since: p.Since}
}

func startTimesOf(list []sink.PendingCampaign) (out []startTime) {
	for _, p := range list {
		out = append(out, newStartTime(p))
	}
	return out
}

// loadCampaigns reads the campaigns that are due, as of their last committed step. A
// campaign that was edited, finished or taken by another lane since is left out.
func (s *campaignStarter) loadCampaigns(ctx context.Context, due []startTime) ([]*liveCampaign, error) {
	pending := make([]sink.PendingCampaign, len(due))
	for i, p := range due {
		pending[i] = sink.PendingCampaign{Key: p.key, Version: p.version, Start: p.start}
	}
	found, err := s.t.ReadDue(ctx, s.reader, s.lane.id, pending)
	if err != nil {
		return nil, err
	}
	list := make([]*liveCampaign, len(found))
	for i, d := range found {
		l := &liveCampaign{Campaign: d.Campaign, owner: s.lane.id, started: true, version: d.Version, cursor: d.Cursor, from: d.From, approved: d.Approved, resumedAt: d.Cursor}
		l.began, l.again = d.Accepted, d.Notified > 0
		// Perhaps it was the version before that it took; then each client is tried.
		l.taken = d.Notified > 0 && d.Cursor != ""
		if accepted := d.Accepted.UnixMilli(); d.Start*1000 >= accepted && !d.Approved { // it had to wait for its start alone
			l.sent = accepted
		}
		l.due = dueAt(d.Start, d.Since)
		l.audience.Store(d.Audience)
		l.contested.Store(d.Contested)
		if err := l.packRestaurant(); err != nil {
			return nil, fmt.Errorf("load due campaigns of lane %d: %w", s.lane.id, err)
		}
		list[i] = l
	}
	return list, nil
}

package stream

import (
	"container/heap"
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"dinnerbell/internal/failpoint"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
)

// startHorizon is how far ahead starts are kept in memory, and startReload how
// often the campaign table is asked for starts beyond it. So memory is bounded by
// the campaigns of an hour, not by all scheduled ones.
const (
	startHorizon = time.Hour
	startReload  = startHorizon / 2
)

// maxWaitingStarts bounds how many campaigns are listed whose start has come and
// that wait for fresh subscriptions or for room. The rest is read from the campaign
// table once the listed ones are served.
const maxWaitingStarts = 1 << 14

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
	limit       int // of waiting
	queue       startQueue
	listed      map[campaign.Key]int64 // version of each campaign in queue
	waiting     int                    // campaigns in queue whose start had come when they were listed
	unlisted    bool                   // some waiting campaigns are not listed
	handingOver int                    // taken out of queue and not yet handed to the decider
	joining     map[campaign.Key]int64 // versions that are due or joined, and that a reload may still find pending
	wake        chan struct{}          // something was added; one token
}

type startTime struct {
	start   int64
	key     campaign.Key
	version int64
	waits   bool // the start had come when it was listed
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
	return &startTimes{limit: limit, listed: map[campaign.Key]int64{}, joining: map[campaign.Key]int64{}, wake: make(chan struct{}, 1)}
}

// addCommitted lists campaigns whose rows were just committed, in place of any other
// version of their keys. A start beyond the horizon is left to a later reload.
func (a *startTimes) addCommitted(now time.Time, list ...startTime) { a.insert(now, true, list) }

// addLoaded lists campaigns that a reload has read. Where a version of the key is
// listed already, that one stays: it may be newer than the reload's.
func (a *startTimes) addLoaded(now time.Time, list []startTime) { a.insert(now, false, list) }

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
	a.insert(now, false, list)
}

func (a *startTimes) insert(now time.Time, replace bool, list []startTime) {
	a.mu.Lock()
	defer a.mu.Unlock()
	horizon := now.Add(startHorizon).Unix()
	for _, p := range list {
		v, ok := a.listed[p.key]
		if ok && (v == p.version || !replace) || a.joining[p.key] == p.version {
			continue
		}
		p.waits = p.start <= now.Unix()
		if p.waits && a.waiting >= a.limit {
			a.unlisted = true
		}
		if p.start > horizon || p.waits && a.waiting >= a.limit {
			delete(a.listed, p.key) // the queue's entry for the key is older
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
	}
	a.mu.Unlock()
	a.addCommitted(now, st.waitingStarts()...)
}

// allowReload lets a reload list campaigns again that were due before.
func (a *startTimes) allowReload(keys []campaign.Key) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, k := range keys {
		delete(a.joining, k)
	}
}

// takeDue removes and returns the campaigns that start at or before now, at most
// dueBatch, earliest first.
func (a *startTimes) takeDue(now int64) []startTime {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []startTime
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

// takeUnlisted reports whether the campaign table must be asked for waiting
// campaigns: some are not listed, and no listed one waits. limit is how many pending
// rows to read: among them are more waiting campaigns than the list takes, or all.
func (a *startTimes) takeUnlisted() (limit int, some bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.unlisted || a.waiting > 0 {
		return 0, false
	}
	a.unlisted = false
	return a.limit + len(a.joining) + 1, true
}

// counts returns how many campaigns wait for their start, and how many for fresh
// subscriptions, room or their turn.
func (a *startTimes) counts() (scheduled, waiting int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	waiting = min(a.waiting, len(a.listed))
	return len(a.listed) - waiting, waiting + a.handingOver
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
}

// run works until ctx ends.
func (s *campaignStarter) run(ctx context.Context) error {
	// All pending campaigns: those that were live before the takeover are due at once.
	loaded := time.Now()
	if err := s.reloadStarts(ctx, loaded, -1, loaded.Add(startHorizon).Unix(), math.MaxInt32); err != nil {
		return err
	}
	for ctx.Err() == nil {
		now := time.Now()
		if now.Sub(loaded) >= startReload {
			loaded = now
			if err := s.reloadStarts(ctx, now, now.Unix(), now.Add(startHorizon).Unix(), math.MaxInt32); err != nil {
				return err
			}
		}
		due := s.starts.takeDue(now.Unix())
		switch {
		case len(due) > 0:
			if err := s.handOverDue(ctx, due); err != nil {
				return err
			}
		default:
			if limit, some := s.starts.takeUnlisted(); !some {
				s.awaitNextStart(ctx, loaded.Add(startReload))
			} else if err := s.reloadStarts(ctx, now, -1, now.Unix(), limit); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// awaitNextStart returns when a campaign is due or was listed, at until at the latest.
func (s *campaignStarter) awaitNextStart(ctx context.Context, until time.Time) {
	if at, ok := s.starts.nextStart(); ok && at.Before(until) {
		until = at
	}
	timer := time.NewTimer(time.Until(until))
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
			if l.delivered, _, err = s.delivered.loadClients(ctx, l.ID); err != nil {
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

// reloadStarts lists the lane's pending campaigns that start in (after, until], at
// most limit. Campaigns in the middle of their fan-out come first; startTimes bounds
// how many waiting ones are listed.
func (s *campaignStarter) reloadStarts(ctx context.Context, now time.Time, after, until int64, limit int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*s.timeout)
	defer cancel()
	var list []startTime
	err := s.t.ReadPending(ctx, s.reader, s.lane.id, after, until, limit, func(p sink.PendingCampaign) {
		if list = append(list, newStartTime(p)); len(list) == dueBatch { // so that campaigns beyond the bound take no memory
			s.starts.addLoaded(now, list)
			list = list[:0]
		}
	})
	if err != nil {
		return err
	}
	s.starts.addLoaded(now, list)
	return nil
}

func newStartTime(p sink.PendingCampaign) startTime {
	return startTime{start: p.Start, key: p.Key, version: p.Version}
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
		l := &liveCampaign{Campaign: d.Campaign, owner: s.lane.id, started: true, version: d.Version, cursor: d.Cursor, from: d.From, approved: d.Approved, resumed: d.Cursor != ""}
		l.contested.Store(d.Contested)
		if err := l.packRestaurant(); err != nil {
			return nil, fmt.Errorf("load due campaigns of lane %d: %w", s.lane.id, err)
		}
		list[i] = l
	}
	return list, nil
}

package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
)

// FanOut is a campaign in the middle of its fan-out, as of the last committed step.
type FanOut struct {
	Campaign   string `json:"campaign"`
	Restaurant string `json:"restaurant"`
	Title      string `json:"title"` // the beginning of its content
	Lane       int32  `json:"lane"`
	Start      int64  `json:"start"` // Unix seconds
	End        int64  `json:"end"`
	Version    int64  `json:"version"`  // of its row
	Audience   int64  `json:"audience"` // subscribers of the restaurant; -1: not counted yet
	Passed     int64  `json:"passed"`   // subscribers who were looked at; -1: not known yet
	Notified   int64  `json:"notified"` // over all versions
	LeftOut    int64  `json:"left_out"` // clients who had the campaign from another restaurant or another job
	// Rate counts the subscribers who were looked at per second, lately. 0: not known yet.
	Rate float64 `json:"rate"`
}

// Left estimates how long the fan-out takes from now on; 0 where that is not known.
func (f *FanOut) Left() time.Duration {
	if f.Rate <= 0 || f.Audience < 0 || f.Passed < 0 {
		return 0
	}
	return time.Duration(float64(max(f.Audience-f.Passed, 0)) / f.Rate * float64(time.Second))
}

// fanOut follows a campaign that needs more than one step. The lane's mutex guards it.
type fanOut struct {
	live   *liveCampaign
	since  time.Time // of its first step in this session
	asked  bool      // its audience is being counted
	passed int64     // clients looked at in this session
	counts sink.RowCounts
	pace   []paceSample
}

// paceSample is how far a fan-out was at a time.
type paceSample struct {
	at     time.Time
	passed int64
}

const (
	// paceEvery is the time between two samples of a fan-out, paceSamples how many are
	// kept: the rate is that of the last ten seconds or so.
	paceEvery   = time.Second
	paceSamples = 10
	// countAfter is how long a fan-out must last before its audience is counted: that
	// reads all of it, and most fan-outs are over by then.
	countAfter = 500 * time.Millisecond
)

// noteFanOuts follows the campaigns that a committed step has moved.
func (l *lane) noteFanOuts(st *step, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range st.lost {
		l.dropLostLocked(k)
	}
	for _, p := range st.postponed {
		l.dropLostLocked(p.key)
	}
	for k, r := range st.rows {
		f := l.fanOuts[k]
		if f != nil && (f.live != r.liveCampaign && (r.accept || r.served) || r.state != "" && r.state != sink.StatePending) {
			delete(l.fanOuts, k)
			f = nil
		}
		if !r.served || r.state != sink.StatePending || r.lost.Load() {
			continue
		}
		if f == nil {
			f = &fanOut{live: r.liveCampaign, since: now}
			if l.fanOuts == nil {
				l.fanOuts = map[campaign.Key]*fanOut{}
			}
			l.fanOuts[k] = f
		}
		f.passed, f.counts = f.passed+r.looked, r.stored
		f.addSample(now)
		if f.asked || now.Sub(f.since) < countAfter || r.audience != nil && r.resumedAt == "" {
			continue
		}
		select {
		case l.svc.toCount <- f.live:
			f.asked = true
		default: // the counter is busy: asked again with the next step
		}
	}
}

// dropLostLocked drops a fan-out whose row another message or an operator has taken.
func (l *lane) dropLostLocked(k campaign.Key) {
	if f := l.fanOuts[k]; f != nil && f.live.lost.Load() {
		delete(l.fanOuts, k)
	}
}

// addSample keeps a sample a second.
func (f *fanOut) addSample(now time.Time) {
	if n := len(f.pace); n > 0 && now.Sub(f.pace[n-1].at) < paceEvery {
		return
	}
	if len(f.pace) == paceSamples {
		f.pace = slices.Delete(f.pace, 0, 1)
	}
	f.pace = append(f.pace, paceSample{now, f.passed})
}

// clientsPerSecond returns the clients per second since the oldest sample.
func (f *fanOut) clientsPerSecond(now time.Time) float64 {
	if len(f.pace) == 0 {
		return 0
	}
	since := now.Sub(f.pace[0].at).Seconds()
	if since < 0.1 {
		return 0
	}
	return float64(f.passed-f.pace[0].passed) / since
}

// describe returns the fan-out as others see it.
func (f *fanOut) describe(lane int32, now time.Time) FanOut {
	c := f.live
	out := FanOut{
		Campaign: c.ID, Restaurant: c.RestaurantID, Title: titleOf(c.Content), Lane: lane, Start: c.Start, End: c.End, Version: c.version,
		Audience: -1, Passed: -1, Notified: f.counts.Notified, LeftOut: f.counts.Already, Rate: f.clientsPerSecond(now),
	}
	if n := c.audience.Load(); n != nil {
		out.Audience = max(*n, f.counts.Met())
	}
	if c.resumedAt == "" {
		out.Passed = f.passed
	} else if before := c.passedBefore.Load(); before != nil {
		out.Passed = *before + f.passed
	}
	return out
}

// FanOuts lists the campaigns in the middle of their fan-out on the lanes of this
// service, in the order of their keys. It is cheap and may be called at any time.
func (s *Service) FanOuts() []FanOut {
	s.mu.Lock()
	lanes := make([]*lane, 0, len(s.lanes))
	for _, h := range s.lanes {
		lanes = append(lanes, h.lane)
	}
	s.mu.Unlock()
	now := time.Now()
	out := []FanOut{}
	for _, l := range lanes {
		l.mu.Lock()
		for _, f := range l.fanOuts {
			if !f.live.lost.Load() {
				out = append(out, f.describe(l.id, now))
			}
		}
		l.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b FanOut) int {
		return cmp.Or(cmp.Compare(a.Campaign, b.Campaign), cmp.Compare(a.Restaurant, b.Restaurant))
	})
	return out
}

// countQueue bounds the campaigns that wait for their audience to be counted.
const countQueue = 256

// countAudiences counts the audiences of large campaigns, one after another, beside
// the fan-outs, until ctx ends.
func (s *Service) countAudiences(ctx context.Context) error {
	for {
		select {
		case l := <-s.toCount:
			all, before, err := s.countAudience(ctx, l.restaurant, l.resumedAt)
			if ctx.Err() != nil {
				return nil //nolint:nilerr // an orderly end
			}
			if err != nil {
				s.cfg.Logger.Warn("audience is not counted", "campaign", l.ID, "restaurant", l.RestaurantID, "error", err)
				continue
			}
			l.audience.CompareAndSwap(nil, &all)
			l.passedBefore.Store(&before)
		case <-ctx.Done():
			return nil
		}
	}
}

// countedAtOnce is how many clients one view of the state yields to a count: a view
// pins files.
const countedAtOnce = 1 << 16

// countAudience counts the distinct clients of a restaurant, and how many of them come
// up to the client until.
func (s *Service) countAudience(ctx context.Context, restaurant, until id.ID) (all, before int64, err error) {
	list := &id.List{}
	for after, done := id.ID(""), false; !done; {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		scan, err := s.store.NewScan()
		if err != nil {
			return 0, 0, fmt.Errorf("read subscriptions: %w", err)
		}
		for n := 0; n < countedAtOnce && !done && err == nil; n += list.Len() {
			list.Reset()
			if after, done, err = scan.Undelivered(list, "", restaurant, after, countedTogether); err != nil {
				break
			}
			all += int64(list.Len())
			if until == "" {
				continue
			}
			for i := range list.Len() {
				if list.At(i) <= until {
					before++
				}
			}
		}
		if err = errors.Join(err, scan.Close()); err != nil {
			return 0, 0, fmt.Errorf("read subscriptions: %w", err)
		}
	}
	return all, before, nil
}

package stream

import (
	"context"
	"time"

	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
)

// An operator's command changes a campaign's row and raises its version. A lane in the
// middle of the campaign's fan-out notices that with its next step, which misses. What
// an operator lets go comes back through the start times: watchOperators asks Postgres
// for the changes of all lanes, once a second. It also leaves a line in the daemon's log
// about each command.

const (
	// operatorWatch is how often watchOperators looks.
	operatorWatch = time.Second
	// operatorOverlap is how much earlier than the last look a command is looked for: a
	// command's time is that of its statement, and its commit comes later.
	operatorOverlap = time.Minute
)

// watchOperators looks for what operators did to the campaigns of this daemon's lanes,
// until ctx ends. An error is none of the lanes' business: the next look covers the time.
func (s *Service) watchOperators(ctx context.Context) error {
	reader := s.readers.Open()
	defer reader.Close()
	tick := time.NewTicker(operatorWatch)
	defer tick.Stop()
	last := time.Now()
	seen := map[campaign.Key]int64{} // versions
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		lanes := s.runningLanes()
		if len(lanes) == 0 {
			continue
		}
		ids := make([]int32, 0, len(lanes))
		for id := range lanes {
			ids = append(ids, id)
		}
		now := time.Now()
		list, err := bounded(ctx, s.cfg.SinkTimeout, func(ctx context.Context) ([]sink.OperatedCampaign, error) {
			return s.cfg.Sink.Tables().ReadOperated(ctx, reader, ids, now.Sub(last)+operatorOverlap)
		})
		if err != nil {
			s.cfg.Logger.Debug("operators' commands cannot be read; the next look covers them", "error", err)
			continue
		}
		last = now
		found := make(map[campaign.Key]int64, len(list))
		for i := range list {
			o := &list[i]
			found[o.Key] = o.Version
			if seen[o.Key] != o.Version {
				lanes[o.Lane].noteOperated(o)
			}
		}
		seen = found
	}
}

// runningLanes returns the lanes that have taken over.
func (s *Service) runningLanes() map[int32]*lane {
	s.mu.Lock()
	defer s.mu.Unlock()
	running := map[int32]*lane{}
	for id, h := range s.lanes {
		h.lane.mu.Lock()
		if h.lane.status.State == LaneRunning {
			running[id] = h.lane
		}
		h.lane.mu.Unlock()
	}
	return running
}

// noteOperated logs what an operator did to a campaign of the lane. A campaign that is
// pending now is listed among the start times: an operator may have let it go.
func (l *lane) noteOperated(o *sink.OperatedCampaign) {
	l.svc.cfg.Logger.Info("an operator's command on a campaign", "lane", l.id, "campaign", o.Key.Campaign, "restaurant", o.Key.Restaurant,
		"state", o.State, "version", o.Version, "command", o.Operator, "given", o.Time.UTC())
	l.svc.recent.add(RecentCampaign{
		Campaign: o.Key.Campaign, Restaurant: o.Key.Restaurant, Lane: l.id, Offset: -1, Start: o.Start, End: o.End, What: operatedKind(o.State),
		At: time.Now(), Audience: o.Audience, Notified: o.Notified,
	})
	l.mu.Lock()
	starts := l.starts
	l.mu.Unlock()
	if o.State == sink.StatePending && starts != nil {
		starts.addReleased(time.Now(), startTime{start: o.Start, key: o.Key, version: o.Version})
	}
}

// operatedKind names what an operator's command made of a campaign, as Recent does.
func operatedKind(state string) RecentKind {
	switch state {
	case sink.StateCancelled:
		return RecentCancelled
	case sink.StatePaused:
		return RecentPaused
	case sink.StateParked:
		return RecentParked
	}
	return RecentAccepted
}

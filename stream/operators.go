package stream

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"dinnerbell/internal/failpoint"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
)

// An operator's command changes a campaign's row and raises its version. A lane in the
// middle of the campaign's fan-out notices that with its next step, which misses. What
// an operator lets go comes back through the start times: operatorWatch asks Postgres
// for the changes of all lanes, once a second. It also leaves a line in the daemon's log
// about each command, and counts the campaigns that wait for an operator.

const (
	// operatorLook is how often operatorWatch looks.
	operatorLook = time.Second
	// operatorOverlap is how much earlier than the last look a command is looked for: a
	// command's time is that of its statement, and its commit comes later.
	operatorOverlap = time.Minute
	// heldEvery is how often held campaigns are counted if no change is known: they end.
	heldEvery = 5 * time.Second
)

// operatorWatch looks for what operators did to the campaigns of a service's lanes.
type operatorWatch struct {
	svc    *Service
	reader sink.Querier

	last    time.Time                    // of the last look that succeeded
	seen    map[campaign.Key]seenCommand // what the looks have found lately
	counted time.Time
	lanes   []int32 // whose held campaigns were counted

	distantFrom time.Time // when campaigns behind the horizons may be counted again
}

// seenCommand is a command that a look has found.
type seenCommand struct {
	lane    int32
	version int64       // of the row
	starts  *startTimes // of the lane's session that was told
	at      time.Time
}

// watchOperators looks until ctx ends. An error is none of the lanes' business: the next
// look covers the time.
func (s *Service) watchOperators(ctx context.Context) error {
	reader := s.readers.Open()
	defer reader.Close()
	tick := time.NewTicker(s.operatorLook)
	defer tick.Stop()
	w := &operatorWatch{svc: s, reader: reader, last: time.Now()}
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if err := w.readCommands(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Logger.Debug("operators' commands cannot be read; the next look covers them", "error", err)
		}
	}
}

func (w *operatorWatch) readCommands(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, w.svc.cfg.SinkTimeout)
	defer cancel()
	lanes := w.svc.runningLanes()
	ids := slices.Sorted(maps.Keys(lanes))
	if err := w.countHeld(ctx, w.svc.knownLanes()); err != nil || len(ids) == 0 {
		return err
	}
	if err := w.countDistant(ctx, lanes); err != nil {
		return err
	}
	now := time.Now()
	list, err := w.svc.cfg.Sink.Tables().ReadOperated(ctx, w.reader, ids, now.Sub(w.last)+operatorOverlap)
	if err != nil {
		return err
	}
	w.last = now
	skew := w.svc.Status().ClockSkew
	found := make(map[campaign.Key]seenCommand, len(list))
	for i := range list {
		o := &list[i]
		l, before := lanes[o.Lane], w.seen[o.Key]
		found[o.Key] = seenCommand{o.Lane, o.Version, l.starts, now}
		if before.version == o.Version && before.starts == l.starts {
			continue
		}
		failpoint.Hit("operators/seen")
		// Every session of the lane is told: a command may commit after the takeover's
		// reading, whatever time it bears. The log has it from the daemon that had the lane
		// at that time.
		l.applyOperated(o, l.starts)
		if before.version != o.Version && !o.Time.Add(skew).Before(l.assigned) {
			l.logOperated(o)
		}
	}
	for k, s := range w.seen { // a lane that is being taken over anew is not looked at
		_, again := found[k]
		if _, runs := lanes[s.lane]; !again && !runs && now.Sub(s.at) < 2*operatorOverlap {
			found[k] = s
		}
	}
	w.seen = found
	return nil
}

// countHeld counts the campaigns that wait for an operator, where the count may have
// changed.
func (w *operatorWatch) countHeld(ctx context.Context, ids []int32) error {
	s := w.svc
	if changed := s.heldChanged.Swap(false); !changed && time.Since(w.counted) < heldEvery && slices.Equal(ids, w.lanes) {
		return nil
	}
	var parked, paused int64
	if len(ids) > 0 {
		var err error
		if parked, paused, err = s.cfg.Sink.Tables().CountHeld(ctx, w.reader, ids); err != nil {
			s.heldChanged.Store(true)
			return err
		}
	}
	s.held.parked.Store(parked)
	s.held.paused.Store(paused)
	w.counted, w.lanes = time.Now(), ids
	return nil
}

// knownLanes returns the lanes of this service, also those that do not run and those that
// it has lost and nobody else is known to have: a held campaign waits for an operator
// whatever its lane does.
func (s *Service) knownLanes() []int32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := slices.AppendSeq(slices.Collect(maps.Keys(s.lanes)), maps.Keys(s.gone))
	slices.Sort(ids)
	return ids
}

// runningLane is a lane that has taken over.
type runningLane struct {
	*lane
	starts *startTimes // of its session
}

// runningLanes returns the lanes that have taken over.
func (s *Service) runningLanes() map[int32]runningLane {
	s.mu.Lock()
	defer s.mu.Unlock()
	running := map[int32]runningLane{}
	for id, h := range s.lanes {
		h.lane.mu.Lock()
		if h.lane.status.State == LaneRunning {
			running[id] = runningLane{h.lane, h.lane.starts}
		}
		h.lane.mu.Unlock()
	}
	return running
}

// applyOperated tells a session of the lane what an operator did to a campaign. A
// campaign that is pending now is listed among the start times: an operator may have let
// it go.
func (l *lane) applyOperated(o *sink.OperatedCampaign, starts *startTimes) {
	l.svc.heldChanged.Store(true)
	starts.noteOperated()
	if o.State == sink.StatePending {
		starts.addReleased(l.svc.now(), startTime{start: o.Start, key: o.Key, version: o.Version, since: o.Time.UnixMilli()})
	}
}

// logOperated tells people what an operator did to a campaign of the lane.
func (l *lane) logOperated(o *sink.OperatedCampaign) {
	l.svc.cfg.Logger.Info("an operator's command on a campaign", "lane", l.id, "campaign", o.Key.Campaign, "restaurant", o.Key.Restaurant,
		"state", o.State, "version", o.Version, "command", o.Operator, "given", o.Time.UTC())
	news := RecentCampaign{Campaign: o.Key.Campaign, Restaurant: o.Key.Restaurant, Lane: l.id, Offset: -1, Start: o.Start, End: o.End, What: operatedKind(o), At: time.Now()}
	news.setCounts(o.RowCounts)
	l.svc.recent.add(news)
}

// operatedKind names what an operator's command made of a campaign, as Recent does.
func operatedKind(o *sink.OperatedCampaign) RecentKind {
	switch o.State {
	case sink.StateCancelled:
		return RecentCancelled
	case sink.StatePaused:
		return RecentPaused
	case sink.StateParked:
		return RecentParked
	}
	if strings.HasPrefix(o.Operator, "approve ") {
		return RecentApproved
	}
	return RecentResumed
}

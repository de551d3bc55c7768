package stream

import (
	"context"
	"slices"
	"time"

	"dinnerbell/stream/sink"
)

// startTimes lists the campaigns that start soon. Those behind its horizon are in the
// campaign table alone, and are only counted: for the status and the metrics.

const (
	// distantEvery is how often campaigns behind the horizon are counted if no change of
	// them is known.
	distantEvery = 5 * time.Second
	// distantShare bounds the time that the counting takes: one part in so many.
	distantShare = 10
)

// distantStarts is the number of pending campaigns that start behind the horizon, as of
// the last count and the changes since then that are known.
type distantStarts struct {
	count   int64
	changed bool      // by how much is not known: count again
	counted time.Time // when; zero: never
}

// noteDistantLocked records that a campaign was committed which starts behind the horizon.
func (a *startTimes) noteDistantLocked() {
	a.distant.count, a.distant.changed = a.distant.count+1, true
}

// noteReloaded records that a reload has listed n campaigns, which were distant before.
func (a *startTimes) noteReloaded(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.distant.count = max(a.distant.count-int64(n), 0)
}

// noteOperated records that an operator has changed a campaign, which may be distant.
func (a *startTimes) noteOperated() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.distant.changed = true
}

// takeDistant returns the horizon behind which campaigns are to be counted now.
func (a *startTimes) takeDistant(now time.Time) (horizon int64, due bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.horizon < 0 || !a.distant.changed && now.Sub(a.distant.counted) < distantEvery {
		return 0, false
	}
	a.distant.changed, a.distant.counted = false, now
	return a.horizon, true
}

// setDistant takes over a count of the campaigns behind a horizon, unless the horizon has
// moved since.
func (a *startTimes) setDistant(horizon, count int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.horizon != horizon {
		a.distant.changed = true
		return
	}
	a.distant.count = count
}

// countDistant counts the campaigns of the lanes that start behind the horizons of the
// lanes' lists.
func (w *operatorWatch) countDistant(ctx context.Context, lanes map[int32]runningLane) error {
	begin := time.Now()
	if begin.Before(w.distantFrom) {
		return nil
	}
	lists := map[int32]*startTimes{}
	var ask []sink.StartsBehind
	for id, l := range lanes {
		if horizon, due := l.starts.takeDistant(begin); due {
			lists[id], ask = l.starts, append(ask, sink.StartsBehind{Lane: id, Second: horizon})
		}
	}
	if len(ask) == 0 {
		return nil
	}
	slices.SortFunc(ask, func(a, b sink.StartsBehind) int { return int(a.Lane) - int(b.Lane) })
	err := w.svc.cfg.Sink.Tables().CountStartsBehind(ctx, w.reader, ask, func(of sink.StartsBehind, count int64) {
		lists[of.Lane].setDistant(of.Second, count)
	})
	w.distantFrom = begin.Add(distantShare * time.Since(begin))
	return err
}

package stream

import (
	"cmp"
	"context"
	"slices"
	"time"

	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
)

// startHorizon is how far ahead starts are listed, and startReload how near the end of
// the list may come before the campaign table is asked for further starts.
const (
	startHorizon = time.Hour
	startReload  = startHorizon / 2
)

// noteUnlisted records that campaigns which start up to a second are not listed.
func (a *startTimes) noteUnlisted(start int64) {
	a.unlisted, a.unlistedTo = true, max(a.unlistedTo, start)
}

func (a *startTimes) scheduledLimit() int { return scheduledPerWaiting * a.limit }

// cutScheduled lowers the horizon, so that half of the campaigns whose start lies ahead
// stay listed, or fewer if many start in one second.
func (a *startTimes) cutScheduled() {
	slices.SortFunc(a.queue, func(p, q startTime) int { return cmp.Compare(p.start, q.start) }) // which is a heap
	at, ahead := 0, 0
	for ; ahead <= a.scheduledLimit()/2; at++ {
		if !a.queue[at].waits {
			ahead++
		}
	}
	a.lowerHorizon(a.queue[at-1].start - 1)
	a.queue = slices.DeleteFunc(a.queue, func(p startTime) bool {
		if p.waits || p.start <= a.horizon {
			return false
		}
		if a.listed[p.key] == p.version {
			delete(a.listed, p.key)
		}
		return true
	})
}

func (a *startTimes) lowerHorizon(to int64) {
	if to < a.horizon {
		a.horizon, a.cut, a.distant.changed = to, true, true
	}
}

// takeReload reports whether the campaign table must be asked for starts in
// (after, until], at most limit of them. noteCutReload follows if that many were read.
func (a *startTimes) takeReload(now time.Time) (after, until int64, limit int, due bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.cut && (a.horizon > now.Unix() || a.reloaded == now.Unix()):
		return 0, 0, 0, false
	case !a.cut && a.horizon >= now.Add(startReload).Unix():
		return 0, 0, 0, false
	}
	a.reloaded = now.Unix()
	if a.horizon < now.Unix() { // starts that have come are read as room for them comes
		a.noteUnlisted(now.Unix())
	}
	after = max(a.horizon, now.Unix())
	a.horizon, a.cut = max(after, now.Add(startHorizon).Unix()), false
	return after, a.horizon, a.scheduledLimit() + 1, true
}

// noteCutReload records that a reload has read as many campaigns as it may, the last of
// which starts at last.
func (a *startTimes) noteCutReload(last int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lowerHorizon(last - 1)
}

// allowReload lets a reload list campaigns again that were due before.
func (a *startTimes) allowReload(keys []campaign.Key) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, k := range keys {
		delete(a.joining, k)
	}
}

// takeUnlisted reports whether the campaign table must be asked for campaigns whose
// start has come: some are not listed, and no listed one waits. limit is how many
// pending rows to read; noteMoreUnlisted follows if there are that many.
func (a *startTimes) takeUnlisted(now int64) (limit int, some bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.unlisted || a.waiting > 0 {
		return 0, false
	}
	if a.unlistedTo > now { // the clock was set back, so their starts are to come
		a.lowerHorizon(now)
	}
	a.unlisted, a.unlistedTo = false, 0
	return a.limit + len(a.joining) + 1, true
}

// noteMoreUnlisted records that a reading of campaigns whose start has come by now was
// cut off.
func (a *startTimes) noteMoreUnlisted(now int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.noteUnlisted(now)
}

// reloadStarts lists the lane's pending campaigns that start in (after, until], at
// most limit. Campaigns in the middle of their fan-out come first, then the earliest
// ones; startTimes bounds how many are listed. reloadStarts returns how many it has
// read, and when the last one starts.
func (s *campaignStarter) reloadStarts(ctx context.Context, now time.Time, after, until int64, limit int) (n int, last int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*s.timeout)
	defer cancel()
	var list []startTime
	err = s.t.ReadPending(ctx, s.reader, s.lane.id, after, until, limit, func(p sink.PendingCampaign) {
		n, last = n+1, p.Start
		if list = append(list, newStartTime(p)); len(list) == dueBatch { // so that campaigns beyond the bound take no memory
			s.starts.addLoaded(now, list)
			list = list[:0]
		}
	})
	if err == nil {
		s.starts.addLoaded(now, list)
	}
	return n, last, err
}

package stream

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"dinnerbell/stream/sink"
)

// A campaign leaves one line in the log when it is accepted and one when it is over:
// finished, expired, without audience; a message that does nothing leaves one as well.
// A fan-out is finished for the log and for Recent once its last step is shipped.

// finishedCampaign is a campaign whose last step is decided, and perhaps not shipped
// yet.
type finishedCampaign struct {
	*liveCampaign
	seq      int64 // of the step
	what     RecentKind
	audience int64 // -1: not known
}

// fanOutTotals are what the committed steps of a campaign add up to.
type fanOutTotals struct {
	notified, already int64
	over              bool // a step has finished it; the totals change no more
}

// met counts the clients who have the campaign now, or had it from elsewhere. Some of them
// may have unsubscribed or subscribed since the audience was counted.
func (t *fanOutTotals) met() int64 { return t.notified + t.already }

// noteCampaigns counts, logs and lists the campaigns that a committed step has accepted,
// served and finished. Only the goroutine that handles the committed steps calls it.
func (l *lane) noteCampaigns(st *step, seq int64) {
	var accepted []*campaignRow
	var finished []finishedCampaign
	for _, r := range st.rows {
		if r.accept && r.state != sink.StateExpired {
			accepted = append(accepted, r)
		}
		t := &r.totals
		if !r.served || t.over {
			continue
		}
		t.notified, t.already = t.notified+r.notified, t.already+r.already
		if !r.again { // a replay's: the row alone has counted these before
			t.already += r.own
		}
		if t.over = r.state == sink.StateFinished; !t.over {
			continue
		}
		if r.refused.Load() {
			continue // a line and a dead letter name the refusal
		}
		finished = append(finished, r.finish(seq))
	}
	l.noteFanOuts(st, time.Now())
	l.noteAccepted(accepted, seq)
	if len(finished) == 0 {
		return
	}
	l.svc.counters.finished.Add(int64(len(finished)))
	now := l.svc.now()
	for i := range finished {
		finished[i].observeSinceDue(l.svc.cfg.Durations.Decided, now)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unshipped = append(l.unshipped, finished...)
}

// finish describes how the campaign of a finished row came to its end.
func (r *campaignRow) finish(seq int64) finishedCampaign {
	f := finishedCampaign{liveCampaign: r.liveCampaign, seq: seq, what: RecentFinished, audience: -1}
	counted := r.audience
	if counted == nil {
		counted = r.liveCampaign.audience.Load()
	}
	switch {
	case r.cutOff:
		f.what = RecentEnded
	case r.cursor == "":
		f.what = RecentMetNobody
	}
	switch {
	case counted != nil:
		f.audience = max(*counted, r.totals.met())
	case !r.cutOff:
		f.audience = r.totals.met()
	}
	return f
}

// noteAccepted counts, logs and lists accepted campaigns.
func (l *lane) noteAccepted(rows []*campaignRow, seq int64) {
	if len(rows) == 0 {
		return
	}
	l.svc.counters.accepted.Add(int64(len(rows)))
	slices.SortFunc(rows, func(a, b *campaignRow) int { return cmp.Compare(a.at.Offset, b.at.Offset) })
	now := time.Now()
	l.svc.log.write(logAccepted, len(rows), 0, func(i int) []any {
		r := rows[i]
		attrs := []any{"lane", l.id, "seq", seq, "campaign", r.ID, "restaurant", r.RestaurantID, "offset", r.at.Offset, "end", unixTime(r.End)}
		if r.replaces != nil {
			attrs = append(attrs, "edit", true)
		}
		if r.Start > l.svc.now().Unix() {
			attrs = append(attrs, "start", unixTime(r.Start))
		}
		return attrs
	})
	var news []RecentCampaign
	for _, r := range rows[max(0, len(rows)-recentLength):] {
		news = append(news, r.news(l.id, RecentAccepted, now))
	}
	l.svc.recent.add(news...)
}

// news describes a campaign for Recent.
func (l *liveCampaign) news(lane int32, what RecentKind, at time.Time) RecentCampaign {
	return RecentCampaign{
		Campaign: strings.Clone(l.ID), Restaurant: strings.Clone(l.RestaurantID), Title: titleOf(l.Content), // not to hold the message
		Lane: lane, Offset: l.from.Offset, Start: l.Start, End: l.End, What: what, At: at, Audience: -1,
	}
}

// noteFinished logs and lists the finished campaigns whose last step is shipped by now:
// seq is K.
func (l *lane) noteFinished(seq int64) {
	l.mu.Lock()
	n := 0
	for n < len(l.unshipped) && l.unshipped[n].seq <= seq {
		n++
	}
	shipped := slices.Clone(l.unshipped[:n])
	l.unshipped = slices.Delete(l.unshipped, 0, n)
	l.mu.Unlock()
	if n == 0 {
		return
	}
	for i := range shipped {
		shipped[i].observeSinceDue(l.svc.cfg.Durations.Delivered, l.svc.now())
	}
	now := time.Now()
	for i := range shipped {
		l.svc.counters.observeLatency(&shipped[i], now)
		l.svc.traces.noteFinished(&shipped[i], now)
	}
	for _, kind := range []struct {
		what RecentKind
		line skipReason
	}{{RecentFinished, logFinished}, {RecentEnded, logEnded}} { // one without audience has its line
		var list []*finishedCampaign
		var notified int64
		for i := range shipped {
			if f := &shipped[i]; f.what == kind.what {
				list, notified = append(list, f), notified+f.totals.notified
			}
		}
		l.svc.log.write(kind.line, len(list), notified, func(i int) []any { return list[i].attributes(l.id, now) })
	}
	var news []RecentCampaign
	for _, f := range shipped[max(0, n-recentLength):] {
		item := f.news(l.id, f.what, now)
		item.Audience, item.Notified, item.Already, item.Took = f.audience, f.totals.notified, f.totals.already, f.took(now)
		news = append(news, item)
	}
	l.svc.recent.add(news...)
}

// took returns how long the campaign took from its receipt, or from its start if that
// was later; 0 where that is not known.
func (f *finishedCampaign) took(now time.Time) time.Duration {
	if f.began.IsZero() {
		return 0
	}
	return max(now.Sub(laterTime(f.began, time.Unix(f.Start, 0))), 0)
}

func (f *finishedCampaign) attributes(lane int32, now time.Time) []any {
	attrs := []any{"lane", lane, "seq", f.seq, "campaign", f.ID, "restaurant", f.RestaurantID}
	if f.audience >= 0 {
		attrs = append(attrs, "audience", f.audience)
	}
	return append(attrs, "notified", f.totals.notified, "left_out", f.totals.already, "ms", f.took(now).Milliseconds())
}

func unixTime(seconds int64) time.Time { return time.Unix(seconds, 0).UTC() }

func laterTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

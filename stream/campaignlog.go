package stream

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
)

// A campaign leaves one line in the log when it is accepted and one when it is over:
// finished, expired, without audience; a message that does nothing leaves one as well.
// A fan-out is finished for the log and for Recent once its last step is shipped.

// finishedCampaign is a campaign whose last step is decided, and perhaps not shipped
// yet.
type finishedCampaign struct {
	*liveCampaign
	seq    int64 // of the step
	what   RecentKind
	counts sink.RowCounts // of its row
}

// noteCampaigns counts, logs and lists the campaigns that a committed step has accepted,
// served and finished. Only the goroutine that handles the committed steps calls it.
func (l *lane) noteCampaigns(st *step, seq int64) {
	var accepted []*campaignRow
	var finished []finishedCampaign
	for _, r := range st.rows {
		if r.accept && r.state != sink.StateExpired {
			accepted = append(accepted, r)
		}
		if !r.served || r.over {
			continue
		}
		if r.over = r.state == sink.StateFinished; !r.over {
			continue
		}
		if r.refused.Load() {
			continue // a line and a dead letter name the refusal
		}
		finished = append(finished, r.finishCampaign(seq))
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

// finishCampaign describes how the campaign of a finished row came to its end.
func (r *campaignRow) finishCampaign(seq int64) finishedCampaign {
	f := finishedCampaign{liveCampaign: r.liveCampaign, seq: seq, what: RecentFinished, counts: r.stored}
	switch {
	case r.cutOff:
		f.what = RecentEnded
	case r.cursor == "":
		f.what = RecentMetNobody
	}
	f.counts = f.what.addUp(f.counts)
	return f
}

// noteCounts takes over the counts of the campaign rows that a committed step has changed:
// Postgres has returned them, so that the log, the status and the rows agree, whoever has
// counted before. It must be called before the step's campaigns are logged and listed.
func (l *lane) noteCounts(st *step) {
	for _, r := range st.rows {
		if r.accept && r.replaces == nil {
			r.stored = sink.RowCounts{Audience: -1, Notified: r.notified, Already: r.already}
			if r.audience != nil {
				r.stored.Audience = *r.audience
			}
		}
	}
	if st.counts == nil {
		return
	}
	st.counts.EachRow(func(k campaign.Key, c sink.RowCounts) { st.rows[k].stored = c })
	st.counts.EachLate(func(k campaign.Key, c sink.RowCounts) {
		if r := st.rows[k]; r != nil {
			r.stored = c
		}
		l.noteLateCounts(k, c)
	})
	for k, r := range st.rows {
		if r.served && r.rejoins {
			l.svc.recent.updateCounts(k, r.stored)
		}
	}
}

// noteLateCounts takes over the counts of a campaign to which late subscribers were added:
// it is in the middle of its fan-out, its last step is not shipped yet, or it is over.
func (l *lane) noteLateCounts(k campaign.Key, c sink.RowCounts) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.fanOuts[k]; f != nil {
		f.counts = c
	}
	for i := range l.unshipped {
		if f := &l.unshipped[i]; f.Key() == k {
			f.counts = f.what.addUp(c)
		}
	}
	l.svc.recent.updateCounts(k, c) // under the lock: see listFinished
}

// noteAccepted counts, logs and lists accepted campaigns.
func (l *lane) noteAccepted(rows []*campaignRow, seq int64) {
	if len(rows) == 0 {
		return
	}
	l.svc.counters.accepted.Add(int64(len(rows)))
	slices.SortFunc(rows, func(a, b *campaignRow) int { return cmp.Compare(a.at.Offset, b.at.Offset) })
	now := time.Now()
	l.svc.log.writeLines(logAccepted, len(rows), 0, func(i int) []any {
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
		item := r.news(l.id, RecentAccepted, now)
		item.setCounts(r.stored)
		news = append(news, item)
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
				list, notified = append(list, f), notified+f.counts.Notified
			}
		}
		l.svc.log.writeLines(kind.line, len(list), notified, func(i int) []any { return list[i].attributes(l.id, now) })
	}
	l.listFinished(n, now)
}

// listFinished lists the first n unshipped campaigns as finished. Until then
// noteLateCounts finds them among the unshipped ones, and from then on in the list.
func (l *lane) listFinished(n int, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var news []RecentCampaign
	for i := max(0, n-recentLength); i < n; i++ {
		f := &l.unshipped[i]
		item := f.news(l.id, f.what, now)
		item.Took = f.took(now)
		item.setCounts(f.counts)
		news = append(news, item)
	}
	l.svc.recent.add(news...)
	l.unshipped = slices.Delete(l.unshipped, 0, n)
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
	if f.counts.Audience >= 0 {
		attrs = append(attrs, "audience", f.counts.Audience)
	}
	return append(attrs, "notified", f.counts.Notified, "left_out", f.counts.Already, "ms", f.took(now).Milliseconds())
}

func unixTime(seconds int64) time.Time { return time.Unix(seconds, 0).UTC() }

func laterTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

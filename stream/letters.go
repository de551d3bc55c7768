package stream

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/record"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/topic"
)

// newLetterMaker returns the maker of the dead letters of accepted campaigns.
func newLetterMaker(cfg topic.Config, limits topic.Limits) record.LetterMaker {
	return record.LetterMaker{Topic: cfg.Campaigns, Limit: limits.DeadLetter}
}

// lettersOf returns the dead letters of the rows that an insertion has not written.
func lettersOf(m *record.LetterMaker, n *sink.Insertion, l *liveCampaign) (out []record.DeadLetter) {
	if n.Refused != "" {
		out = append(out, m.RefusedCampaign(l.Campaign, l.from, n.Refused))
	}
	for _, why := range slices.Sorted(maps.Keys(n.LeftOut)) {
		out = append(out, m.LeftOutClients(l.Campaign, l.from, why, n.LeftOut[why]))
	}
	return out
}

// payload returns the payload that the step ships if all its clients are new and the
// table takes all rows, with the letters of clients that were left out before.
func (st *step) payload(m *record.LetterMaker) *record.Payload {
	p := st.buildPayload()
	p.Dead = slices.Clip(p.Dead)
	keys := slices.SortedFunc(maps.Keys(st.leftOut), func(a, b leftOut) int {
		return cmp.Or(campaign.CompareKeys(a.live.Key(), b.live.Key()), strings.Compare(a.reason, b.reason))
	})
	for _, k := range keys {
		p.Dead = append(p.Dead, m.LeftOutClients(k.live.Campaign, k.live.from, k.reason, st.leftOut[k]))
	}
	return p
}

// noteLeftOut counts and logs the left-out clients and campaigns of a committed step:
// their letters are behind the letters of refused messages.
func (l *lane) noteLeftOut(st *step, p *record.Payload) {
	for i := len(st.dead); i < len(p.Dead); i++ {
		d := &p.Dead[i]
		l.svc.counters.countLetter(d)
		attrs := func(int) []any {
			return []any{"lane", l.id, "seq", p.Seq, "campaign", d.Campaign.Campaign, "restaurant", d.Campaign.Restaurant, "offset", d.Offset, "reason", d.Reason}
		}
		if d.Clients > 0 {
			if l.svc.log.admitLines(skipLeftOut, 1, d.Clients) > 0 {
				l.svc.cfg.Logger.Warn("clients are left out; a dead letter names them", attrs(0)...)
			}
			continue
		}
		l.svc.log.writeLines(skipRefused, 1, 0, attrs)
		// The reason stays out: the table's own words may hold values of a row.
		news := RecentCampaign{Campaign: d.Campaign.Campaign, Restaurant: d.Campaign.Restaurant, Lane: l.id, Offset: d.Offset, What: RecentRefused, At: time.Now(), Audience: -1,
			Reason: "the feedback table refuses its rows; see `dinnerbell campaigns` and `dinnerbell dead-letters list`"}
		news.setCounts(st.countsOf(campaign.Key{Campaign: news.Campaign, Restaurant: news.Restaurant}))
		l.svc.recent.add(news)
	}
}

// countsOf returns what the row of a campaign that the committed step has served counts: one
// of its fan-out, or one of late subscribers.
func (st *step) countsOf(k campaign.Key) sink.RowCounts {
	counts := sink.RowCounts{Audience: -1}
	if r := st.rows[k]; r != nil {
		return r.stored
	}
	if st.counts != nil {
		st.counts.EachLate(func(of campaign.Key, c sink.RowCounts) {
			if of == k {
				counts = c
			}
		})
	}
	return counts
}

// refuseUnencodable turns messages into dead letters if the encoding of the sink's
// database lacks characters of their texts. It asks the database only where the
// encoding is not Unicode and a text is not ASCII.
func (l *campaignLookup) refuseUnencodable(ctx context.Context, batch []message) error {
	if l.table.HoldsUnicode() {
		return nil
	}
	for i := range batch {
		m := &batch[i]
		if m.campaign == nil {
			continue
		}
		c := m.campaign
		text := strings.Join([]string{c.RestaurantID, c.ID, c.Content, c.Owner, c.OwnerContact}, "")
		if !strings.ContainsFunc(text, func(r rune) bool { return r >= utf8.RuneSelf }) {
			continue
		}
		why, err := l.table.EncodingMisfit(ctx, l.reader, text)
		if err != nil {
			return err
		}
		if why != "" {
			letter := l.letters.RefusedCampaign(c, campaign.Position{Lane: l.lane, Offset: m.offset}, why)
			letter.Timestamp = m.time
			m.campaign, m.dead = nil, &letter
		}
	}
	return nil
}

// noteRefused records that the table takes no row of a campaign: this step finishes the
// campaign. Steps that are built already drop it once this step is committed.
func (st *step) noteRefused(k *clientPick, why string) {
	why = record.BoundReason(why)
	k.live.refusal.Store(&why)
	st.refused, k.refusal = append(st.refused, k.live), why
	if r := st.rows[k.live.Key()]; r != nil && r.liveCampaign == k.live { // else a late pick
		if r.stateBefore == "" {
			r.stateBefore = r.state
		}
		r.state, r.refusal = sink.StateFinished, why
	}
}

// forgetRefused takes back what a try that has failed has met: the table may take the rows
// in the next one, and then the campaign goes on.
func (st *step) forgetRefused() {
	st.refused = st.refused[:0]
	for _, r := range st.rows {
		if r.stateBefore != "" {
			r.state, r.refusal, r.stateBefore = r.stateBefore, "", ""
		}
	}
}

// whyRefused returns why the table takes no row of the pick's campaign, where another pick
// of the step has met that; else "".
func (st *step) whyRefused(k *clientPick) string {
	for _, l := range st.refused {
		if l.Key() == k.live.Key() && l.version == k.live.version {
			return l.whyRefused()
		}
	}
	return ""
}

// leaveOutClient records a client whose id does not fit the feedback table or a record.
func (st *step) leaveOutClient(l *liveCampaign, reason string, id id.ID) {
	if st.leftOut == nil {
		st.leftOut = map[leftOut][]string{}
	}
	k := leftOut{l, reason}
	st.leftOut[k] = append(st.leftOut[k], id.Text())
}

type leftOut struct {
	live   *liveCampaign
	reason string
}

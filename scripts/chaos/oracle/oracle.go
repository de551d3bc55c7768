// Package oracle compares both sinks with the contract and shares no code with
// the daemon: the history of the round alone decides which notifications must,
// may and must not exist.
package oracle

import (
	"cmp"
	"slices"
	"time"

	"dinnerbell/scripts/chaos/history"
)

// Oracle decides which notifications must, may and must not exist. It follows
// the contract from the history alone.
//
//   - The newest message of one (campaign, restaurant) wins. Messages are sent
//     one at a time, so newest is by record time and by offset alike.
//   - A client MUST be notified who was subscribed, certainly, from the moment
//     at which the newest message was sent (or from its start) until the end,
//     if that campaign lasts.
//   - With late subscribers, it suffices that the client was subscribed, certainly,
//     from the moment of ExpectLate until the end.
//   - A client MAY be notified by any message of the campaign, while that is
//     valid, who was perhaps subscribed at some moment between the message's
//     sending (or start) and the decision.
//   - Anything else must not be.
//   - A client of several restaurants of one campaign is notified once.
type Oracle struct {
	log     *history.Log
	lines   Timelines
	settled time.Duration // the daemons had caught up by then and decide nothing later
	late    time.Duration // who is subscribed since then must be notified; 0: no late subscribers
	// messages are the topic's messages by campaign and restaurant, oldest
	// first, without repeats of the message before.
	messages     map[campaignKey][]sentVersion
	onePartition map[campaignKey]bool                // all messages of the key, repeats included, are on one partition
	malformed    map[RecordPosition]*history.Message // malformed messages by position
}

// campaignKey is a campaign at one restaurant: messages of the same key replace
// each other.
type campaignKey struct{ Campaign, Restaurant string }

// RecordPosition is the position of a message in the campaigns topic.
type RecordPosition struct {
	Partition int32
	Offset    int64
}

// sentVersion is one message of a campaign.
type sentVersion struct {
	history.CampaignFields
	RecordPosition
	number int64
	sent   time.Duration
	from   time.Duration // the earliest moment at which the daemon can join the message
}

// NewOracle returns an oracle without messages. settled is the moment at which
// the daemons had caught up.
func NewOracle(h *history.Log, lines Timelines, settled time.Duration) *Oracle {
	return &Oracle{log: h, lines: lines, settled: settled, messages: map[campaignKey][]sentVersion{}, onePartition: map[campaignKey]bool{}, malformed: map[RecordPosition]*history.Message{}}
}

// ExpectLate sets the moment since which a subscription, however late, must bring the
// live campaigns.
func (o *Oracle) ExpectLate(since time.Duration) { o.late = since }

// AddMessage adds a message that the topic holds at p. The order of the calls
// does not matter.
func (o *Oracle) AddMessage(m *history.Message, p RecordPosition) {
	if m.Fields == nil {
		o.malformed[p] = m
		return
	}
	v := sentVersion{CampaignFields: *m.Fields, RecordPosition: p, number: m.Number, sent: m.Before}
	v.from = max(v.sent, o.log.AtUnix(v.Start))
	t := campaignKey{v.Campaign, v.Restaurant}
	o.messages[t] = append(o.messages[t], v)
}

// Seal orders the messages; AddMessage is not called any more.
func (o *Oracle) Seal() {
	for t, list := range o.messages {
		slices.SortFunc(list, func(a, b sentVersion) int {
			return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.Offset, b.Offset))
		})
		o.onePartition[t] = !slices.ContainsFunc(list, func(v sentVersion) bool { return v.Partition != list[0].Partition })
		// An identical repeat has no effect.
		o.messages[t] = slices.CompactFunc(list, func(a, b sentVersion) bool { return a.CampaignFields == b.CampaignFields })
	}
}

// mustNotify returns every client who must be notified, with the campaign.
func (o *Oracle) mustNotify() map[notificationKey]campaignKey {
	now := o.log.UnixAt(o.settled)
	audience := map[string][]string{} // restaurant → all clients that ever subscribed
	for p := range o.lines {
		audience[p.Restaurant] = append(audience[p.Restaurant], p.Client)
	}
	out := map[notificationKey]campaignKey{}
	for t, list := range o.messages {
		newest := list[len(list)-1]
		if newest.Start > now || newest.End < now+int64(o.log.Life/time.Second)/2 {
			continue // it has not begun, or may have ended before all clients were notified
		}
		for _, client := range audience[t.Restaurant] {
			s := history.Subscription{Client: client, Restaurant: t.Restaurant}
			if o.lines.certainlySince(s, newest.from) || o.late > 0 && o.lines.certainlySince(s, max(newest.from, o.late)) {
				out[notificationKey{t.Campaign, client}] = t
			}
		}
	}
	return out
}

// notificationKey identifies a notification: each one may exist once.
type notificationKey struct{ Campaign, Client string }

// judgeRow returns the finding for a row that must not exist and the reason, or
// "" for a valid row.
func (o *Oracle) judgeRow(w *FeedbackRow) (finding, why string) {
	list := o.messages[campaignKey{w.Campaign, w.Restaurant}]
	if len(list) == 0 {
		return Forbidden, "there is no such campaign for this restaurant"
	}
	finding, why = Mismatched, "no message of the campaign has these fields"
	for _, v := range list {
		if v.CampaignFields != w.CampaignFields {
			continue
		}
		switch decided := o.log.AtUnix(w.Trigger + 1); { // the latest possible moment
		case w.Trigger < w.Start || w.Trigger >= w.End:
			finding, why = Forbidden, "it was decided while the campaign was not valid"
		case decided <= v.sent:
			finding, why = Forbidden, "it was decided before the message was sent"
		case !o.lines.possiblyWithin(history.Subscription{Client: w.Client, Restaurant: w.Restaurant}, v.from, min(decided, o.settled)):
			if finding != Forbidden || why == "" {
				finding, why = Forbidden, "the client was not subscribed at any moment that counts"
			}
		default:
			return "", ""
		}
	}
	return finding, why
}

// findSuperseded returns the rows of an older message that come after a row of
// a newer message of the same campaign. It looks only at campaigns whose
// messages are all on one partition: a lane gives its rows their ids in the
// order of its decisions. rows are in the order of ids.
func (o *Oracle) findSuperseded(rows []FeedbackRow) []*FeedbackRow {
	at := map[campaignKey]int{}
	var out []*FeedbackRow
	for i := range rows {
		w := &rows[i]
		t := campaignKey{w.Campaign, w.Restaurant}
		list := o.messages[t]
		if len(list) < 2 || slices.ContainsFunc(list, func(v sentVersion) bool { return v.Partition != list[0].Partition }) {
			continue
		}
		next := slices.IndexFunc(list[at[t]:], func(v sentVersion) bool { return v.CampaignFields == w.CampaignFields })
		if next < 0 {
			out = append(out, w)
			continue
		}
		at[t] += next
	}
	return out
}

// findCancelled returns the rows of a campaign that come after the daemon had
// accepted the campaign's cancel. The proof of acceptance is a row of a message
// behind the cancel on the same partition: a lane accepts messages in the order
// of offsets, whatever else it waits for, and gives its rows their ids in the
// order of its decisions. rows are in the order of ids.
func (o *Oracle) findCancelled(rows []FeedbackRow) []*FeedbackRow {
	accepted := map[int32]int64{} // partition → largest offset of a message with a row
	var out []*FeedbackRow
	for i := range rows {
		w := &rows[i]
		t := campaignKey{w.Campaign, w.Restaurant}
		list := o.messages[t]
		if !o.onePartition[t] || len(list) == 0 {
			continue
		}
		newest := list[len(list)-1]
		at, served := accepted[newest.Partition]
		if cancels := newest.End <= o.log.UnixAt(newest.sent); cancels && served && at > newest.Offset {
			out = append(out, w)
		}
		if n := slices.IndexFunc(list, func(v sentVersion) bool { return v.CampaignFields == w.CampaignFields }); n >= 0 {
			accepted[newest.Partition] = max(at, list[n].Offset)
		}
	}
	return out
}

package main

import (
	"cmp"
	"slices"
	"time"
)

// oracle knows what must, may and must not have been notified. It shares
// nothing with the daemon: it follows the contract from the history alone.
//
//   - The newest message of one (campaign, restaurant) wins. Messages are sent
//     one at a time, so newest is by record time and by offset alike.
//   - A client MUST be notified who was subscribed, certainly, from the moment
//     at which the newest message was sent (or from its start) until the end,
//     if that campaign lasts.
//   - A client MAY be notified by any message of the campaign, while that is
//     valid, who was perhaps subscribed at some moment between the message's
//     sending (or start) and the decision.
//   - Anything else must not be.
//   - A client of several restaurants of one campaign is notified once.
type oracle struct {
	h       *history
	lines   timelines
	settled time.Duration // everything was caught up then; nothing is decided later
	// messages are those that the topic holds, by (campaign, restaurant), oldest
	// first, without identical repeats of the one before.
	messages map[target][]version
	alone    map[target]bool    // all messages of the target, repeats too, are on one partition
	bad      map[place]*message // malformed ones, by where they are
}

// target is what a message is for.
type target struct{ Campaign, Restaurant string }

// place is where a message is.
type place struct {
	Partition int32
	Offset    int64
}

// version is one message of a target.
type version struct {
	fields
	place
	number int64
	sent   time.Duration
	from   time.Duration // the earliest moment at which it can be joined
}

func newOracle(h *history, lines timelines, settled time.Duration) *oracle {
	return &oracle{h: h, lines: lines, settled: settled, messages: map[target][]version{}, alone: map[target]bool{}, bad: map[place]*message{}}
}

// add takes a message that the topic holds at p. Those of one target are added
// in any order.
func (o *oracle) add(m *message, p place) {
	if m.Fields == nil {
		o.bad[p] = m
		return
	}
	v := version{fields: *m.Fields, place: p, number: m.Number, sent: m.Before}
	v.from = max(v.sent, o.h.at(v.Start))
	t := target{v.Campaign, v.Restaurant}
	o.messages[t] = append(o.messages[t], v)
}

// seal orders the messages.
func (o *oracle) seal() {
	for t, list := range o.messages {
		slices.SortFunc(list, func(a, b version) int {
			return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.Offset, b.Offset))
		})
		o.alone[t] = !slices.ContainsFunc(list, func(v version) bool { return v.Partition != list[0].Partition })
		// An identical repeat does nothing.
		o.messages[t] = slices.CompactFunc(list, func(a, b version) bool { return a.fields == b.fields })
	}
}

// musts lists who must be notified of each campaign.
func (o *oracle) musts() map[pairID]target {
	now := o.h.unix(o.settled)
	audience := map[string][]string{} // restaurant → clients it ever had
	for p := range o.lines {
		audience[p.Restaurant] = append(audience[p.Restaurant], p.Client)
	}
	out := map[pairID]target{}
	for t, list := range o.messages {
		newest := list[len(list)-1]
		if newest.Start > now || newest.End < now+int64(lasting/time.Second)/2 {
			continue // it has not begun, or it has ended, perhaps before everybody had it
		}
		for _, client := range audience[t.Restaurant] {
			if o.lines.throughout(pair{client, t.Restaurant}, newest.from) {
				out[pairID{t.Campaign, client}] = t
			}
		}
	}
	return out
}

// pairID is what is notified once.
type pairID struct{ Campaign, Client string }

// judge says what is wrong with a notification, by the words of the summary, or
// "" if it may be.
func (o *oracle) judge(w *row) (finding, why string) {
	list := o.messages[target{w.Campaign, w.Restaurant}]
	if len(list) == 0 {
		return forbidden, "there is no such campaign for this restaurant"
	}
	finding, why = mismatched, "no message of the campaign has these fields"
	for _, v := range list {
		if v.fields != w.fields {
			continue
		}
		switch decided := o.h.at(w.Trigger + 1); { // at the latest
		case w.Trigger < w.Start || w.Trigger >= w.End:
			finding, why = forbidden, "it was decided while the campaign was not valid"
		case decided <= v.sent:
			finding, why = forbidden, "it was decided before the message was sent"
		case !o.lines.sometime(pair{w.Client, w.Restaurant}, v.from, min(decided, o.settled)):
			if finding != forbidden || why == "" {
				finding, why = forbidden, "the client was not subscribed at any moment that counts"
			}
		default:
			return "", ""
		}
	}
	return finding, why
}

// superseded finds notifications from an older message of a target after one
// from a newer message, where all were on one partition: rows of one lane get
// their ids in the order in which they are decided. rows are in that order.
func (o *oracle) superseded(rows []row) []*row {
	at := map[target]int{}
	var out []*row
	for i := range rows {
		w := &rows[i]
		t := target{w.Campaign, w.Restaurant}
		list := o.messages[t]
		if len(list) < 2 || slices.ContainsFunc(list, func(v version) bool { return v.Partition != list[0].Partition }) {
			continue
		}
		next := slices.IndexFunc(list[at[t]:], func(v version) bool { return v.fields == w.fields })
		if next < 0 {
			out = append(out, w)
			continue
		}
		at[t] += next
	}
	return out
}

// cancelled finds notifications of a campaign that come after its cancel had been
// accepted: a message behind the cancel, on the same partition, was served before.
// A lane accepts its messages in the order of their offsets, whatever it waits for
// otherwise, and its rows get their ids in the order in which they are decided.
// rows are in that order.
func (o *oracle) cancelled(rows []row) []*row {
	accepted := map[int32]int64{} // partition → offset of a message that was served
	var out []*row
	for i := range rows {
		w := &rows[i]
		t := target{w.Campaign, w.Restaurant}
		list := o.messages[t]
		if !o.alone[t] || len(list) == 0 {
			continue
		}
		newest := list[len(list)-1]
		at, served := accepted[newest.Partition]
		if cancels := newest.End <= o.h.unix(newest.sent); cancels && served && at > newest.Offset {
			out = append(out, w)
		}
		if n := slices.IndexFunc(list, func(v version) bool { return v.fields == w.fields }); n >= 0 {
			accepted[newest.Partition] = max(at, list[n].Offset)
		}
	}
	return out
}

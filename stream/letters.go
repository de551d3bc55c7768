package stream

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/record"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/topic"
)

// letterMaker completes dead letters for the dead-letter topic.
type letterMaker struct {
	topic string // of the campaigns
	limit int    // bytes that the dead-letter topic accepts per batch
}

func newLetterMaker(cfg topic.Config, limits topic.Limits) letterMaker {
	return letterMaker{topic: cfg.Campaigns, limit: limits.DeadLetter}
}

// complete completes a letter that was not made from a message, so that it can be sent.
func (m *letterMaker) complete(d record.DeadLetter) record.DeadLetter {
	d.Topic = m.topic
	d.Fit(m.limit, len(d.Value), false)
	return d
}

// lettersOf returns the dead letters of the rows that an insertion has not written.
func (m *letterMaker) lettersOf(n *sink.Insertion, l *liveCampaign) (out []record.DeadLetter) {
	if n.Refused != "" {
		out = append(out, m.complete(l.refusedLetter(n.Refused)))
	}
	for _, why := range slices.Sorted(maps.Keys(n.LeftOut)) {
		out = append(out, m.complete(l.leftOutLetter(why, n.LeftOut[why])))
	}
	return out
}

// Headers of letters that are made here; letters of refused messages do not have them.
const (
	headerReconstructed = "reconstructed" // the value was made from the campaign row
	headerLeftOut       = "clients"       // how many clients were left out; the value names them
)

// refusedLetter returns the dead letter of a campaign that was accepted before the table
// refused its rows. Its value is made from the campaign, since the message itself is
// not kept.
func (l *liveCampaign) refusedLetter(reason string) record.DeadLetter {
	c := l.Campaign
	value, err := json.Marshal(struct {
		RestaurantID string `json:"restaurant_id"`
		ID           string `json:"adv_campaign_id"`
		Content      string `json:"adv_campaign_content"`
		Owner        string `json:"adv_campaign_owner"`
		OwnerContact string `json:"adv_campaign_owner_contact"`
		Start        int64  `json:"adv_campaign_datetime_start"`
		End          int64  `json:"adv_campaign_datetime_end"`
		Created      int64  `json:"datetime_created"`
	}{c.RestaurantID, c.ID, c.Content, c.Owner, c.OwnerContact, c.Start, c.End, c.Created})
	if err != nil {
		value = []byte(c.ID) // cannot happen: strings and numbers always encode
	}
	return l.newLetter(reason, value, record.Header{Key: headerReconstructed, Value: []byte("true")})
}

// leftOutBytes bounds the bytes of the ids that one letter names.
const leftOutBytes = 64 << 10

// leftOutLetter returns the dead letter that names clients who did not get a campaign.
func (l *liveCampaign) leftOutLetter(reason string, clients []string) record.DeadLetter {
	named, size := len(clients), 0
	for i, c := range clients {
		if size += len(c) + 3; size > leftOutBytes && i > 0 {
			named = i
			break
		}
	}
	value, err := json.Marshal(struct {
		ID           string   `json:"adv_campaign_id"`
		RestaurantID string   `json:"restaurant_id"`
		LeftOut      int      `json:"left_out"`
		Clients      []string `json:"client_ids"`
	}{l.ID, l.RestaurantID, len(clients), clients[:named]})
	if err != nil {
		value = []byte(l.ID) // cannot happen: strings and numbers always encode
	}
	letter := l.newLetter(fmt.Sprintf("%d clients are left out: %s", len(clients), reason), value, record.Header{Key: headerLeftOut, Value: strconv.AppendInt(nil, int64(len(clients)), 10)})
	letter.Clients = int64(len(clients))
	return letter
}

func (l *liveCampaign) newLetter(reason string, value []byte, mark record.Header) record.DeadLetter {
	return record.DeadLetter{Partition: l.from.Lane, Offset: l.from.Offset, Timestamp: l.Created * 1000, Reason: reason, Value: value, Headers: []record.Header{mark}}
}

// payload returns the payload that the step ships if all its clients are new and the
// table takes all rows, with the letters of clients that were left out before.
func (m *letterMaker) payload(st *step) *record.Payload {
	p := st.buildPayload()
	p.Dead = slices.Clip(p.Dead)
	keys := slices.SortedFunc(maps.Keys(st.leftOut), func(a, b leftOut) int {
		return cmp.Or(campaign.CompareKeys(a.live.Key(), b.live.Key()), strings.Compare(a.reason, b.reason))
	})
	for _, k := range keys {
		p.Dead = append(p.Dead, m.complete(k.live.leftOutLetter(k.reason, st.leftOut[k])))
	}
	return p
}

// noteLeftOut counts and logs the left-out clients and campaigns of a committed step:
// their letters are behind the letters of refused messages.
func (l *lane) noteLeftOut(p *record.Payload, behind int) {
	for _, d := range p.Dead[behind:] {
		attrs := func() []any { return []any{"lane", l.id, "offset", d.Offset, "reason", d.Reason} }
		if d.Clients > 0 {
			l.svc.counters.unservable.Add(d.Clients)
			if l.svc.skipped.admitLine(skipLeftOut) {
				l.svc.cfg.Logger.Warn("clients are left out; a dead letter names them", attrs()...)
			}
			continue
		}
		l.svc.counters.dead.Add(1)
		l.svc.skipped.logMessage(skipRefused, attrs)
	}
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
			letter := l.letters.complete((&liveCampaign{Campaign: c, from: campaign.Position{Lane: l.lane, Offset: m.offset}}).refusedLetter(why))
			letter.Timestamp = m.time
			m.campaign, m.dead = nil, &letter
		}
	}
	return nil
}

// noteRefused records that the table takes no row of a campaign: this step finishes the
// campaign. Steps that are built already drop it once this step is committed.
func (st *step) noteRefused(l *liveCampaign) {
	st.refused = append(st.refused, l)
	st.rows[l.Key()].state = sink.StateFinished // the row is there: see decider.pickClients
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

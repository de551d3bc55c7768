package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"dinnerbell/stream/campaign"
	"dinnerbell/stream/explain"
	"dinnerbell/stream/topic/fetch"
)

// readLetters looks for the newest dead letters of the campaign.
func (g *gatherer) readLetters(ctx context.Context, t *topicSearch) error {
	name := t.cfg.DeadLetters
	partitions, err := t.partitions(name)
	if err != nil {
		return err
	}
	for _, p := range partitions {
		start, end, err := t.committedRange(ctx, name, p)
		if err != nil {
			return err
		}
		var list []explain.Letter
		from, err := t.scanBackwards(ctx, name, p, start, end, func(r *fetch.Record) bool {
			l, ok := g.matchLetter(r)
			if ok {
				list = append(list, l)
			}
			return ok
		})
		g.e.Letters = append(g.e.Letters, list...)
		if err != nil {
			return err
		}
		if from > start && len(list) == 0 {
			g.addGap(explain.SourceDeadLetter, boundsText(name, p, start, from), "dinnerbell dead-letters list")
		}
	}
	slices.SortStableFunc(g.e.Letters, func(a, b explain.Letter) int { return b.Time.Compare(a.Time) })
	slices.SortStableFunc(g.e.Letters, func(a, b explain.Letter) int { return rankLetter(&a) - rankLetter(&b) })
	g.e.Letters = g.e.Letters[:min(len(g.e.Letters), maxFindings)]
	return nil
}

// rankLetter orders letters: one that names the client must not fall to the bound.
func rankLetter(l *explain.Letter) int {
	if l.NamesClient {
		return 0
	}
	return 1
}

// matchLetter makes evidence of a dead letter that concerns the campaign.
func (g *gatherer) matchLetter(r *fetch.Record) (explain.Letter, bool) {
	if r.Unreadable != "" {
		return explain.Letter{}, false
	}
	m, ok := matchValue(r.Value, g.e.Campaign)
	if !ok || g.e.Restaurant != "" && m.restaurant != "" && m.restaurant != g.e.Restaurant {
		return explain.Letter{}, false
	}
	d := newDeadLetter(r)
	_, refusal := campaign.Parse(r.Value)
	return explain.Letter{
		Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Time: d.Time, Refused: d.Refused, From: d.Topic, FromLane: d.From, FromAt: d.FromAt, Reason: d.Reason,
		Restaurant: m.restaurant, LeftOut: m.leftOut, NamesClient: slices.Contains(m.clients, g.e.Client), Guessed: m.guessed, Invalid: refusal != nil,
	}, true
}

// readMessages looks for messages of the campaign: those that the lanes have not read
// yet, and, of a campaign without a row, the newest ones before.
func (g *gatherer) readMessages(ctx context.Context, t *topicSearch) error {
	name := t.cfg.Campaigns
	partitions, err := t.partitions(name)
	if err != nil {
		return err
	}
	known := slices.ContainsFunc(g.e.Campaigns, func(r explain.CampaignRow) bool { return g.e.Restaurant == "" || r.Restaurant == g.e.Restaurant })
	next := map[int32]int64{}
	for i := range g.e.Lanes {
		next[g.e.Lanes[i].Lane] = g.e.Lanes[i].NextOffset
	}
	var unread, passed []explain.Message
	for _, p := range partitions {
		start, end, err := t.committedRange(ctx, name, p)
		if err != nil {
			return err
		}
		at := min(max(next[p], start), end) // 0 where the lane has no row yet
		to, err := t.scanPartition(ctx, name, p, at, min(end, at+t.limits.Offsets), func(r *fetch.Record) error {
			if m, ok := g.matchMessage(r); ok {
				m.Unread = true
				unread = append(unread, m)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if to < end && len(unread) == 0 {
			g.addGap(explain.SourceMessage, boundsText(name, p, to, end), "dinnerbell explain again once the lane has read on (dinnerbell status)")
		}
		if known {
			continue
		}
		from, err := t.scanBackwards(ctx, name, p, start, at, func(r *fetch.Record) bool {
			m, ok := g.matchMessage(r)
			if ok {
				passed = append(passed, m)
			}
			return ok
		})
		if err != nil {
			return err
		}
		if from > start && len(passed) == 0 {
			g.addGap(explain.SourceMessage, boundsText(name, p, start, from), "a consumer of topic "+name)
		}
	}
	newest := func(a, b explain.Message) int { return b.Time.Compare(a.Time) }
	slices.SortStableFunc(unread, newest)
	slices.SortStableFunc(passed, newest)
	list := slices.Concat(unread, passed)
	g.e.Messages = list[:min(len(list), maxFindings)]
	return nil
}

// matchMessage makes evidence of a message that has the campaign's id.
func (g *gatherer) matchMessage(r *fetch.Record) (explain.Message, bool) {
	if r.Unreadable != "" {
		return explain.Message{}, false
	}
	out := explain.Message{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Time: time.UnixMilli(r.Time)}
	c, err := campaign.Parse(r.Value)
	if err == nil {
		out.Restaurant, out.Start, out.End = c.RestaurantID, time.Unix(c.Start, 0), time.Unix(c.End, 0)
		return out, c.ID == g.e.Campaign && (g.e.Restaurant == "" || c.RestaurantID == g.e.Restaurant)
	}
	m, ok := matchValue(r.Value, g.e.Campaign)
	out.Restaurant, out.Invalid = m.restaurant, err.Reason
	return out, ok && (g.e.Restaurant == "" || m.restaurant == "" || m.restaurant == g.e.Restaurant)
}

func boundsText(name string, partition int32, from, to int64) string {
	return fmt.Sprintf("what %s/%d holds at offsets %d to %d: they lie beyond the bounds of the search", name, partition, from, to-1)
}

// match is what a value tells of itself that need not be a campaign.
type match struct {
	restaurant string
	leftOut    bool     // it names clients who were left out
	clients    []string // these
	guessed    bool     // it is no JSON object; the id was found in its bytes
}

// matchValue reports whether a value that need not be a campaign concerns one: by its
// adv_campaign_id where it is a JSON object, also by a number; else by its bytes.
func matchValue(value []byte, campaignID string) (m match, ok bool) {
	quoted, err := json.Marshal(campaignID)
	if err != nil {
		return m, false
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(bytes.TrimPrefix(value, []byte("\ufeff")), &fields) != nil {
		return match{guessed: true}, bytes.Contains(value, quoted) || bytes.Contains(value, []byte(`"`+campaignID+`"`))
	}
	if textOf(fields["adv_campaign_id"]) != campaignID {
		return m, false
	}
	m.restaurant = textOf(fields["restaurant_id"])
	if raw, ok := fields["client_ids"]; ok {
		m.leftOut = json.Unmarshal(raw, &m.clients) == nil
	}
	return m, true
}

// textOf returns a JSON string's text, and the digits of a number.
func textOf(raw json.RawMessage) string {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text
	}
	return string(raw)
}

package main

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// campaign is one input message.
type campaign struct {
	Restaurant string `json:"restaurant_id"`
	ID         string `json:"adv_campaign_id"`
	Content    string `json:"adv_campaign_content"`
	Owner      string `json:"adv_campaign_owner"`
	Contact    string `json:"adv_campaign_owner_contact"`
	Start      int64  `json:"adv_campaign_datetime_start"` // Unix seconds, inclusive
	End        int64  `json:"adv_campaign_datetime_end"`   // exclusive
	Created    int64  `json:"datetime_created"`

	lane    int32
	clients []string // sorted; nil where nobody needs them
	count   int
}

// newCampaign is valid from now on for a day, with the fields of the
// contract's example in their lengths.
func newCampaign(restaurant string, lane int32, count int) (campaign, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return campaign{}, fmt.Errorf("make campaign id: %w", err)
	}
	var n uint64
	for _, c := range b {
		n = n<<8 | uint64(c)
	}
	now := time.Now().Unix()
	return campaign{
		Restaurant: restaurant, ID: string(appendUUID(nil, 3, n)),
		Content: "first campaign", Owner: "Ivanov Ivan Ivanovich", Contact: "iiivanov@restaurant.ru",
		Start: now - 60, End: now + 24*3600, Created: now - 120,
		lane: lane, count: count,
	}, nil
}

// value is the message.
func (c *campaign) value() ([]byte, error) { return json.Marshal(c) }

// load is what one run delivers: campaigns that are produced at once.
type load struct {
	campaigns []campaign
	total     int // notifications
	lanes     int
}

// newLoad makes n campaigns to the restaurants of a kind, in turn, over lanes.
// withClients fills in who gets them, for contenders that do not look it up.
func newLoad(t *town, kind string, n, lanes int, withClients bool) (*load, error) {
	g, ok := t.group(kind)
	if !ok {
		return nil, fmt.Errorf("make campaigns: the town has no %s restaurants", kind)
	}
	l := &load{lanes: lanes}
	audiences := map[int][]string{}
	for i := range n {
		at := i % g.restaurants
		c, err := newCampaign(g.restaurant(at), int32(i%lanes), g.audience)
		if err != nil {
			return nil, err
		}
		if withClients {
			if audiences[at] == nil {
				audiences[at] = t.audience(g, at)
			}
			c.clients = audiences[at]
		}
		l.campaigns = append(l.campaigns, c)
		l.total += c.count
	}
	return l, nil
}

// sortedLanes splits the campaigns by lane, each in the order of the unique
// index.
func (l *load) sortedLanes() [][]campaign {
	out := make([][]campaign, l.lanes)
	for _, c := range l.campaigns {
		out[c.lane] = append(out[c.lane], c)
	}
	for _, lane := range out {
		slices.SortFunc(lane, func(a, b campaign) int { return strings.Compare(a.ID, b.ID) })
	}
	return out
}

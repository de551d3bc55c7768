package main

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/workload"
)

// campaign is one input message with its lane and audience.
type campaign struct {
	workload.Campaign

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
	id := workload.CampaignID(binary.BigEndian.Uint64(b[:]))
	return campaign{Campaign: workload.NewCampaign(id, restaurant, time.Now().Add(-time.Minute), 25*time.Hour), lane: lane, count: count}, nil
}

// load is what one run delivers: campaigns that are produced at once.
type load struct {
	campaigns []campaign
	total     int // notifications
	lanes     int
}

// newLoad makes n campaigns to the restaurants of a kind, in turn, over lanes.
// withClients fills in who gets them, for contenders that do not look it up.
func newLoad(p *population, kind string, n, lanes int, withClients bool) (*load, error) {
	g, ok := p.Group(kind)
	if !ok {
		return nil, fmt.Errorf("make campaigns: the population has no %s restaurants", kind)
	}
	l := &load{lanes: lanes}
	audiences := map[int][]string{}
	for i := range n {
		at := i % g.Restaurants
		c, err := newCampaign(workload.RestaurantID(g.FirstRestaurant()+at), int32(i%lanes), g.Audience)
		if err != nil {
			return nil, err
		}
		if withClients {
			if audiences[at] == nil {
				audiences[at] = p.Audience(g, at)
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

// encode renders all messages, so that the clock measures none of it.
func encode(topic string, l *load) []*kgo.Record {
	records := make([]*kgo.Record, len(l.campaigns))
	for i := range l.campaigns {
		records[i] = &kgo.Record{Topic: topic, Partition: l.campaigns[i].lane, Value: l.campaigns[i].JSON()}
	}
	return records
}

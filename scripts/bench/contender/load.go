package contender

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/workload"
	"dinnerbell/scripts/bench/deployment"
)

// Campaign is one input message with its lane and audience.
type Campaign struct {
	workload.Campaign

	lane    int32
	clients []string // sorted; nil for contenders that look the clients up
	Count   int
}

// newCampaign returns a campaign that is valid for the next day; its texts have
// the lengths of the contract's example.
func newCampaign(restaurant string, lane int32, count int) (Campaign, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return Campaign{}, fmt.Errorf("make campaign id: %w", err)
	}
	id := workload.CampaignID(binary.BigEndian.Uint64(b[:]))
	return Campaign{Campaign: workload.NewCampaign(id, restaurant, time.Now().Add(-time.Minute), 25*time.Hour), lane: lane, Count: count}, nil
}

// CampaignLoad is the input of one run: campaigns that are produced at once.
type CampaignLoad struct {
	Campaigns []Campaign
	Total     int // notifications
	Lanes     int
}

// NewLoad makes n campaigns to the restaurants of a kind in turn, distributed
// over lanes. withClients adds the audiences, for contenders that do not look
// them up.
func NewLoad(p *deployment.Population, kind string, n, lanes int, withClients bool) (*CampaignLoad, error) {
	g, ok := p.Group(kind)
	if !ok {
		return nil, fmt.Errorf("make campaigns: the population has no %s restaurants", kind)
	}
	l := &CampaignLoad{Lanes: lanes}
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
		l.Campaigns = append(l.Campaigns, c)
		l.Total += c.Count
	}
	return l, nil
}

// sortByLane splits the campaigns by lane and sorts each part by the unique
// index.
func (l *CampaignLoad) sortByLane() [][]Campaign {
	out := make([][]Campaign, l.Lanes)
	for _, c := range l.Campaigns {
		out[c.lane] = append(out[c.lane], c)
	}
	for _, lane := range out {
		slices.SortFunc(lane, func(a, b Campaign) int { return strings.Compare(a.ID, b.ID) })
	}
	return out
}

// EncodeRecords renders all messages outside the measured time.
func EncodeRecords(topic string, l *CampaignLoad) []*kgo.Record {
	records := make([]*kgo.Record, len(l.Campaigns))
	for i := range l.Campaigns {
		records[i] = &kgo.Record{Topic: topic, Partition: l.Campaigns[i].lane, Value: l.Campaigns[i].JSON()}
	}
	return records
}

// warmUpAudience is the audience of the campaign of warmUpLoad.
const warmUpAudience = 100

// warmUpLoad returns one campaign for a lane, to one of the restaurants with a
// hundred subscribers, which differs from the campaigns of l only in its ids.
func warmUpLoad(l *CampaignLoad, lane int) *CampaignLoad {
	c := l.Campaigns[0]
	c.lane = int32(lane)
	c.ID, c.Restaurant = fmt.Sprintf("%s-warm-%d", c.ID, lane), workload.RestaurantID(deployment.MaxLanes+lane)
	return &CampaignLoad{Campaigns: []Campaign{c}}
}

package stream

import (
	"context"
	"fmt"

	"dinnerbell/state/id"
)

// countCampaigns is the dry run of a lane's replay: it judges the same messages and counts,
// for each campaign that would be joined, the clients who have it and who would get it.
func (l *laneReplay) countCampaigns(ctx context.Context) error {
	return l.eachBatch(ctx, &l.messages.parser, func(batch []message, next int64) error {
		todo, counts, err := l.judgeBatch(ctx, l.messages, batch)
		if err != nil {
			return err
		}
		for _, m := range todo {
			if !m.isRunning() {
				continue
			}
			n, have, err := l.countCampaign(ctx, m)
			if err != nil {
				return err
			}
			counts.Notified += n
			counts.Have += have
		}
		l.noteDone(next, counts)
		return nil
	})
}

// countCampaign counts the clients who would get a campaign and those who have it. A
// client of several of its restaurants gets it once.
func (l *laneReplay) countCampaign(ctx context.Context, m *message) (n, have int64, err error) {
	shared := l.index.hasSeveralRestaurants(m.campaign.Key().Digest())
	if m.delivered = l.index.audiences[m.campaign.ID]; m.delivered == "" {
		if m.delivered, m.have, err = l.messages.delivered.loadClients(ctx, m.campaign.Key()); err != nil {
			return 0, 0, err
		}
		if m.delivered == "" {
			return 0, 0, fmt.Errorf("count clients of campaign %s: there is no room for the %d that have it", m.campaign.ID, m.have)
		}
		have = int64(m.have)
	}
	if shared {
		l.index.audiences[m.campaign.ID] = m.delivered
	} else {
		defer l.messages.delivered.deleteCaches(m.delivered)
	}
	restaurant, err := id.Pack(m.campaign.RestaurantID)
	if err != nil {
		return 0, 0, fmt.Errorf("pack restaurant id: %w", err)
	}
	n, err = l.messages.countMissed(ctx, restaurant, m.delivered, shared)
	return n, have, err
}

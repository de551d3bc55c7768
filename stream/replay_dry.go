package stream

import (
	"context"
	"errors"
	"fmt"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
)

// countCampaigns is a lane's replay that changes nothing: the same messages, the same
// outcomes, and for each campaign that would be joined who has it and who would
// get it.
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

// countCampaign tells how many clients would get a campaign and how many have it. A
// client of several of its restaurants gets it once.
func (l *laneReplay) countCampaign(ctx context.Context, m *message) (n, have int64, err error) {
	shared := l.index.hasRestaurants(m.campaign.Key().Digest())
	if m.delivered = l.index.audiences[m.campaign.ID]; m.delivered == "" {
		if m.delivered, m.have, err = l.messages.delivered.loadClients(ctx, m.campaign.ID); err != nil {
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
		defer l.messages.delivered.forget(m.delivered)
	}
	restaurant, err := id.Pack(m.campaign.RestaurantID)
	if err != nil {
		return 0, 0, fmt.Errorf("pack restaurant id: %w", err)
	}
	n, err = l.messages.countMissed(ctx, restaurant, m.delivered, shared)
	return n, have, err
}

// countedTogether is how many clients are read at once.
const countedTogether = 2000

// countMissed counts the clients of a restaurant that are not in a delivered cache,
// and adds them to it if mark says so.
func (i *messageInspector) countMissed(ctx context.Context, restaurant, name id.ID, mark bool) (missed int64, err error) {
	store := i.delivered.store
	scan, err := store.NewScan()
	if err != nil {
		return 0, fmt.Errorf("read subscriptions: %w", err)
	}
	defer func() { err = errors.Join(err, scan.Close()) }()
	list := &id.List{}
	for after, done := id.ID(""), false; !done; {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		list.Reset()
		if after, done, err = scan.Undelivered(list, name, restaurant, after, countedTogether); err != nil {
			return 0, fmt.Errorf("read subscriptions: %w", err)
		}
		for n := range list.Len() {
			if id := list.At(n); id.TextLen() <= campaign.MaxIDBytes && i.parser.table.refusesClient(id) == "" {
				missed++
			}
		}
		if mark {
			if err := store.MarkDelivered(name, list); err != nil {
				return 0, fmt.Errorf("read subscriptions: %w", err)
			}
		}
	}
	return missed, nil
}

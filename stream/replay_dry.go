package stream

import (
	"context"
	"errors"
	"fmt"

	"dinnerbell/state"
)

// countAll is a lane's replay that changes nothing: the same messages, the same
// verdicts, and for each campaign that would be joined who has it and who would
// get it.
func (l *laneReplay) countAll(ctx context.Context) error {
	s := l.probe
	return l.batches(ctx, s, func(batch []message, next int64) error {
		todo, counts, err := s.prepareReplay(ctx, l, batch)
		if err != nil {
			return err
		}
		for _, m := range todo {
			if !m.joins() {
				continue
			}
			n, have, err := l.count(ctx, s, m)
			if err != nil {
				return err
			}
			counts.Notified += n
			counts.Have += have
		}
		l.settled(next, counts)
		return nil
	})
}

// count tells how many clients would get a campaign and how many have it. A
// client of several of its restaurants gets it once.
func (l *laneReplay) count(ctx context.Context, s *session, m *message) (n, have int64, err error) {
	shared := l.plan.isShared(m.campaign.key().digest())
	if m.delivered = l.plan.audiences[m.campaign.ID]; m.delivered == "" {
		if m.delivered, m.have, err = s.loadDelivered(ctx, m.campaign.ID); err != nil {
			return 0, 0, err
		}
		if m.delivered == "" {
			return 0, 0, fmt.Errorf("count clients of campaign %s: there is no room for the %d that have it", m.campaign.ID, m.have)
		}
		have = int64(m.have)
	}
	if shared {
		l.plan.audiences[m.campaign.ID] = m.delivered
	} else {
		defer s.forget(m.delivered)
	}
	restaurant, err := state.PackID(m.campaign.RestaurantID)
	if err != nil {
		return 0, 0, fmt.Errorf("pack restaurant id: %w", err)
	}
	n, err = s.missed(ctx, restaurant, m.delivered, shared)
	return n, have, err
}

// missed counts the clients of a restaurant that are not in a delivered cache,
// and adds them to it if mark says so.
func (s *session) missed(ctx context.Context, restaurant, name state.ID, mark bool) (n int64, err error) {
	store := s.lane.svc.store
	scan, err := store.NewScan()
	if err != nil {
		return 0, fmt.Errorf("read subscriptions: %w", err)
	}
	defer func() { err = errors.Join(err, scan.Close()) }()
	list := &state.IDList{}
	for after, done := state.ID(""), false; !done; {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		list.Reset()
		if after, done, err = scan.Undelivered(list, name, restaurant, after, s.cfg.StepClients); err != nil {
			return 0, fmt.Errorf("read subscriptions: %w", err)
		}
		for i := range list.Len() {
			if id := list.At(i); id.TextLen() <= maxIDBytes && s.table.refusesClient(id) == "" {
				n++
			}
		}
		if mark {
			if err := store.MarkDelivered(name, list); err != nil {
				return 0, fmt.Errorf("read subscriptions: %w", err)
			}
		}
	}
	return n, nil
}

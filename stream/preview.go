package stream

import (
	"context"
	"errors"
	"fmt"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/topic/fetch"
)

// Preview is the effect that a message would have if it were sent to the campaigns topic
// now.
type Preview struct {
	Campaign   string `json:"adv_campaign_id,omitempty"`
	Restaurant string `json:"restaurant_id,omitempty"`
	// Outcome is refused, expired, repeat, scheduled or valid.
	Outcome string `json:"outcome"`
	Reason  string `json:"reason,omitempty"` // of a refusal
	// Audience counts the restaurant's clients. Have counts the clients who have the
	// campaign already, by any restaurant. Notified counts the clients who would get it,
	// at once or, by the subscriptions of now, at its start.
	Audience int64 `json:"audience"`
	Have     int64 `json:"have"`
	Notified int64 `json:"notified"`
	// Hint is set where the restaurant has no subscriptions, and names one that has and
	// whose id SQL may take for this one's.
	Hint string `json:"hint,omitempty"`
}

// Preview judges a message as a lane does, against subscriptions as fresh as a
// lane's, and sends nothing.
func (s *Service) Preview(ctx context.Context, value []byte) (*Preview, error) {
	p, err := s.previewMessage(ctx, value)
	return p, s.explainDenied(ctx, err)
}

func (s *Service) previewMessage(ctx context.Context, value []byte) (*Preview, error) {
	r := &replay{svc: s}
	defer r.close()
	if err := r.connectClients(ctx); err != nil {
		return nil, err
	}
	m := r.messages.parser.parseRecord(&fetch.Record{Topic: s.cfg.Kafka.Campaigns, Value: value})
	if m.dead != nil {
		return &Preview{Outcome: "refused", Reason: m.dead.Reason}, nil
	}
	p := &Preview{Campaign: m.campaign.ID, Restaurant: m.campaign.RestaurantID, Outcome: "valid"}
	if err := s.barrier.Barrier(ctx); err != nil {
		return nil, fmt.Errorf("wait for fresh subscriptions: %w", err)
	}
	batch := []message{m}
	if err := r.messages.lookup.fillVersionsAnew(ctx, batch); err != nil {
		return nil, err
	}
	if dead := batch[0].dead; dead != nil {
		return &Preview{Outcome: "refused", Reason: dead.Reason}, nil
	}
	now := s.now().Unix()
	judged := m.forJudge(0)
	accepted := batch[0].accepted
	if accepted != nil { // sent now, the message comes after the accepted one
		judged.Position = campaign.Position{Lane: accepted.Lane, Offset: accepted.Offset + 1}
	}
	outcome := campaign.Judge(judged, accepted, now)
	switch {
	case m.campaign.End <= now: // of a repeat as well
		p.Outcome = "expired"
	case outcome == campaign.Repeat:
		p.Outcome = "repeat"
	case m.campaign.Start > now:
		p.Outcome = "scheduled"
	}
	return p, r.messages.countAudience(ctx, &m, p)
}

// countAudience fills in Audience, Have, Notified and Hint.
func (i *messageInspector) countAudience(ctx context.Context, m *message, p *Preview) error {
	restaurant, err := id.Pack(m.campaign.RestaurantID)
	if err != nil {
		return fmt.Errorf("pack restaurant id: %w", err)
	}
	if p.Audience, err = i.delivered.store.Audience(restaurant); err != nil {
		return fmt.Errorf("read subscriptions: %w", err)
	}
	if p.Audience == 0 {
		p.Hint = similarHint(i.delivered.store, m.campaign.RestaurantID)
	}
	if m.delivered, m.have, err = i.delivered.loadClients(ctx, m.campaign.Key()); err != nil {
		return err
	}
	if m.delivered == "" {
		return fmt.Errorf("count clients of campaign %s: there is no room for the %d that have it", m.campaign.ID, m.have)
	}
	p.Have = int64(m.have)
	if p.Outcome == "valid" || p.Outcome == "scheduled" {
		p.Notified, err = i.countMissed(ctx, restaurant, m.delivered, false)
	}
	return err
}

// countedTogether is how many clients are read at once.
const countedTogether = 2000

// countMissed counts the clients of a restaurant that are not in a delivered cache, and
// adds them to the cache if mark is set.
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
			if id := list.At(n); id.TextLen() <= campaign.MaxIDBytes && i.parser.table.ClientMisfit(id) == "" {
				missed++
			}
		}
		if mark {
			if err := store.MarkDelivered(name, list, false); err != nil {
				return 0, fmt.Errorf("read subscriptions: %w", err)
			}
		}
	}
	return missed, nil
}

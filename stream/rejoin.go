package stream

import (
	"context"
	"fmt"
	"sync"
	"time"

	"dinnerbell/internal/failpoint"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
)

// maxRejoinLive is how many campaigns of a lane are joined again at once. They share each
// step with the lane's long campaigns.
const maxRejoinLive = 4

// rejoinPage is how many of them are loaded at once.
const rejoinPage = 16

// rejoiner hands decide the campaigns that are joined again for late subscribers, those
// that end first in front.
type rejoiner struct {
	lane      *lane
	claim     *takeover.Claim
	reader    sink.Querier
	late      *lateWork
	gate      *reachGate
	delivered *deliveredCache
	timeout   time.Duration
}

// run works until there are no more, or ctx ends.
func (r *rejoiner) run(ctx context.Context) error {
	if err := r.gate.awaitReached(ctx); err != nil {
		return err
	}
	for {
		under := r.late.rejoining.campaignKeys()
		list, err := bounded(ctx, r.timeout, func(ctx context.Context) ([]sink.DueCampaign, error) {
			return r.claim.Tables.ReadRejoins(ctx, r.reader, r.lane.id, under, rejoinPage)
		})
		if err != nil {
			return err
		}
		if len(list) == 0 && len(under) == 0 {
			return nil // only a takeover makes more
		}
		for _, c := range list {
			if err := r.handOver(ctx, c); err != nil {
				return err
			}
		}
		if len(list) == rejoinPage {
			continue
		}
		select {
		case <-r.late.rejoining.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-time.After(50 * time.Millisecond): // decide may have left one aside that is being edited
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// handOver hands one campaign to decide, with the clients who have it in the delivered
// cache.
func (r *rejoiner) handOver(ctx context.Context, c sink.DueCampaign) error {
	if err := r.lane.awaitFresh(ctx); err != nil {
		return err
	}
	l := &liveCampaign{Campaign: c.Campaign, from: c.From, owner: r.lane.id, started: true, rejoins: true, again: true, version: c.Version, cursor: c.Cursor, approved: c.Approved, resumedAt: c.Cursor}
	l.contested.Store(true)
	l.over = true // the log has its end
	l.taken = c.Notified > 0
	if err := l.packRestaurant(); err != nil {
		return fmt.Errorf("load campaigns of lane %d to join again: %w", r.lane.id, err)
	}
	var err error
	if l.delivered, _, err = r.delivered.loadClients(ctx, l.Key()); err != nil {
		return err
	}
	r.late.rejoining.add(l.Key())
	failpoint.Hit("late/rejoin-loaded")
	select {
	case r.late.rejoins <- l:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rejoinList is what the rejoiner has handed to decide and is not committed as finished
// yet.
type rejoinList struct {
	mu   sync.Mutex
	keys map[campaign.Key]bool
	wake chan struct{} // a campaign has left; one token
}

func (r *rejoinList) add(k campaign.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.keys == nil {
		r.keys = map[campaign.Key]bool{}
	}
	r.keys[k] = true
}

// dropCampaign takes out a campaign that decide has not taken.
func (r *rejoinList) dropCampaign(k campaign.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.keys, k)
	r.wakeLocked()
}

func (r *rejoinList) wakeLocked() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// campaignKeys returns the keys.
func (r *rejoinList) campaignKeys() (out []campaign.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k := range r.keys {
		out = append(out, k)
	}
	return out
}

// applyStep takes out the campaigns that a committed step has finished or lost.
func (r *rejoinList) applyStep(st *step) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.keys) == 0 {
		return
	}
	before := len(r.keys)
	for k, row := range st.rows {
		if row.accept || row.state != "" && row.state != sink.StateRejoin {
			delete(r.keys, k)
		}
	}
	for _, k := range st.lost {
		delete(r.keys, k)
	}
	for _, p := range st.postponed {
		delete(r.keys, p.key)
	}
	if len(r.keys) < before {
		r.wakeLocked()
	}
}

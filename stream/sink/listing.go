package sink

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/stream/campaign"
)

// Phase is where a campaign is in its life, as people speak of it: its row's state, seen
// with its times and the clock of Postgres.
type Phase string

// The phases of a campaign.
const (
	PhaseScheduled Phase = "scheduled" // its start lies ahead
	PhaseWaiting   Phase = "waiting"   // its start has come, and nobody was looked at: it waits for fresh subscriptions, for room or for a daemon
	PhaseLive      Phase = "live"      // in the middle of its fan-out
	PhaseRejoin    Phase = "rejoin"    // everybody was looked at; it is joined again for late subscribers
	PhaseParked    Phase = "parked"    // waits for an operator: its audience exceeds limits.max_audience
	PhasePaused    Phase = "paused"    // an operator holds it
	PhaseFinished  Phase = "finished"  // everybody was looked at
	PhaseRefused   Phase = "refused"   // the feedback table takes no row of it
	PhaseEnded     Phase = "ended"     // its end came before everybody was looked at
	PhaseExpired   Phase = "expired"   // its end had passed when it was received
	PhaseCancelled Phase = "cancelled" // an operator or a later message ended it
)

// PhaseGroup is a part of the phases.
type PhaseGroup int

// The groups, in the order of a listing.
const (
	GroupLive PhaseGroup = iota // not over, and not ahead: waiting, live, rejoin, parked, paused
	GroupScheduled
	GroupDone // finished, refused, ended, expired, cancelled
)

// PhaseSQL is the phase of row c of the campaign table. An expired row of a later
// version is the message that cancelled the one before it.
const PhaseSQL = `CASE
  WHEN c.state = 'cancelled' OR c.state = 'expired' AND c.version > 1 THEN 'cancelled'
  WHEN c.state = 'expired' THEN 'expired'
  WHEN c.state = 'finished' AND c.refusal <> '' THEN 'refused'
  WHEN c.state = 'finished' AND c.finished_at >= to_timestamp(c.adv_campaign_datetime_end) THEN 'ended'
  WHEN c.state = 'finished' THEN 'finished'
  WHEN now() >= to_timestamp(c.adv_campaign_datetime_end) THEN CASE c.state WHEN 'rejoin' THEN 'finished' ELSE 'ended' END
  WHEN c.state IN ('parked', 'paused', 'rejoin') THEN c.state
  WHEN now() < to_timestamp(c.adv_campaign_datetime_start) THEN 'scheduled'
  WHEN c.cursor <> '' THEN 'live'
  ELSE 'waiting' END`

// groupSQL is the PhaseGroup of a phase.
const groupSQL = `CASE WHEN p.phase = 'scheduled' THEN 1 WHEN p.phase IN ('finished', 'refused', 'ended', 'expired', 'cancelled') THEN 2 ELSE 0 END`

// ListedCampaign is a row of the campaign table as a listing shows it.
type ListedCampaign struct {
	Key        campaign.Key
	Lane       int32
	Version    int64
	Phase      Phase
	Start, End int64 // Unix seconds
	Accepted   time.Time
	Started    *time.Time // of its first step; nil: no step has served it
	Finished   *time.Time // nil: it is not over, or never was under way
	Audience   int64      // subscribers; -1: not counted
	Notified   int64      // over all versions
	Already    int64      // clients whom this version left out because they had the campaign from another restaurant or another job
	Operator   string     // the last command of an operator, and who gave it
	Refusal    string     // of PhaseRefused: why
	Sent       time.Time  // of its newest message
	Once       bool       // its audience was looked at once, from Started to Finished: it was never edited, replayed, resumed or joined again
}

// CampaignListing are some campaigns of all lanes.
type CampaignListing struct {
	Now       time.Time // of Postgres
	Campaigns []ListedCampaign
	Matching  int64 // campaigns that match, listed or not
}

// ListCampaigns lists the campaigns of some phase groups, and of one restaurant unless
// that is "": first those under way by their end, then those ahead by their start, then
// those that are over, the last one first. limit bounds the list; 0: all. It reads the
// whole table once or twice.
func (t Tables) ListCampaigns(ctx context.Context, conn *pgx.Conn, groups []PhaseGroup, restaurant string, limit int) (l *CampaignListing, err error) {
	l = &CampaignListing{}
	from := ` FROM ` + t.Campaign + ` c CROSS JOIN LATERAL (SELECT ` + PhaseSQL + ` AS phase) AS p CROSS JOIN LATERAL (SELECT ` + groupSQL + ` AS n) AS g
WHERE ($2 = '' OR c.restaurant_id = $2) AND g.n = ANY ($1::int4[])`
	most := any(limit)
	if limit <= 0 {
		most = nil // LIMIT NULL is none
	}
	wanted := make([]int32, len(groups))
	for i, g := range groups {
		wanted[i] = int32(g)
	}
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, `SELECT now(), count(*)`+from, wanted, restaurant).Scan(&l.Now, &l.Matching); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `SELECT c.adv_campaign_id, c.restaurant_id, c.lane, c.version, p.phase, c.adv_campaign_datetime_start, c.adv_campaign_datetime_end, c.accepted_at,
  coalesce(c.started_at, CASE WHEN c.cursor <> '' THEN c.accepted_at END),
  coalesce(c.finished_at, CASE WHEN c.state = 'finished' THEN c.accepted_at END),
  coalesce(c.audience, CASE WHEN p.phase = 'finished' THEN c.notified + c.already ELSE -1 END), c.notified, c.already, c.operator,
  CASE WHEN p.phase = 'refused' THEN c.refusal ELSE '' END, c.msg_time, c.version = 1 AND NOT c.contested`+from+`
ORDER BY g.n, CASE g.n WHEN 0 THEN c.adv_campaign_datetime_end WHEN 1 THEN c.adv_campaign_datetime_start
  ELSE -extract(epoch FROM coalesce(c.finished_at, c.accepted_at)) END, c.adv_campaign_id COLLATE "C", c.restaurant_id COLLATE "C" LIMIT $3`, wanted, restaurant, most)
		if err != nil {
			return err
		}
		l.Campaigns, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (c ListedCampaign, err error) {
			var sent int64
			err = row.Scan(&c.Key.Campaign, &c.Key.Restaurant, &c.Lane, &c.Version, &c.Phase, &c.Start, &c.End, &c.Accepted, &c.Started, &c.Finished, &c.Audience, &c.Notified, &c.Already, &c.Operator, &c.Refusal, &sent, &c.Once)
			c.Sent = time.UnixMilli(sent)
			return c, err
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list campaigns: %w", err)
	}
	return l, nil
}

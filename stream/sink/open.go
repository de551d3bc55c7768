package sink

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"dinnerbell/stream/campaign"
)

// OpenCampaign is a campaign that waits: for its start, for fresh subscriptions or for
// room, or for an operator.
type OpenCampaign struct {
	Key        campaign.Key
	Title      string // the beginning of its content
	Lane       int32
	Version    int64
	Phase      Phase // scheduled, waiting, live, parked, paused
	Start, End int64 // Unix seconds
	Audience   int64 // subscribers; -1: not counted
	Notified   int64 // over all versions
	Operator   string
}

// openColumns are the columns of an OpenCampaign, of table c.
const openColumns = `c.adv_campaign_id, c.restaurant_id, left(c.adv_campaign_content, 120) AS title, c.lane, c.version, ` + PhaseSQL + ` AS phase,
  c.adv_campaign_datetime_start AS starts, c.adv_campaign_datetime_end AS ends, coalesce(c.audience, -1) AS audience, c.notified, c.operator`

// OpenSQL selects the campaigns of the lanes $1 that wait, at most $2 of each lane and
// state: pending ones whose start has come, the next ones to start, and the held ones.
// Each part reads a partial index.
func (t Tables) OpenSQL() string {
	part := func(where, order string) string {
		//nolint:unqueryvet // the columns are openColumns
		return `(SELECT o.* FROM unnest($1::int4[]) AS l(lane) CROSS JOIN LATERAL (SELECT ` + openColumns + ` FROM ` + t.Campaign + ` c
WHERE c.lane = l.lane AND ` + where + ` AND c.adv_campaign_datetime_end > extract(epoch FROM now())::int8 ORDER BY ` + order + ` LIMIT $2) AS o)`
	}
	const now = `extract(epoch FROM now())::int8`
	return part(`c.state IN ('parked', 'paused')`, `c.adv_campaign_datetime_end`) + ` UNION ALL ` +
		part(`c.state = 'pending' AND c.adv_campaign_datetime_start <= `+now, `c.adv_campaign_datetime_start DESC`) + ` UNION ALL ` +
		part(`c.state = 'pending' AND c.adv_campaign_datetime_start > `+now, `c.adv_campaign_datetime_start`)
}

// ReadOpen returns the campaigns of the lanes that wait, at most limit of each state and
// lane.
func (t Tables) ReadOpen(ctx context.Context, q Querier, lanes []int32, limit int) ([]OpenCampaign, error) {
	rows, err := q.Query(ctx, t.OpenSQL(), lanes, limit)
	if err != nil {
		return nil, fmt.Errorf("list open campaigns: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (c OpenCampaign, err error) {
		err = row.Scan(&c.Key.Campaign, &c.Key.Restaurant, &c.Title, &c.Lane, &c.Version, &c.Phase, &c.Start, &c.End, &c.Audience, &c.Notified, &c.Operator)
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("list open campaigns: %w", err)
	}
	return list, nil
}

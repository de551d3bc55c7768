package sink

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
)

// ExistingIDsSQL selects those of the campaign ids $1 that the campaign table has. It
// asks for each id by itself: LIMIT keeps the planner from joining the whole table.
func (t Tables) ExistingIDsSQL() string {
	return `SELECT k.campaign FROM unnest($1::text[]) AS k(campaign)
CROSS JOIN LATERAL (SELECT FROM ` + t.Campaign + ` c WHERE c.adv_campaign_id = k.campaign LIMIT 1) AS c`
}

// ReadExistingIDs returns those of the campaign ids that the campaign table has.
func (t Tables) ReadExistingIDs(ctx context.Context, q Querier, ids []string) ([]string, error) {
	rows, err := q.Query(ctx, t.ExistingIDsSQL(), ids)
	if err != nil {
		return nil, fmt.Errorf("look up campaigns: %w", err)
	}
	existing, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look up campaigns: %w", err)
	}
	return existing, nil
}

// AcceptedSQL selects each of the keys ($1, $2) with its row, NULLs where there is none,
// and whether the campaign has other restaurants too.
func (t Tables) AcceptedSQL() string {
	return `SELECT k.campaign, k.restaurant, coalesce(c.version, 0), coalesce(c.lane, -1), coalesce(c.msg_lane, -1), coalesce(c.msg_offset, -1), coalesce(c.msg_time, -1), c.fingerprint,
  coalesce(c.state, ''), coalesce(c.operator_time, 0), coalesce(c.approved, false),
  EXISTS (SELECT FROM ` + t.Campaign + ` o WHERE o.adv_campaign_id = k.campaign AND o.restaurant_id <> k.restaurant)
FROM unnest($1::text[], $2::text[]) AS k(campaign, restaurant)
LEFT JOIN LATERAL (SELECT c.version, c.lane, c.msg_lane, c.msg_offset, c.msg_time, c.fingerprint, c.state, c.operator_time, c.approved FROM ` + t.Campaign + ` c WHERE c.adv_campaign_id = k.campaign AND c.restaurant_id = k.restaurant LIMIT 1) AS c ON true`
}

// ReadAccepted calls fn for each key, with the version in the campaign table, nil if
// there is no row, and whether the campaign has other restaurants.
func (t Tables) ReadAccepted(ctx context.Context, q Querier, keys []campaign.Key, fn func(k campaign.Key, accepted *campaign.Version, shared bool)) error {
	campaigns, restaurants := splitKeys(keys)
	rows, err := q.Query(ctx, t.AcceptedSQL(), campaigns, restaurants)
	if err != nil {
		return fmt.Errorf("look up campaigns: %w", err)
	}
	var k campaign.Key
	var n campaign.Version
	var content []byte
	var state string
	var shared bool
	_, err = pgx.ForEachRow(rows, []any{&k.Campaign, &k.Restaurant, &n.RowVersion, &n.Owner, &n.Lane, &n.Offset, &n.Time, &content, &state, &n.HeldAt, &n.Approved, &shared}, func() error {
		if content == nil {
			fn(k, nil, shared)
			return nil
		}
		found := n
		copy(found.Fingerprint[:], content)
		found.Hold = holds[state]
		fn(k, &found, shared)
		return nil
	})
	if err != nil {
		return fmt.Errorf("look up campaigns: %w", err)
	}
	return nil
}

// holds are the states in which a campaign is not delivered.
var holds = map[string]campaign.Hold{StateParked: campaign.Parked, StatePaused: campaign.Paused, StateCancelled: campaign.Cancelled}

func splitKeys(keys []campaign.Key) (campaigns, restaurants []string) {
	campaigns, restaurants = make([]string, len(keys)), make([]string, len(keys))
	for i, k := range keys {
		campaigns[i], restaurants[i] = k.Campaign, k.Restaurant
	}
	return campaigns, restaurants
}

// PendingCampaign is a campaign that is scheduled or live, without its content.
type PendingCampaign struct {
	Key     campaign.Key
	Version int64
	Start   int64
	Since   int64 // milliseconds: when its message was produced, or an operator changed it
}

// ReadPending calls fn for each pending campaign of a lane that starts in (after,
// until], at most limit: first those in the middle of their fan-out, then by start.
func (t Tables) ReadPending(ctx context.Context, q Querier, lane int32, after, until int64, limit int, fn func(PendingCampaign)) error {
	rows, err := q.Query(ctx, `SELECT adv_campaign_id, restaurant_id, version, adv_campaign_datetime_start, greatest(msg_time, operator_time) FROM `+t.Campaign+`
WHERE lane = $1 AND state = 'pending' AND adv_campaign_datetime_start > $2 AND adv_campaign_datetime_start <= $3
ORDER BY cursor = '', adv_campaign_datetime_start LIMIT $4`,
		lane, after, until, limit)
	if err != nil {
		return fmt.Errorf("read start times of lane %d: %w", lane, err)
	}
	var p PendingCampaign
	_, err = pgx.ForEachRow(rows, []any{&p.Key.Campaign, &p.Key.Restaurant, &p.Version, &p.Start, &p.Since}, func() error {
		fn(p)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read start times of lane %d: %w", lane, err)
	}
	return nil
}

// ReadPendingKeys returns those of the keys whose campaign is pending and belongs to the
// lane.
func (t Tables) ReadPendingKeys(ctx context.Context, q Querier, lane int32, keys []campaign.Key) ([]PendingCampaign, error) {
	campaigns, restaurants := splitKeys(keys)
	rows, err := q.Query(ctx, t.PendingKeysSQL(), campaigns, restaurants, lane)
	if err != nil {
		return nil, fmt.Errorf("read start times of lane %d: %w", lane, err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p PendingCampaign, err error) {
		err = row.Scan(&p.Key.Campaign, &p.Key.Restaurant, &p.Version, &p.Start, &p.Since)
		return p, err
	})
	if err != nil {
		return nil, fmt.Errorf("read start times of lane %d: %w", lane, err)
	}
	return list, nil
}

// DueCampaign is a pending campaign with its content, as of its last committed step.
type DueCampaign struct {
	*campaign.Campaign
	Version   int64
	Cursor    id.ID // last client considered; "" before the first
	Contested bool  // a client may have been notified before this version
	Approved  bool  // an operator let it go although its audience exceeds the limit
	From      campaign.Position
	Accepted  time.Time
	Since     int64  // milliseconds: when its message was produced, or an operator changed it
	Audience  *int64 // nil: not counted
	Notified  int64  // over all versions
}

// rowByKeySQL selects the campaign row of a key, as c. Postgres moves no condition from
// outside into it: the index over pending rows would pass for the cheaper one, since the
// statistics count few pending rows most of the time.
func (t Tables) rowByKeySQL(key string) string {
	return `LATERAL (SELECT * FROM ` + t.Campaign + ` r WHERE r.adv_campaign_id = ` + key + `.campaign AND r.restaurant_id = ` + key + `.restaurant LIMIT 1) AS c` //nolint:unqueryvet // the query around it names the columns
}

// PendingKeysSQL selects those of the keys ($1, $2) that are pending on lane $3.
func (t Tables) PendingKeysSQL() string {
	return `SELECT c.adv_campaign_id, c.restaurant_id, c.version, c.adv_campaign_datetime_start, greatest(c.msg_time, c.operator_time) FROM unnest($1::text[], $2::text[]) AS k(campaign, restaurant)
CROSS JOIN ` + t.rowByKeySQL("k") + ` WHERE c.lane = $3 AND c.state = 'pending'`
}

// DueSQL selects the pending campaigns of lane $4 among the keys and versions ($1, $2,
// $3), in their order.
func (t Tables) DueSQL() string {
	return `SELECT ` + dueColumns + `
FROM unnest($1::text[], $2::text[], $3::int8[]) WITH ORDINALITY AS d(campaign, restaurant, version, n)
CROSS JOIN ` + t.rowByKeySQL("d") + ` WHERE c.version = d.version AND c.lane = $4 AND c.state = 'pending' ORDER BY d.n`
}

// ReadDue returns the campaigns of due in their order. A campaign that was edited,
// finished or taken by another lane since is left out.
func (t Tables) ReadDue(ctx context.Context, q Querier, lane int32, due []PendingCampaign) ([]DueCampaign, error) {
	campaigns, restaurants, versions := make([]string, len(due)), make([]string, len(due)), make([]int64, len(due))
	for i, p := range due {
		campaigns[i], restaurants[i], versions[i] = p.Key.Campaign, p.Key.Restaurant, p.Version
	}
	rows, err := q.Query(ctx, t.DueSQL(), campaigns, restaurants, versions, lane)
	if err != nil {
		return nil, fmt.Errorf("load due campaigns of lane %d: %w", lane, err)
	}
	list, err := pgx.CollectRows(rows, scanDue)
	if err != nil {
		return nil, fmt.Errorf("load due campaigns of lane %d: %w", lane, err)
	}
	return list, nil
}

// dueColumns are the columns of a DueCampaign, of table c, as scanDue reads them.
const dueColumns = `c.adv_campaign_id, c.restaurant_id, c.version, c.adv_campaign_content, c.adv_campaign_owner, c.adv_campaign_owner_contact,
  c.adv_campaign_datetime_start, c.adv_campaign_datetime_end, c.datetime_created, c.cursor, c.contested, c.approved, c.msg_lane, c.msg_offset,
  c.accepted_at, greatest(c.msg_time, c.operator_time), c.audience, c.notified`

func scanDue(row pgx.CollectableRow) (d DueCampaign, err error) {
	c := &campaign.Campaign{}
	var cursor []byte
	err = row.Scan(&c.ID, &c.RestaurantID, &d.Version, &c.Content, &c.Owner, &c.OwnerContact, &c.Start, &c.End, &c.Created, &cursor, &d.Contested, &d.Approved, &d.From.Lane, &d.From.Offset, &d.Accepted, &d.Since, &d.Audience, &d.Notified)
	d.Campaign, d.Cursor = c, id.ID(cursor)
	return d, err
}

// DeleteEnded deletes the campaigns of all lanes that ended and were accepted before a
// time. It walks the primary key page by page, each within timeout, so that each
// statement is short and the table needs no index that every campaign would pay for.
// Rows that a step has locked stay.
func (t Tables) DeleteEnded(ctx context.Context, q Querier, before time.Time, page int, timeout time.Duration) (deleted int64, err error) {
	sql := `WITH page AS (
  SELECT adv_campaign_id, restaurant_id FROM ` + t.Campaign + ` WHERE (adv_campaign_id, restaurant_id) > ($1, $2) ORDER BY adv_campaign_id, restaurant_id LIMIT $5),
old AS (
  SELECT c.adv_campaign_id, c.restaurant_id FROM ` + t.Campaign + ` c JOIN page USING (adv_campaign_id, restaurant_id)
  WHERE c.adv_campaign_datetime_end < $3 AND c.accepted_at < $4 FOR UPDATE OF c SKIP LOCKED),
gone AS (DELETE FROM ` + t.Campaign + ` c USING old WHERE c.adv_campaign_id = old.adv_campaign_id AND c.restaurant_id = old.restaurant_id RETURNING 1)
SELECT page.adv_campaign_id, page.restaurant_id, (SELECT count(*) FROM page), (SELECT count(*) FROM gone) FROM page ORDER BY 1 DESC, 2 DESC LIMIT 1`
	var last campaign.Key
	deletePage := func() (seen int, gone int64, err error) {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		rows, err := q.Query(ctx, sql, last.Campaign, last.Restaurant, before.Unix(), before, page)
		if err != nil {
			return 0, 0, err
		}
		var next campaign.Key
		_, err = pgx.ForEachRow(rows, []any{&next.Campaign, &next.Restaurant, &seen, &gone}, func() error { return nil })
		last = next
		return seen, gone, err
	}
	for {
		seen, gone, err := deletePage()
		if err != nil {
			return deleted, fmt.Errorf("delete ended campaigns: %w", err)
		}
		deleted += gone
		if seen < page {
			return deleted, nil
		}
	}
}

package sink

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/failpoint"
	"dinnerbell/stream/campaign"
)

// OperatedCampaign is a campaign's row as an operator's command reads and changes it.
type OperatedCampaign struct {
	Key        campaign.Key
	Lane       int32
	Version    int64
	State      string
	Begun      bool // clients were looked at
	Approved   bool
	Start, End int64 // Unix seconds
	RowCounts

	Finished time.Time // zero: it is not over
	Refusal  string    // why the feedback table takes no row of it; "": it does, or the row is older than layout 4
	Time     time.Time // of the last command; zero: none
	Operator string    // the last command, and who gave it
}

// operatedColumns are the columns of OperatedCampaign.
const operatedColumns = `c.adv_campaign_id, c.restaurant_id, c.lane, c.version, c.state, c.cursor <> '', c.approved, c.adv_campaign_datetime_start, c.adv_campaign_datetime_end,
  coalesce(c.audience, -1), c.notified, c.already, c.operator_time, c.operator,
  coalesce(c.finished_at, CASE WHEN c.state = 'finished' THEN c.accepted_at END), c.refusal`

func scanOperated(row pgx.CollectableRow) (o OperatedCampaign, err error) {
	var ms int64
	var finished *time.Time
	err = row.Scan(&o.Key.Campaign, &o.Key.Restaurant, &o.Lane, &o.Version, &o.State, &o.Begun, &o.Approved, &o.Start, &o.End, &o.Audience, &o.Notified, &o.Already, &ms, &o.Operator, &finished, &o.Refusal)
	if finished != nil {
		o.Finished = *finished
	}
	if ms > 0 {
		o.Time = time.UnixMilli(ms)
	}
	return o, err
}

// ReadCampaign returns the rows of a campaign, one for each of its restaurants, and the
// time of Postgres' clock.
func (t Tables) ReadCampaign(ctx context.Context, q Querier, id string) (list []OperatedCampaign, now time.Time, err error) {
	if err := q.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
		return nil, now, fmt.Errorf("read Postgres' clock: %w", err)
	}
	rows, err := q.Query(ctx, `SELECT `+operatedColumns+` FROM `+t.Campaign+` c WHERE c.adv_campaign_id = $1 ORDER BY c.restaurant_id COLLATE "C"`, id)
	if err != nil {
		return nil, now, fmt.Errorf("read campaign %s: %w", id, err)
	}
	if list, err = pgx.CollectRows(rows, scanOperated); err != nil {
		return nil, now, fmt.Errorf("read campaign %s: %w", id, err)
	}
	return list, now, nil
}

// Operation is what an operator's command makes of a campaign's row.
type Operation struct {
	State    string // the new state
	Approved bool   // sets approved
	Rejoin   bool   // the campaign is joined from the start, and clients who have it are left out
	Cancel   bool   // only messages that are sent from now on may revive it, and they need an approval of their own
	By       string // the command, and who gave it
}

// Operate changes rows as an operator's command wants it, all of them or none, and
// returns them as they are now. It raises their versions, so that the owners' next steps
// miss. The counts of a campaign that is joined from the start begin anew, except the
// number of clients who have it. The error is ErrStaleRow if a row is not as it was read any more: read it again.
//
// A cancel takes effect no earlier than the newest message of the campaign, whatever the
// clock of its producer is.
func (t Tables) Operate(ctx context.Context, conn *pgx.Conn, list []OperatedCampaign, ops []Operation) (after []OperatedCampaign, err error) {
	var campaigns, restaurants, states, were, by []string
	var versions []int64
	var approved, rejoin, cancel []bool
	for i, o := range list {
		campaigns, restaurants, versions, were = append(campaigns, o.Key.Campaign), append(restaurants, o.Key.Restaurant), append(versions, o.Version), append(were, o.State)
		states, by = append(states, ops[i].State), append(by, ops[i].By)
		approved, rejoin, cancel = append(approved, ops[i].Approved), append(rejoin, ops[i].Rejoin), append(cancel, ops[i].Cancel)
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `UPDATE `+t.Campaign+` AS c SET version = c.version + 1, state = u.new_state, approved = (c.approved OR u.approve) AND NOT u.cancel,
  cursor = CASE WHEN u.rejoin THEN ''::bytea ELSE c.cursor END, contested = c.contested OR u.rejoin AND c.cursor <> '',
  audience = CASE WHEN NOT u.rejoin THEN c.audience END, already = CASE WHEN NOT u.rejoin THEN c.already ELSE 0 END,
  started_at = CASE WHEN NOT u.rejoin THEN c.started_at END, finished_at = CASE WHEN NOT u.rejoin THEN c.finished_at END,
  operator_time = greatest(1, (extract(epoch FROM clock_timestamp()) * 1000)::int8, CASE WHEN u.cancel THEN c.msg_time END),
  operator = pg_catalog.format('%s (role %s, from %s)', u.by, session_user, coalesce(host(inet_client_addr()), 'a Unix socket'))
FROM unnest($1::text[], $2::text[], $3::int8[], $4::text[], $5::text[], $6::boolean[], $7::boolean[], $8::boolean[], $9::text[])
  AS u(campaign, restaurant, version, state, new_state, approve, rejoin, cancel, by)
WHERE c.adv_campaign_id = u.campaign AND c.restaurant_id = u.restaurant AND c.version = u.version AND c.state = u.state
RETURNING `+operatedColumns, campaigns, restaurants, versions, were, states, approved, rejoin, cancel, by)
		if err != nil {
			return err
		}
		if after, err = pgx.CollectRows(rows, scanOperated); err != nil {
			return err
		}
		if len(after) != len(list) {
			return ErrStaleRow
		}
		failpoint.Hit("operate/written")
		return nil
	})
	if err != nil && !errors.Is(err, ErrStaleRow) {
		return nil, fmt.Errorf("change campaign %s: %w", list[0].Key.Campaign, err)
	}
	return after, err
}

// OperatedSQL selects the campaigns of the lanes $1 that operators have changed within
// the last $2 milliseconds.
func (t Tables) OperatedSQL() string {
	return `SELECT ` + operatedColumns + ` FROM ` + t.Campaign + ` c
WHERE c.lane = ANY ($1::int4[]) AND c.operator_time > 0 AND c.operator_time > (extract(epoch FROM now()) * 1000)::int8 - $2::int8`
}

// ReadOperated returns the campaigns of the lanes that operators have changed lately.
func (t Tables) ReadOperated(ctx context.Context, q Querier, lanes []int32, within time.Duration) ([]OperatedCampaign, error) {
	rows, err := q.Query(ctx, t.OperatedSQL(), lanes, within.Milliseconds())
	if err != nil {
		return nil, fmt.Errorf("read what operators did: %w", err)
	}
	list, err := pgx.CollectRows(rows, scanOperated)
	if err != nil {
		return nil, fmt.Errorf("read what operators did: %w", err)
	}
	return list, nil
}

// StartsBehind asks for the pending campaigns of a lane that start after a Unix second.
type StartsBehind struct {
	Lane   int32
	Second int64
}

// CountStartsBehind counts the pending campaigns of lanes that start after a second of the
// lane's own, from the index of the pending campaigns.
func (t Tables) CountStartsBehind(ctx context.Context, q Querier, ask []StartsBehind, each func(of StartsBehind, count int64)) error {
	var lanes []int32
	var seconds []int64
	for _, a := range ask {
		lanes, seconds = append(lanes, a.Lane), append(seconds, a.Second)
	}
	rows, err := q.Query(ctx, `SELECT k.lane, k.second, (SELECT count(*) FROM `+t.Campaign+` c
  WHERE c.lane = k.lane AND c.state = '`+StatePending+`' AND c.adv_campaign_datetime_start > k.second)
FROM unnest($1::int4[], $2::int8[]) AS k(lane, second)`, lanes, seconds)
	if err != nil {
		return fmt.Errorf("count scheduled campaigns: %w", err)
	}
	var of StartsBehind
	var count int64
	if _, err := pgx.ForEachRow(rows, []any{&of.Lane, &of.Second, &count}, func() error { each(of, count); return nil }); err != nil {
		return fmt.Errorf("count scheduled campaigns: %w", err)
	}
	return nil
}

// HeldSQL counts the parked and the paused campaigns of the lanes $1 that are not over.
func (t Tables) HeldSQL() string {
	return `SELECT count(*) FILTER (WHERE c.state = 'parked'), count(*) FILTER (WHERE c.state = 'paused') FROM ` + t.Campaign + ` c
WHERE c.lane = ANY ($1::int4[]) AND c.state IN ('parked', 'paused') AND c.adv_campaign_datetime_end > extract(epoch FROM now())`
}

// CountHeld counts the campaigns of the lanes that wait for an operator.
func (t Tables) CountHeld(ctx context.Context, q Querier, lanes []int32) (parked, paused int64, err error) {
	if err := q.QueryRow(ctx, t.HeldSQL(), lanes).Scan(&parked, &paused); err != nil {
		return 0, 0, fmt.Errorf("count campaigns that wait for an operator: %w", err)
	}
	return parked, paused, nil
}

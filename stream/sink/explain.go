package sink

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/state/id"
	"dinnerbell/stream/record"
)

// CampaignDetails is a row of the campaign table as a person reads it, without the
// content.
type CampaignDetails struct {
	Restaurant        string
	Lane              int32
	Version           int64
	MessageLane       int32
	MessageOffset     int64
	MessageTime       int64 // milliseconds
	Start, End        int64 // Unix seconds
	State             string
	Cursor            id.ID
	Accepted          time.Time
	Audience          *int64
	Notified          int64
	Approved          bool
	Command           string // an operator's last command, and who gave it; "": none
	CommandTime       int64  // milliseconds; 0: none
	Started, Finished *time.Time
	Refusal           string // why the feedback table takes no row of it; "": it does
}

// ReadCampaignDetails returns the rows of a campaign by restaurant, at most limit; of one
// restaurant alone where restaurant is not "".
func (t Tables) ReadCampaignDetails(ctx context.Context, q Querier, campaign, restaurant string, limit int) ([]CampaignDetails, error) {
	rows, err := q.Query(ctx, `SELECT restaurant_id, lane, version, msg_lane, msg_offset, msg_time, adv_campaign_datetime_start, adv_campaign_datetime_end,
  state, cursor, accepted_at, audience, notified, approved, operator, operator_time, started_at, finished_at, refusal
FROM `+t.Campaign+` WHERE adv_campaign_id = $1 AND ($2::text = '' OR restaurant_id = $2) ORDER BY restaurant_id LIMIT $3`, campaign, restaurant, limit)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", t.Campaign, err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (d CampaignDetails, err error) {
		var cursor []byte
		err = row.Scan(&d.Restaurant, &d.Lane, &d.Version, &d.MessageLane, &d.MessageOffset, &d.MessageTime, &d.Start, &d.End,
			&d.State, &cursor, &d.Accepted, &d.Audience, &d.Notified, &d.Approved, &d.Command, &d.CommandTime, &d.Started, &d.Finished, &d.Refusal)
		d.Cursor = id.ID(cursor)
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", t.Campaign, err)
	}
	return list, nil
}

// LaneProgress is how far a lane is.
type LaneProgress struct {
	Lane                         int32
	Decided, Shipped, NextOffset int64
}

// ReadLaneProgress returns all lanes in order.
func (t Tables) ReadLaneProgress(ctx context.Context, q Querier) ([]LaneProgress, error) {
	rows, err := q.Query(ctx, `SELECT lane, seq, shipped, next_offset FROM `+t.Lane+` ORDER BY lane`)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", t.Lane, err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p LaneProgress, err error) {
		err = row.Scan(&p.Lane, &p.Decided, &p.Shipped, &p.NextOffset)
		return p, err
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", t.Lane, err)
	}
	return list, nil
}

// ClientRow is a client's row of a campaign in the feedback table.
type ClientRow struct {
	ID         *string // nil where the role may not read it, or the table has no column of that name
	Restaurant string
	Trigger    int64   // Unix second of the decision
	Feedback   *string // its first maxFeedback characters; nil: none came in, or the role may not read it
}

// maxFeedback bounds, in characters, what is read of a feedback: others write it, and it
// may be longer than a message that a connection accepts.
const maxFeedback = 200

// ReadClientRow returns the row of a campaign and a client; nil if there is none. The
// table must be able to hold both ids.
func (t *FeedbackTable) ReadClientRow(ctx context.Context, q Querier, campaign, client string) (*ClientRow, error) {
	var all bool // the right to read every column
	if err := q.QueryRow(ctx, `SELECT pg_catalog.has_table_privilege($1::oid, 'SELECT')`, t.OID).Scan(&all); err != nil {
		return nil, fmt.Errorf("read %s: %w", t.Name, err)
	}
	number, feedback := "NULL::text", "NULL::text"
	if all && t.HasID {
		number = "f.id::text"
	}
	if all && t.HasFeedback {
		feedback = fmt.Sprintf("pg_catalog.left(f.feedback::text, %d)", maxFeedback)
	}
	var r ClientRow
	err := q.QueryRow(ctx, `SELECT `+number+`, `+feedback+`, `+t.ColumnSQL(record.RestaurantColumn, "f")+`, `+t.ColumnSQL(record.TriggerColumn, "f")+`
FROM `+t.Name+` f WHERE f.adv_campaign_id = `+t.ParamSQL(record.CampaignColumn, "$1")+` AND f.client_id = `+t.ParamSQL(record.ClientColumn, "$2")+` LIMIT 1`,
		campaign, client).Scan(&r.ID, &r.Feedback, &r.Restaurant, &r.Trigger)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return nil, nil //nolint:nilnil // no row
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", t.Name, err)
	}
	return &r, nil
}

// FindInOutbox returns the step above after that notified a client of a campaign; found
// is false where no row of the lane's outbox holds it. It reads row by row. A damaged row
// is an error that wraps record.ErrCorrupt.
func (t Tables) FindInOutbox(ctx context.Context, q Querier, lane int32, after int64, campaign string, client id.ID) (seq int64, found bool, err error) {
	rows, err := q.Query(ctx, `SELECT seq, payload FROM `+t.Outbox+` WHERE lane = $1 AND seq > $2 ORDER BY seq`, lane, after)
	if err != nil {
		return 0, false, fmt.Errorf("read %s: %w", t.Outbox, err)
	}
	defer rows.Close()
	for rows.Next() {
		var b []byte
		if err := rows.Scan(&seq, &b); err != nil {
			return 0, false, fmt.Errorf("read %s: %w", t.Outbox, err)
		}
		p, err := record.DecodePayload(seq, b)
		if err != nil {
			return 0, false, err
		}
		if p.Notifies(campaign, client) {
			return seq, true, nil
		}
	}
	if err := rows.Err(); err != nil {
		return 0, false, fmt.Errorf("read %s: %w", t.Outbox, err)
	}
	return 0, false, nil
}

package sink

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/stream/campaign"
	"dinnerbell/stream/record"
)

// ErrNotCounted is wrapped by the errors of feedback that is not counted, since that
// would cost too much or is not possible. The connection can be used on.
var ErrNotCounted = errors.New("not counted")

// maxFeedbackRows bounds the rows that one count reads: each may lie on a page of its
// own.
const maxFeedbackRows = 200_000

// CanCountFeedback returns nil if the feedback of a campaign can be counted by an index:
// the table has the column, and a valid index begins with the campaign.
func (t *FeedbackTable) CanCountFeedback(ctx context.Context, q Querier) error {
	if !t.HasFeedback {
		return fmt.Errorf("%w: table %s has no column feedback", ErrNotCounted, t.Name)
	}
	var indexed bool
	if err := q.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
WHERE i.indrelid = $1 AND i.indisvalid AND i.indpred IS NULL AND a.attname = 'adv_campaign_id')`, t.OID).Scan(&indexed); err != nil {
		return fmt.Errorf("look for an index of %s: %w", t.Name, err)
	}
	if !indexed {
		return fmt.Errorf("%w: no index of table %s begins with adv_campaign_id", ErrNotCounted, t.Name)
	}
	return nil
}

// CountFeedback counts a campaign's rows that hold feedback, within a time. The error is
// an ErrNotCounted where the time or the bound of rows does not suffice, or the role may
// not read the column.
func (t *FeedbackTable) CountFeedback(ctx context.Context, conn *pgx.Conn, k campaign.Key, within time.Duration) (n int64, err error) {
	var rows int64
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, fmt.Sprintf(`SET LOCAL statement_timeout = %d`, max(within.Milliseconds(), 1))); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `SELECT count(*), count(*) FILTER (WHERE r.feedback IS NOT NULL) FROM (SELECT f.feedback FROM `+t.Name+` f
WHERE f.adv_campaign_id = `+t.ParamSQL(record.CampaignColumn, "$1")+` AND f.restaurant_id = `+t.ParamSQL(record.RestaurantColumn, "$2")+` LIMIT `+fmt.Sprint(maxFeedbackRows+1)+`) AS r`,
			k.Campaign, k.Restaurant).Scan(&rows, &n)
	})
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok {
		if refused.Code == queryCanceled {
			return 0, fmt.Errorf("%w: it takes longer than %s", ErrNotCounted, within.Round(time.Millisecond))
		}
		return 0, fmt.Errorf("%w: %s", ErrNotCounted, refused.Message)
	}
	switch {
	case err != nil:
		return 0, fmt.Errorf("count feedback of campaign %s: %w", k.Campaign, err)
	case rows > maxFeedbackRows:
		return 0, fmt.Errorf("%w: it has more than %d rows", ErrNotCounted, maxFeedbackRows)
	}
	return n, nil
}

// queryCanceled is the SQLSTATE of a statement that took too long.
const queryCanceled = "57014"

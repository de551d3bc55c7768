package sink

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// LaneRow is a lane's row as its new owner finds it.
type LaneRow struct {
	Epoch      int64 // of the new owner
	Decided    int64 // P
	Shipped    int64 // K as of the last step
	NextOffset int64

	Cluster, Campaigns, Notifications, Progress string // ids that the lane counts in

	Ends                    []int64 // of the notifications topic, per partition, as of the last step
	Notified, Expired, Dead int64   // the lane's counters
}

// RaiseEpoch makes the caller the lane's owner and returns the lane's row. It waits for
// an open transaction of the former owner. The error is pgx.ErrNoRows where the lane has
// no row.
func (t Tables) RaiseEpoch(ctx context.Context, q Querier, lane int32) (r LaneRow, err error) {
	err = q.QueryRow(ctx, `UPDATE `+t.Lane+` SET epoch = epoch + 1 WHERE lane = $1
RETURNING epoch, seq, next_offset, cluster_id, campaigns_topic_id, notifications_topic_id, progress_topic_id, shipped, notifications_ends, notified, expired, dead`, lane).
		Scan(&r.Epoch, &r.Decided, &r.NextOffset, &r.Cluster, &r.Campaigns, &r.Notifications, &r.Progress, &r.Shipped, &r.Ends, &r.Notified, &r.Expired, &r.Dead)
	return r, err
}

// ReadEpoch returns the lane's epoch.
func (t Tables) ReadEpoch(ctx context.Context, q Querier, lane int32) (epoch int64, err error) {
	if err := q.QueryRow(ctx, `SELECT epoch FROM `+t.Lane+` WHERE lane = $1`, lane).Scan(&epoch); err != nil {
		return 0, fmt.Errorf("read epoch of lane %d: %w", lane, err)
	}
	return epoch, nil
}

// LockLanes keeps other daemons from adding lanes until the transaction ends, and lists
// the existing lanes.
func (t Tables) LockLanes(ctx context.Context, tx Querier) ([]int32, error) {
	if _, err := tx.Exec(ctx, "LOCK TABLE "+t.Lane+" IN SHARE ROW EXCLUSIVE MODE"); err != nil {
		return nil, fmt.Errorf("lock %s: %w; `dinnerbell setup` creates it", t.Lane, err)
	}
	rows, err := tx.Query(ctx, "SELECT lane FROM "+t.Lane)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", t.Lane, err)
	}
	lanes, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", t.Lane, err)
	}
	return lanes, nil
}

// AddLane adds the row of a lane that reads from r.NextOffset and counts in r's ids.
func (t Tables) AddLane(ctx context.Context, tx Querier, lane int32, r *LaneRow) error {
	if _, err := tx.Exec(ctx, `INSERT INTO `+t.Lane+` (lane, next_offset, cluster_id, campaigns_topic_id, notifications_topic_id, progress_topic_id)
VALUES ($1, $2, $3, $4, $5, $6)`, lane, r.NextOffset, r.Cluster, r.Campaigns, r.Notifications, r.Progress); err != nil {
		return fmt.Errorf("add lane %d: %w", lane, err)
	}
	return nil
}

// ownersSQL selects the other sessions whose application_name begins with the mark $1.
// Only sessions of the own role count.
const ownersSQL = ` FROM pg_catalog.pg_stat_activity a WHERE pg_catalog.starts_with(a.application_name, $1::text)
  AND a.datname = current_database() AND a.usename = current_user AND a.pid <> pg_catalog.pg_backend_pid()`

// EndFormerOwners ends the sessions of the mark that are older than the session of conn,
// and returns their number.
func EndFormerOwners(ctx context.Context, conn *pgx.Conn, mark string) (ended int, err error) {
	err = conn.QueryRow(ctx, `SELECT count(*) FILTER (WHERE pg_catalog.pg_terminate_backend(a.pid))`+ownersSQL+`
  AND a.backend_start < (SELECT backend_start FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid())`, mark).Scan(&ended)
	return ended, err
}

// ListOwners describes the sessions of the mark.
func ListOwners(ctx context.Context, conn *pgx.Conn, mark string) ([]string, error) {
	return QueryTexts(ctx, conn, `SELECT pg_catalog.format('%s (process %s, from %s)', a.application_name, a.pid, coalesce(a.client_addr::text, 'a Unix socket'))`+ownersSQL, mark)
}

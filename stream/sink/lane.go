package sink

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"dinnerbell/state/id"
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

	SourceID  string // the source in which SourceLSN counts
	SourceLSN id.LSN // changes of the subscriptions up to here are handled for late subscribers; 0: none
}

// RaiseEpoch makes the caller the lane's owner and returns the lane's row. It waits for
// an open transaction of the former owner. The error is pgx.ErrNoRows where the lane has
// no row.
func (t Tables) RaiseEpoch(ctx context.Context, q Querier, lane int32) (r LaneRow, err error) {
	var lsn int64
	err = q.QueryRow(ctx, `UPDATE `+t.Lane+` SET epoch = epoch + 1 WHERE lane = $1
RETURNING epoch, seq, next_offset, cluster_id, campaigns_topic_id, notifications_topic_id, progress_topic_id, shipped, notifications_ends, notified, expired, dead, source_id, source_lsn`, lane).
		Scan(&r.Epoch, &r.Decided, &r.NextOffset, &r.Cluster, &r.Campaigns, &r.Notifications, &r.Progress, &r.Shipped, &r.Ends, &r.Notified, &r.Expired, &r.Dead, &r.SourceID, &lsn)
	r.SourceLSN = id.LSN(lsn)
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

// ReadHolders describes the sessions that a backend waits for.
func ReadHolders(ctx context.Context, q Querier, backend uint32) ([]string, error) {
	return QueryTexts(ctx, q, holdersSQL, int64(backend))
}

// ReadLongHolders describes the sessions, except a backend, that have held a lock for
// writing or altering on one of the tables for ten seconds or longer.
func (t Tables) ReadLongHolders(ctx context.Context, q Querier, backend uint32) ([]string, error) {
	return QueryTexts(ctx, q, longHoldersSQL, int64(backend), []string{t.Feedback, t.Lane, t.Campaign, t.Outbox})
}

// SQL expressions that describe session a, and the prepared transactions of this
// database.
const (
	aSession = `pg_catalog.format('process %s (%s, role %s, %s, in its transaction since %s; to end it: SELECT pg_terminate_backend(%1$s))',
     a.pid, coalesce(nullif(a.application_name, ''), 'no application_name'), a.usename, coalesce(a.state, 'state unknown'), coalesce(a.xact_start::text, 'an unknown time'))`
	allPrepared = `(SELECT 'a prepared transaction; those of this database are ' || pg_catalog.string_agg(pg_catalog.format('%s of %s, to end it: ROLLBACK PREPARED %L', p.prepared, p.owner, p.gid), ', ')
   FROM pg_catalog.pg_prepared_xacts p WHERE p.database = pg_catalog.current_database())`
)

// holdersSQL describes the sessions that backend $1 waits for.
const holdersSQL = `SELECT coalesce(
  (SELECT ` + aSession + ` FROM pg_catalog.pg_stat_activity a WHERE a.pid = b.pid), CASE WHEN b.pid = 0 THEN ` + allPrepared + ` END,
  'process ' || b.pid) FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids($1::int8::int4)) AS b(pid)`

// longHoldersSQL describes the sessions, except backend $1, that have held a lock for
// writing or altering on one of the tables $2 for ten seconds or longer.
const longHoldersSQL = `SELECT DISTINCT CASE WHEN l.pid IS NULL THEN ` + allPrepared + ` ELSE ` + aSession + ` END
FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.granted AND l.mode NOT IN ('AccessShareLock', 'RowShareLock') AND l.relation IN (SELECT pg_catalog.to_regclass(t) FROM pg_catalog.unnest($2::text[]) t)
  AND l.pid IS DISTINCT FROM $1::int8::int4 AND (l.pid IS NULL OR coalesce(a.xact_start, '-infinity') < pg_catalog.clock_timestamp() - interval '10 seconds') ORDER BY 1`

package stream

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/stream/sink"
)

// explainSlow says why a step was not finished in time: whose lock it waits for,
// or that the table is slow. The step's connection must be open still.
func (c *committer) explainSlow(ctx context.Context, err error) error {
	e, _ := errors.AsType[*pgconn.PgError](err)
	locked := e != nil && e.Code == sink.LockNotAvailable
	if ctx.Err() != nil || !locked && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	holders, failed := bounded(ctx, c.claim.Config.SinkTimeout, func(ctx context.Context) ([]string, error) {
		if locked { // the server has given up waiting: it does not say any more for whom
			return sink.QueryTexts(ctx, c.reader, longHoldersSQL, int64(c.claim.Conn.PgConn().PID()), []string{c.claim.Tables.Feedback, c.claim.Tables.Lane, c.claim.Tables.Campaign, c.claim.Tables.Outbox})
		}
		return sink.QueryTexts(ctx, c.reader, holdersSQL, int64(c.claim.Conn.PgConn().PID()))
	})
	switch {
	case failed != nil || locked && len(holders) == 0: // Postgres does not answer at all
		return err
	case locked:
		return fmt.Errorf("%w: locks of the tables are held by %s", err, strings.Join(holders, "; "))
	case len(holders) > 0:
		return fmt.Errorf("%w: it waits for a lock of %s", err, strings.Join(holders, "; "))
	}
	before := c.lane.stepClients()
	c.lane.narrowSteps()
	return fmt.Errorf("%w: Postgres does not finish a step of %d clients within %s; are triggers, constraints or disk of feedback table %s slow? The next steps have %d", err, before, c.claim.Config.SinkTimeout, c.claim.Tables.Feedback, c.lane.stepClients())
}

// session a in words, and the prepared transactions of this database.
const (
	aSession = `pg_catalog.format('process %s (%s, role %s, %s, in its transaction since %s; to end it: SELECT pg_terminate_backend(%1$s))',
     a.pid, coalesce(nullif(a.application_name, ''), 'no application_name'), a.usename, coalesce(a.state, 'state unknown'), coalesce(a.xact_start::text, 'an unknown time'))`
	allPrepared = `(SELECT 'a prepared transaction; those of this database are ' || pg_catalog.string_agg(pg_catalog.format('%s of %s, to end it: ROLLBACK PREPARED %L', p.prepared, p.owner, p.gid), ', ')
   FROM pg_catalog.pg_prepared_xacts p WHERE p.database = pg_catalog.current_database())`
)

// holdersSQL names those that backend $1 waits for.
const holdersSQL = `SELECT coalesce(
  (SELECT ` + aSession + ` FROM pg_catalog.pg_stat_activity a WHERE a.pid = b.pid), CASE WHEN b.pid = 0 THEN ` + allPrepared + ` END,
  'process ' || b.pid) FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids($1::int8::int4)) AS b(pid)`

// longHoldersSQL names those beside backend $1 that hold a lock which goes with
// writing or altering on one of the tables $2, for ten seconds at least.
const longHoldersSQL = `SELECT DISTINCT CASE WHEN l.pid IS NULL THEN ` + allPrepared + ` ELSE ` + aSession + ` END
FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.granted AND l.mode NOT IN ('AccessShareLock', 'RowShareLock') AND l.relation IN (SELECT pg_catalog.to_regclass(t) FROM pg_catalog.unnest($2::text[]) t)
  AND l.pid IS DISTINCT FROM $1::int8::int4 AND (l.pid IS NULL OR coalesce(a.xact_start, '-infinity') < pg_catalog.clock_timestamp() - interval '10 seconds') ORDER BY 1`

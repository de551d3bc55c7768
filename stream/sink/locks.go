package sink

import "context"

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

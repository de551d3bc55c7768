package source

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// slowSlot is how long the creation of a slot may wait before the operator is shown
// the reason, and how often the reason is looked up again.
const slowSlot = 10 * time.Second

// blockingTransaction is a transaction for which one of the daemon's backends
// waits.
type blockingTransaction struct {
	prepared string // the name of a prepared transaction, which belongs to no session; else ""
	pid      int32  // of the session that has it; 0 for a prepared one
	database string
	role     string
	app      string
	query    string // the last statement; "" if the role may not see it
	since    string // when it was prepared or began; "" if the role may not see it
}

// String names the transaction and the statement that ends it.
func (b *blockingTransaction) String() string {
	var s strings.Builder
	if b.prepared != "" {
		fmt.Fprintf(&s, "prepared transaction '%s' of role %s in database %s", b.prepared, b.role, b.database)
	} else {
		fmt.Fprintf(&s, "the transaction of PID %d (role %s, application_name %q, database %s", b.pid, b.role, b.app, b.database)
		if b.query != "" {
			fmt.Fprintf(&s, ", last statement %q", b.query)
		}
		s.WriteString(")")
	}
	if b.since != "" {
		s.WriteString(", since " + b.since)
	}
	if b.prepared != "" {
		s.WriteString(" (to mend, in that database: ROLLBACK PREPARED " + quoteLiteral(b.prepared) + ", or COMMIT PREPARED)")
	} else {
		fmt.Fprintf(&s, " (to mend: end it, or SELECT pg_terminate_backend(%d))", b.pid)
	}
	return s.String()
}

// quoteLiteral makes an SQL literal.
func quoteLiteral(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// findBlockers finds the transactions for which a backend waits. Every role sees
// the locks, but not every transaction in pg_stat_activity. A prepared transaction
// has no process; its locks belong to the virtual transaction that holds the lock
// of its id.
// https://www.postgresql.org/docs/current/view-pg-locks.html
func findBlockers(ctx context.Context, sql *pgx.Conn, pid uint32) ([]blockingTransaction, error) {
	ctx, cancel := context.WithTimeout(ctx, QueryTimeout)
	defer cancel()
	rows, err := sql.Query(ctx, `
		SELECT p.gid, 0, p.database::text, p.owner::text, '', '', p.prepared::text
		FROM pg_prepared_xacts p WHERE EXISTS (
		  SELECT FROM pg_locks w
		  JOIN pg_locks h ON h.granted AND h.pid IS NULL AND h.locktype = w.locktype AND h.transactionid IS NOT DISTINCT FROM w.transactionid
		    AND h.database IS NOT DISTINCT FROM w.database AND h.relation IS NOT DISTINCT FROM w.relation
		  JOIN pg_locks own ON own.pid IS NULL AND own.virtualtransaction = h.virtualtransaction AND own.locktype = 'transactionid'
		  WHERE w.pid = $1 AND NOT w.granted AND own.transactionid = p.transaction)
		UNION ALL
		SELECT '', a.pid, coalesce(a.datname::text, ''), coalesce(a.usename::text, ''), coalesce(a.application_name, ''),
		       CASE WHEN a.query <> '<insufficient privilege>' THEN left(a.query, 200) ELSE '' END, coalesce(a.xact_start::text, '')
		FROM unnest(pg_blocking_pids($1)) AS b (pid) JOIN pg_stat_activity a USING (pid)`, int32(pid))
	if err != nil {
		return nil, fmt.Errorf("read the transactions that PID %d waits for: %w", pid, err)
	}
	blockers, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (b blockingTransaction, err error) {
		err = row.Scan(&b.prepared, &b.pid, &b.database, &b.role, &b.app, &b.query, &b.since)
		return b, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the transactions that PID %d waits for: %w", pid, err)
	}
	return blockers, nil
}

// WaitReport says how a long wait for open transactions is reported.
type WaitReport struct {
	Show  func(string)  // receives the transactions that the slot waits for
	After time.Duration // the wait before each report; 0: slowSlot
}

// ExplainSlotWait runs create, which makes a slot over the walsender pid. While
// that waits, it reports each transaction that was open before, to the log and to
// w.Show. It uses sql meanwhile, and leaves the connection good.
func (db *DB) ExplainSlotWait(ctx context.Context, sql *pgx.Conn, name string, pid uint32, w WaitReport, create func() (CreatedSlot, error)) (CreatedSlot, error) {
	waiting, created := context.WithCancel(ctx)
	explained := make(chan struct{})
	go func() {
		defer close(explained)
		said := ""
		for Sleep(waiting, cmp.Or(w.After, slowSlot)) {
			// The end of the wait must not cancel a query: that would end the
			// connection.
			blockers, err := findBlockers(context.WithoutCancel(ctx), sql, pid)
			if err != nil || waiting.Err() != nil {
				return
			}
			names := make([]string, len(blockers))
			for i := range blockers {
				names[i] = blockers[i].String()
			}
			text := strings.TrimSuffix("creating the slot waits for open transactions: "+strings.Join(names, "; "), ": ")
			w.Show(text)
			if text != said {
				db.log.Warn("a snapshot has to wait", "slot", name, "reason", text)
				said = text
			}
		}
	}()
	slot, err := create()
	created()
	<-explained
	return slot, err
}

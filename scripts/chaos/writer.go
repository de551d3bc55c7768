package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/testenv"
	"dinnerbell/scripts/chaos/history"
	"dinnerbell/scripts/chaos/scenario"
)

// receiptTable is a table of the workload's own. Each transaction inserts its
// number, so that a writer can look up whether a transaction without an answer
// to COMMIT was committed.
const receiptTable = `CREATE TABLE public.chaos_receipts (number int8 PRIMARY KEY)`

// subscriptionWriter is one connection that changes subscriptions.
type subscriptionWriter struct {
	round    *round
	rows     *scenario.WriterRows
	conn     *pgx.Conn
	numbers  *atomic.Int64
	truncate *sync.RWMutex          // the transaction that truncates holds it for writing
	allRows  []*scenario.WriterRows // the rows of all writers, for that transaction
	stolen   []history.Subscription // rows that a truncate took from this writer; guarded by truncate
}

// firstTruncate is the transaction of the first writer that empties the table in any case:
// the store grows for good with the first one, which a soak must not take for a leak.
const firstTruncate = 20

// commitUntilDone commits transactions until ctx ends. It completes the transaction that it
// has begun by then.
func (w *subscriptionWriter) commitUntilDone(ctx context.Context) error {
	defer w.closeConn()
	for n := 1; ; n++ {
		if !testenv.Pause(ctx, w.round.workloadPace().drawTransactionPause(w.rows.Random)) {
			return nil
		}
		if w.rows.Writer == 0 && (n == firstTruncate || w.rows.Random.IntN(600) == 0) {
			if err := w.commitTruncate(ctx); err != nil {
				return err
			}
			continue
		}
		if err := w.commitNext(ctx); err != nil {
			return err
		}
	}
}

// commitNext runs one transaction beside those of the other writers.
func (w *subscriptionWriter) commitNext(ctx context.Context) error {
	w.truncate.RLock()
	defer w.truncate.RUnlock()
	if w.stolen == nil {
		return w.commitDraft(ctx, w.rows.NextTransaction())
	}
	d := w.rows.DraftRefill(w.stolen)
	err := w.commitDraft(ctx, d)
	if d.Committed {
		w.stolen = nil
	}
	return err
}

// commitTruncate empties the table while no other writer is at work, so that
// its place in the order is known.
func (w *subscriptionWriter) commitTruncate(ctx context.Context) error {
	w.truncate.Lock()
	defer w.truncate.Unlock()
	rows := make([][]history.Subscription, len(w.allRows))
	for i, b := range w.allRows {
		rows[i] = b.DrawMost()
	}
	d := w.rows.DraftTruncate(w.allRows, rows)
	if err := w.commitDraft(ctx, d); err != nil || !d.Committed {
		return err
	}
	for i, o := range w.round.writers {
		if o != w {
			o.rows.Apply(d.Transaction)
		}
		if len(d.Changes) == 0 {
			o.stolen = rows[i]
		}
	}
	return nil
}

// commitDraft runs a transaction and records it. An error before COMMIT is sent
// aborts the transaction. After that, the outcome is in doubt until the
// database answers again.
func (w *subscriptionWriter) commitDraft(ctx context.Context, d *scenario.TransactionDraft) error {
	if len(d.SQL) == 0 {
		return nil
	}
	d.Number = w.numbers.Add(1)
	sent, err := w.runStatements(ctx, d)
	d.After = w.round.log.Now()
	if err != nil {
		// Connections may fail. A statement that Postgres refuses is a mistake
		// of this program.
		if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) && pgErr.Code < "57" && pgErr.Code[:2] != "08" {
			return fmt.Errorf("run transaction %s: %w", d.Kind, err)
		}
		w.closeConn()
		if sent {
			if err := w.resolveDoubt(d); err != nil {
				return err
			}
		}
	}
	if d.Committed {
		w.rows.Apply(d.Transaction)
	}
	w.round.log.AddTransaction(d.Transaction)
	return nil
}

// runStatements runs the statements. sent reports whether COMMIT was, or may
// have been, sent.
func (w *subscriptionWriter) runStatements(ctx context.Context, d *scenario.TransactionDraft) (sent bool, err error) {
	if err := w.connectAgain(ctx); err != nil {
		return false, err
	}
	exec := func(sql string) error {
		// The end of the workload does not interrupt a transaction.
		bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
		defer cancel()
		_, err := w.conn.Exec(bound, sql, pgx.QueryExecModeSimpleProtocol)
		return err
	}
	if err := exec("BEGIN"); err != nil {
		return false, err
	}
	for _, sql := range d.SQL {
		if err := exec(sql); err != nil {
			return false, err
		}
	}
	if d.Rollback {
		return false, exec("ROLLBACK")
	}
	if err := exec(fmt.Sprintf("INSERT INTO chaos_receipts VALUES (%d)", d.Number)); err != nil {
		return false, err
	}
	d.Before = w.round.log.Now()
	if err := exec("COMMIT"); err != nil {
		return true, err
	}
	d.Committed = true
	return true, nil
}

// resolveDoubt asks whether a transaction in doubt was committed. It asks until
// the database answers, since the oracle needs the answer.
func (w *subscriptionWriter) resolveDoubt(d *scenario.TransactionDraft) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		err := w.connectAgain(ctx)
		if err == nil {
			err = w.conn.QueryRow(ctx, "SELECT count(*) = 1 FROM chaos_receipts WHERE number = $1", d.Number).Scan(&d.Committed)
		}
		if err == nil {
			d.Doubt, d.After = true, w.round.log.Now()
			return nil
		}
		w.closeConn()
		if !testenv.Pause(ctx, 50*time.Millisecond) {
			return fmt.Errorf("ask whether transaction %d was committed: %w", d.Number, err)
		}
	}
}

// connectAgain connects, as often as necessary.
func (w *subscriptionWriter) connectAgain(ctx context.Context) error {
	for w.conn == nil {
		conn, err := w.round.servers.connectPostgres(ctx, w.round.database)
		if err == nil {
			w.conn = conn
			return nil
		}
		if !testenv.Pause(ctx, 20*time.Millisecond) {
			return err
		}
	}
	return nil
}

func (w *subscriptionWriter) closeConn() {
	if w.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = w.conn.Close(ctx) // the connection may be broken
	w.conn = nil
}

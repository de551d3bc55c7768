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
	"dinnerbell/scripts/chaos/random"
	"dinnerbell/scripts/chaos/scenario"
)

// receipts is a table of the workload's own: each transaction leaves its number
// there, so that one whose COMMIT was not answered can be looked up.
const receipts = `CREATE TABLE public.chaos_receipts (number int8 PRIMARY KEY)`

// writer is one connection that changes subscriptions.
type writer struct {
	r        *round
	book     *scenario.WriterRows
	conn     *pgx.Conn
	numbers  *atomic.Int64
	truncate *sync.RWMutex          // held for writing by the transaction that truncates
	all      []*scenario.WriterRows // everybody's, for that transaction
	stolen   []history.Subscription // what a truncate took from this book; guarded by truncate
}

// run commits transactions until ctx ends. What it is in the middle of then is
// brought to an end.
func (w *writer) run(ctx context.Context) error {
	defer w.hangUp()
	for {
		if !testenv.Pause(ctx, random.Duration(w.book.Random, 2*time.Millisecond, 60*time.Millisecond)) {
			return nil
		}
		if w.book.Writer == 0 && w.book.Random.IntN(600) == 0 {
			if err := w.truncates(ctx); err != nil {
				return err
			}
			continue
		}
		if err := w.one(ctx); err != nil {
			return err
		}
	}
}

// one does one transaction beside those of the other writers.
func (w *writer) one(ctx context.Context) error {
	w.truncate.RLock()
	defer w.truncate.RUnlock()
	if w.stolen == nil {
		return w.commit(ctx, w.book.NextTransaction())
	}
	d := w.book.DraftRefill(w.stolen)
	err := w.commit(ctx, d)
	if d.Committed {
		w.stolen = nil
	}
	return err
}

// truncates empties the table while no other writer is at work, so that its
// place in the order is known.
func (w *writer) truncates(ctx context.Context) error {
	w.truncate.Lock()
	defer w.truncate.Unlock()
	rows := make([][]history.Subscription, len(w.all))
	for i, b := range w.all {
		rows[i] = b.DrawMost()
	}
	d := w.book.DraftTruncate(w.all, rows)
	if err := w.commit(ctx, d); err != nil || !d.Committed {
		return err
	}
	for i, o := range w.r.writers {
		if o != w {
			o.book.Apply(d.Transaction)
		}
		if len(d.Changes) == 0 {
			o.stolen = rows[i]
		}
	}
	return nil
}

// commit runs a transaction and notes it. An error before COMMIT is sent aborts
// it; one after leaves it in doubt until the database can be asked.
func (w *writer) commit(ctx context.Context, d *scenario.TransactionDraft) error {
	if len(d.SQL) == 0 {
		return nil
	}
	d.Number = w.numbers.Add(1)
	sent, err := w.try(ctx, d)
	d.After = w.r.h.Now()
	if err != nil {
		// Only a connection may fail; a statement that Postgres refuses is a
		// mistake of this program.
		if pgErr := (*pgconn.PgError)(nil); errors.As(err, &pgErr) && pgErr.Code < "57" && pgErr.Code[:2] != "08" {
			return fmt.Errorf("run transaction %s: %w", d.Kind, err)
		}
		w.hangUp()
		if sent {
			if err := w.resolve(d); err != nil {
				return err
			}
		}
	}
	if d.Committed {
		w.book.Apply(d.Transaction)
	}
	w.r.h.AddTransaction(d.Transaction)
	return nil
}

// try runs the statements. sent says that COMMIT was sent, or may have been.
func (w *writer) try(ctx context.Context, d *scenario.TransactionDraft) (sent bool, err error) {
	if err := w.dial(ctx); err != nil {
		return false, err
	}
	exec := func(sql string) error {
		// The workload's own end does not cut a transaction in the middle.
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
	d.Before = w.r.h.Now()
	if err := exec("COMMIT"); err != nil {
		return true, err
	}
	d.Committed = true
	return true, nil
}

// resolve asks whether a transaction in doubt was committed. It asks until the
// database answers: without an answer nothing after it can be judged.
func (w *writer) resolve(d *scenario.TransactionDraft) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		err := w.dial(ctx)
		if err == nil {
			err = w.conn.QueryRow(ctx, "SELECT count(*) = 1 FROM chaos_receipts WHERE number = $1", d.Number).Scan(&d.Committed)
		}
		if err == nil {
			d.Doubt, d.After = true, w.r.h.Now()
			return nil
		}
		w.hangUp()
		if !testenv.Pause(ctx, 50*time.Millisecond) {
			return fmt.Errorf("ask whether transaction %d was committed: %w", d.Number, err)
		}
	}
}

// dial connects, as often as it takes.
func (w *writer) dial(ctx context.Context) error {
	for w.conn == nil {
		conn, err := w.r.w.connect(ctx, w.r.database)
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

func (w *writer) hangUp() {
	if w.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = w.conn.Close(ctx) // it may be broken
	w.conn = nil
}

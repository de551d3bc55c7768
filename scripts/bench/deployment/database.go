package deployment

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/testenv"
)

// FeedbackIndex is the unique index that setup makes, for the other contenders'
// tables.
const FeedbackIndex = `CREATE UNIQUE INDEX feedback_campaign_client ON public.subscribers_feedback (adv_campaign_id, client_id)`

// Database is one database with the tables of the contract.
type Database struct {
	name string
	URL  string
	Conn *pgx.Conn
}

// NewDatabase makes a database. Each contender has its own, so that the slot of
// one does not decode the WAL of another.
func (s *Servers) NewDatabase(ctx context.Context, name string) (*Database, error) {
	if err := s.execAdmin(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
		return nil, fmt.Errorf("create database: %w", err)
	}
	d := &Database{name: name, URL: s.Postgres.URL(name)}
	var err error
	if d.Conn, err = pgx.Connect(ctx, d.URL); err != nil {
		return nil, fmt.Errorf("connect to database %s: %w", name, err)
	}
	return d, d.Exec(ctx, testenv.ContractTables)
}

// execAdmin runs one statement outside the contenders' databases.
func (s *Servers) execAdmin(ctx context.Context, sql string, args ...any) error {
	conn, err := pgx.Connect(ctx, s.Postgres.URL(""))
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // no query is running
	_, err = conn.Exec(ctx, sql, args...)
	return err
}

// Exec runs one statement.
func (d *Database) Exec(ctx context.Context, sql string, args ...any) error {
	if _, err := d.Conn.Exec(ctx, sql, args...); err != nil {
		return fmt.Errorf("run %.60s: %w", sql, err)
	}
	return nil
}

// Fill inserts the population's subscriptions.
func (d *Database) Fill(ctx context.Context, t *Population) error {
	_, err := d.Conn.PgConn().CopyFrom(ctx, &subscriptionCopy{people: t}, "COPY public.subscribers_restaurants (id, client_id, restaurant_id) FROM STDIN (FORMAT binary)")
	if err != nil {
		return fmt.Errorf("insert subscriptions: %w", err)
	}
	if err := d.Exec(ctx, `SELECT setval('public.subscribers_restaurants_id_seq', $1)`, t.Rows()); err != nil {
		return err
	}
	return d.Exec(ctx, `VACUUM (ANALYZE) public.subscribers_restaurants`)
}

// ResetFeedback empties the feedback table and makes a checkpoint, so that each
// measurement starts from the same state.
func (d *Database) ResetFeedback(ctx context.Context) error {
	if err := d.Exec(ctx, `TRUNCATE public.subscribers_feedback`); err != nil {
		return err
	}
	return d.Exec(ctx, `CHECKPOINT`)
}

// CountRows counts the rows of a table.
func (d *Database) CountRows(ctx context.Context, table string) (n int64, err error) {
	if err := d.Conn.QueryRow(ctx, `SELECT count(*) FROM `+table).Scan(&n); err != nil {
		return 0, fmt.Errorf("count rows of %s: %w", table, err)
	}
	return n, nil
}

// DropSlot removes a replication slot as soon as it is inactive: a walsender
// notices the end of its client with a delay.
func (d *Database) DropSlot(ctx context.Context, slot string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := d.Exec(ctx, `SELECT pg_drop_replication_slot($1)`, slot)
		var pgErr *pgconn.PgError
		if err == nil || !errors.As(err, &pgErr) || pgErr.Code != "55006" { // object_in_use
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

// DropDatabase removes the database and its slots, which would decode and
// retain further WAL.
func (s *Servers) DropDatabase(ctx context.Context, d *Database) error {
	rows, err := d.Conn.Query(ctx, `SELECT slot_name FROM pg_replication_slots WHERE database = current_database()`)
	if err != nil {
		return fmt.Errorf("list slots: %w", err)
	}
	slots, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("list slots: %w", err)
	}
	for _, slot := range slots {
		if err := d.DropSlot(ctx, slot); err != nil {
			return err
		}
	}
	if err := d.Conn.Close(ctx); err != nil {
		return fmt.Errorf("close connection: %w", err)
	}
	return s.execAdmin(ctx, "DROP DATABASE "+pgx.Identifier{d.name}.Sanitize()+" WITH (FORCE)")
}

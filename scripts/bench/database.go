package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/testenv"
)

// feedbackIndex is the one that setup makes, for the tables of others.
const feedbackIndex = `CREATE UNIQUE INDEX feedback_campaign_client ON public.subscribers_feedback (adv_campaign_id, client_id)`

// database is one database with the tables of the contract.
type database struct {
	name string
	url  string
	conn *pgx.Conn
}

// newDatabase makes a database; each contender has its own, so that the WAL of
// one is not decoded for the replication slot of another.
func (s *servers) newDatabase(ctx context.Context, name string) (*database, error) {
	if err := s.admin(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
		return nil, fmt.Errorf("create database: %w", err)
	}
	d := &database{name: name, url: s.postgres.URL(name)}
	var err error
	if d.conn, err = pgx.Connect(ctx, d.url); err != nil {
		return nil, fmt.Errorf("connect to database %s: %w", name, err)
	}
	return d, d.exec(ctx, testenv.ContractTables)
}

// admin runs one statement outside of all databases of contenders.
func (s *servers) admin(ctx context.Context, sql string, args ...any) error {
	conn, err := pgx.Connect(ctx, s.postgres.URL(""))
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // nothing is in flight
	_, err = conn.Exec(ctx, sql, args...)
	return err
}

func (d *database) exec(ctx context.Context, sql string, args ...any) error {
	if _, err := d.conn.Exec(ctx, sql, args...); err != nil {
		return fmt.Errorf("run %.60s: %w", sql, err)
	}
	return nil
}

// fill inserts the population's subscriptions.
func (d *database) fill(ctx context.Context, t *population) error {
	_, err := d.conn.PgConn().CopyFrom(ctx, &copyStream{people: t}, "COPY public.subscribers_restaurants (id, client_id, restaurant_id) FROM STDIN (FORMAT binary)")
	if err != nil {
		return fmt.Errorf("insert subscriptions: %w", err)
	}
	if err := d.exec(ctx, `SELECT setval('public.subscribers_restaurants_id_seq', $1)`, t.Rows()); err != nil {
		return err
	}
	return d.exec(ctx, `VACUUM (ANALYZE) public.subscribers_restaurants`)
}

// reset empties the feedback table and writes everything out, so that each
// measurement begins alike.
func (d *database) reset(ctx context.Context) error {
	if err := d.exec(ctx, `TRUNCATE public.subscribers_feedback`); err != nil {
		return err
	}
	return d.exec(ctx, `CHECKPOINT`)
}

func (d *database) count(ctx context.Context, table string) (n int64, err error) {
	if err := d.conn.QueryRow(ctx, `SELECT count(*) FROM `+table).Scan(&n); err != nil {
		return 0, fmt.Errorf("count rows of %s: %w", table, err)
	}
	return n, nil
}

// dropSlot removes a replication slot as soon as nobody reads from it: a
// walsender takes a moment to notice that its client has gone.
func (d *database) dropSlot(ctx context.Context, slot string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := d.exec(ctx, `SELECT pg_drop_replication_slot($1)`, slot)
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

// drop removes the database with its slots, so that nothing of it is decoded
// or kept any longer.
func (s *servers) drop(ctx context.Context, d *database) error {
	rows, err := d.conn.Query(ctx, `SELECT slot_name FROM pg_replication_slots WHERE database = current_database()`)
	if err != nil {
		return fmt.Errorf("list slots: %w", err)
	}
	slots, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("list slots: %w", err)
	}
	for _, slot := range slots {
		if err := d.dropSlot(ctx, slot); err != nil {
			return err
		}
	}
	if err := d.conn.Close(ctx); err != nil {
		return fmt.Errorf("close connection: %w", err)
	}
	return s.admin(ctx, "DROP DATABASE "+pgx.Identifier{d.name}.Sanitize()+" WITH (FORCE)")
}

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"

	"dinnerbell/internal/testenv"
	"dinnerbell/scripts/chaos/history"
	"dinnerbell/scripts/chaos/network"
	"dinnerbell/scripts/chaos/oracle"
	"dinnerbell/scripts/chaos/random"
)

// slowCommit delays the commit of a step in the server, behind all its
// statements: Postgres runs a deferred trigger during COMMIT.
const slowCommit = `
CREATE TABLE public.chaos_slow (seconds float8 NOT NULL);
INSERT INTO public.chaos_slow VALUES (0);
CREATE FUNCTION public.chaos_slow_commit() RETURNS trigger LANGUAGE plpgsql AS
  $$BEGIN PERFORM pg_catalog.pg_sleep((SELECT seconds FROM public.chaos_slow)); RETURN NULL; END$$;
CREATE CONSTRAINT TRIGGER chaos_slow_commit AFTER INSERT ON dinnerbell.outbox
  DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.chaos_slow_commit()`

// prepareSlowCommits creates the trigger, once the daemon's tables exist.
func (r *round) prepareSlowCommits(ctx context.Context) error {
	return r.withConnection(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, slowCommit)
		return err
	})
}

// withConnection runs do on a connection without a proxy.
func (r *round) withConnection(ctx context.Context, do func(*pgx.Conn) error) error {
	conn, err := r.servers.connectPostgres(ctx, r.database)
	if err != nil {
		return err
	}
	err = do(conn)
	return errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
}

// slowCommits delays each commit of a step for a while.
func (in *faultInjector) slowCommits(ctx context.Context, f *history.Fault) error {
	set := func(ctx context.Context, seconds float64) error {
		return in.round.withConnection(ctx, func(conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, `UPDATE public.chaos_slow SET seconds = $1`, seconds)
			return err
		})
	}
	if err := set(ctx, float64(f.Millis)/1000); err != nil {
		return errSkipped // Postgres is down
	}
	testenv.Pause(ctx, f.Length)
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	for {
		err := set(limit, 0)
		if err == nil || !testenv.Pause(limit, 50*time.Millisecond) {
			return err
		}
	}
}

// deleteCampaigns deletes the messages that the lanes have read from the
// campaigns topic, as retention does. Where a partition has no unread message,
// it deletes the markers and aborted records at the end, too. The round keeps a
// copy of the deleted records for the oracle.
func (in *faultInjector) deleteCampaigns(ctx context.Context) error {
	r := in.round
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	// The order matters: the offsets read by then lie before the ends, and the
	// records before the ends are copied before the deletion.
	read, err := r.nextOffsets(ctx)
	if err != nil || len(read) == 0 {
		return errSkipped
	}
	adm := kadm.NewClient(r.admin)
	ends, err := adm.ListEndOffsets(ctx, r.topics.campaigns)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return errSkipped
	}
	records, err := r.servers.readTopic(ctx, r.topics.campaigns)
	if err != nil {
		return errSkipped
	}
	unread := map[int32]bool{}
	r.mu.Lock()
	for _, rec := range records {
		if rec.Offset < read[rec.Partition] {
			r.deleted[oracle.RecordPosition{Partition: rec.Partition, Offset: rec.Offset}] = rec
		} else {
			unread[rec.Partition] = true
		}
	}
	r.mu.Unlock()
	var upTo kadm.Offsets
	for lane, next := range read {
		if end, ok := ends.Lookup(r.topics.campaigns, lane); ok && !unread[lane] {
			next = max(next, end.Offset)
		}
		upTo.AddOffset(r.topics.campaigns, lane, next, -1)
	}
	deleted, err := adm.DeleteRecords(ctx, upTo)
	r.log.Notef("campaigns deleted below %v: %v %v", upTo, deleted.Error(), err)
	return nil
}

// nextOffsets reads from Postgres how far the lanes have read.
func (r *round) nextOffsets(ctx context.Context) (map[int32]int64, error) {
	read := map[int32]int64{}
	return read, r.withConnection(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `SELECT lane, next_offset FROM dinnerbell.lane`)
		if err != nil {
			return err
		}
		var lane int32
		var next int64
		_, err = pgx.ForEachRow(rows, []any{&lane, &next}, func() error { read[lane] = next; return nil })
		return err
	})
}

// shutBarrier cuts both links of a daemon to the source, so that the daemon can
// join no campaign. Messages, cancels among them, still reach the daemon.
func (in *faultInjector) shutBarrier(ctx context.Context, f *history.Fault, d *daemonProcess) error {
	replication, sql := d.links.Proxies[network.Replication], d.links.Proxies[network.SQL]
	return in.whenFree(ctx, &replication.Busy, f, func() error {
		sql.Busy.Lock()
		defer sql.Busy.Unlock()
		errs := make([]error, 2)
		var both sync.WaitGroup
		both.Go(func() { errs[0] = replication.Cut(ctx, f.Length) })
		both.Go(func() { errs[1] = sql.Cut(ctx, f.Length) })
		both.Wait()
		return errors.Join(errs...)
	})
}

// tableChanges do not change the rows. The first two rewrite the table.
var tableChanges = []string{
	`ALTER TABLE subscribers_restaurants ADD COLUMN IF NOT EXISTS chaos_random float8 DEFAULT random()`,
	`VACUUM FULL subscribers_restaurants`,
	`ALTER TABLE subscribers_restaurants DROP COLUMN IF EXISTS chaos_random`,
	`ALTER TABLE subscribers_restaurants ADD COLUMN IF NOT EXISTS chaos_note text DEFAULT 'none'`,
	`ALTER TABLE subscribers_restaurants DROP COLUMN IF EXISTS chaos_note`,
	`CREATE INDEX IF NOT EXISTS chaos_index ON subscribers_restaurants (restaurant_id)`,
	`DROP INDEX IF EXISTS chaos_index`,
}

// changeTable runs statements on the source's table while the daemon takes a
// snapshot. A statement that waits too long for its lock is given up.
func (in *faultInjector) changeTable(ctx context.Context, f *history.Fault, d *daemonProcess) error {
	rnd := rand.New(rand.NewPCG(f.Draw, 0)) //nolint:gosec // drawn from the seed
	ctx, cancel := context.WithTimeout(ctx, operateLimit)
	defer cancel()
	var snapshot sync.WaitGroup
	snapshot.Go(func() {
		_, stderr, err := d.runCommand(ctx, "rebuild")
		in.round.log.Notef("rebuild on %s beside DDL: %v %s", d.name, err, stderr)
	})
	defer snapshot.Wait()
	for range 2 + rnd.IntN(3) {
		statement := tableChanges[rnd.IntN(len(tableChanges))]
		if !testenv.Pause(ctx, random.Duration(rnd, 0, 400*time.Millisecond)) {
			return nil
		}
		err := in.round.withConnection(ctx, func(conn *pgx.Conn) error {
			if _, err := conn.Exec(ctx, `SET lock_timeout = '2s'`); err != nil {
				return fmt.Errorf("set lock_timeout: %w", err)
			}
			_, err := conn.Exec(ctx, statement)
			return err
		})
		in.round.log.Notef("%s: %v", statement, err)
	}
	return nil
}

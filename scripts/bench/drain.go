package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"dinnerbell/scripts/bench/contender"
	"dinnerbell/scripts/bench/deployment"
	"dinnerbell/scripts/bench/report"
)

const (
	// drainConns connections make the single-row transactions.
	drainConns = 2
	bulks      = 20
	bulkRows   = 100_000
)

// measureDrain measures how fast the daemon catches up with transactions that
// were committed while it was down. The limit beside it is pg_recvlogical,
// which discards the content of a like slot. Both times begin with the start of
// the process; the daemon's ends when its state is at the last commit.
func (st *stage) measureDrain(ctx context.Context) error {
	bulk := st.bulkSize()
	for _, c := range []struct {
		name    string
		rows    int
		backlog func(ctx context.Context) error
	}{
		{"cdc_drain_single", st.opts.transactions, func(ctx context.Context) error { return st.commitSingles(ctx, st.opts.transactions) }},
		{"cdc_drain_bulk", bulks * bulk, func(ctx context.Context) error { return st.commitBulk(ctx, bulk) }},
	} {
		var ours, limit []float64
		for run := range st.opts.runs {
			us, them, err := st.drainOnce(ctx, c.backlog, run%2 == 0)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			rows := float64(c.rows)
			ours, limit = append(ours, rows/us.Seconds()), append(limit, rows/them.Seconds())
			st.sayf("%s, run %d of %d: %s rows/s, pg_recvlogical %s rows/s", c.name, run+1, st.opts.runs,
				report.Thousands(int64(rows/us.Seconds())), report.Thousands(int64(rows/them.Seconds())))
		}
		st.report.Add(c.name, "rows/s", ours, "pg_recvlogical", limit...)
	}
	return nil
}

// measureHistory measures what the history of subscription changes costs the catching up
// with the source.
func (st *stage) measureHistory(ctx context.Context) error {
	if err := st.deployment.Stop(); err != nil {
		return err
	}
	return errors.Join(st.compareDrains(ctx, "history_drain", st.deployment.SetHistory), st.deployment.SetHistory(true))
}

// compareDrains measures how fast the daemon catches up with single-row transactions and
// with large ones while no campaign is live, with an option and without it in turn.
func (st *stage) compareDrains(ctx context.Context, series string, set func(on bool) error) error {
	bulk := st.bulkSize()
	for _, c := range []struct {
		name    string
		rows    int
		backlog func(ctx context.Context) error
	}{
		{series, st.opts.transactions, func(ctx context.Context) error { return st.commitSingles(ctx, st.opts.transactions) }},
		{series + "_bulk", bulks * bulk, func(ctx context.Context) error { return st.commitBulk(ctx, bulk) }},
	} {
		var rates [2][]float64
		for run := range 2 * st.opts.runs {
			on := (run + run/2) % 2 // each begins every other pair
			took, err := st.drainWith(ctx, on == 1, set, c.backlog)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			rate := float64(c.rows) / took.Seconds()
			st.sayf("%s, run %d of %d, option %t: %s rows/s", c.name, run/2+1, st.opts.runs, on == 1, report.Thousands(int64(rate)))
			rates[on] = append(rates[on], rate)
		}
		st.report.Add(c.name, "rows/s", rates[1], "option_off", rates[0]...)
	}
	return nil
}

// drainWith commits a backlog while the daemon is down, and times the daemon's catching up
// with the option set or not. The daemon has run with the option before.
func (st *stage) drainWith(ctx context.Context, on bool, set func(on bool) error, backlog func(context.Context) error) (time.Duration, error) {
	d := st.deployment
	if err := set(on); err != nil {
		return 0, err
	}
	if err := d.Start(ctx); err != nil {
		return 0, err
	}
	if err := d.Stop(); err != nil {
		return 0, err
	}
	if err := backlog(ctx); err != nil {
		return 0, err
	}
	end, err := deployment.WriteMark(ctx, d.Database)
	if err != nil {
		return 0, err
	}
	if err := d.Database.Exec(ctx, `CHECKPOINT`); err != nil {
		return 0, err
	}
	took, err := st.timeDaemon(ctx, end)
	if err != nil {
		return 0, err
	}
	return took, d.Database.Exec(ctx, `DELETE FROM public.subscribers_restaurants WHERE restaurant_id LIKE 'drain-%'`)
}

// bulkSize is how many rows a large transaction has.
func (st *stage) bulkSize() int {
	if st.opts.quick {
		return bulkRows / 10
	}
	return bulkRows
}

// drainOnce commits one backlog and lets both contenders work it off, one after
// the other.
func (st *stage) drainOnce(ctx context.Context, backlog func(context.Context) error, oursFirst bool) (ours, limit time.Duration, err error) {
	if err := st.deployment.Start(ctx); err != nil {
		return 0, 0, err
	}
	if err := st.deployment.Stop(); err != nil {
		return 0, 0, err
	}
	if err := st.deployment.Database.Exec(ctx, `SELECT pg_create_logical_replication_slot('bench_drain', 'pgoutput')`); err != nil {
		return 0, 0, err
	}
	if err := backlog(ctx); err != nil {
		return 0, 0, err
	}
	end, err := deployment.WriteMark(ctx, st.deployment.Database)
	if err != nil {
		return 0, 0, err
	}
	if err := st.deployment.Database.Exec(ctx, `CHECKPOINT`); err != nil {
		return 0, 0, err
	}
	work := []func() error{
		func() (err error) { ours, err = st.timeDaemon(ctx, end); return err },
		func() (err error) { limit, err = st.timeRecvlogical(ctx, end); return err },
	}
	if !oursFirst {
		work[0], work[1] = work[1], work[0]
	}
	for _, f := range work {
		if err := f(); err != nil {
			return 0, 0, err
		}
	}
	if err := st.deployment.Database.DropSlot(ctx, "bench_drain"); err != nil {
		return 0, 0, err
	}
	return ours, limit, st.deployment.Database.Exec(ctx, `DELETE FROM public.subscribers_restaurants WHERE restaurant_id LIKE 'drain-%'`)
}

func (st *stage) timeDaemon(ctx context.Context, end uint64) (time.Duration, error) {
	began := time.Now()
	if err := st.deployment.Launch(); err != nil {
		return 0, err
	}
	if st.opts.perf != "" {
		stop, err := contender.StartProfile(st.opts.perf, st.deployment.Daemon.PID())
		if err != nil {
			return 0, err
		}
		defer stop()
	}
	if err := st.deployment.AwaitApplied(ctx, end); err != nil {
		return 0, err
	}
	took := time.Since(began)
	if err := st.deployment.AwaitReady(ctx); err != nil {
		return 0, err
	}
	return took, st.deployment.Stop()
}

func (st *stage) timeRecvlogical(ctx context.Context, end uint64) (time.Duration, error) {
	began := time.Now()
	err := deployment.RunCommand(ctx, filepath.Join(st.servers.Postgres.BinDir(), "pg_recvlogical"),
		"-d", st.deployment.Database.URL, "--slot", "bench_drain", "--start", "--no-loop", "-F", "0", "-f", "/dev/null",
		"--endpos", fmt.Sprintf("%X/%X", end>>32, uint32(end)), "-o", "proto_version=1", "-o", "publication_names=dinnerbell")
	return time.Since(began), err
}

// commitSingles commits n rows one by one.
func (st *stage) commitSingles(ctx context.Context, n int) error {
	g, ctx := errgroup.WithContext(ctx)
	for i := range drainConns {
		g.Go(func() error {
			conn, err := pgx.Connect(ctx, st.deployment.Database.URL)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
			if _, err := conn.Exec(ctx, `SET synchronous_commit = off`); err != nil {
				return err
			}
			_, err = conn.Exec(ctx, fmt.Sprintf(`DO $$ BEGIN FOR i IN 1..%d LOOP
  INSERT INTO public.subscribers_restaurants (client_id, restaurant_id) VALUES (gen_random_uuid(), 'drain-' || i %% 1000);
  COMMIT;
END LOOP; END $$`, shareOf(n, drainConns, i)))
			return err
		})
	}
	return g.Wait()
}

// shareOf returns the size of the i-th of several almost equal parts of n.
func shareOf(n, parts, i int) int { return n*(i+1)/parts - n*i/parts }

// commitBulk commits twenty transactions of n rows.
func (st *stage) commitBulk(ctx context.Context, n int) error {
	for range bulks {
		if err := st.deployment.Database.Exec(ctx, `INSERT INTO public.subscribers_restaurants (client_id, restaurant_id) SELECT gen_random_uuid(), 'drain-' || i % 1000 FROM generate_series(1, $1::int) i`, n); err != nil {
			return err
		}
	}
	return nil
}

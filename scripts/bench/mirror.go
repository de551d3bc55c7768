package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"dinnerbell/cdc"
	"dinnerbell/cdc/source"
	"dinnerbell/scripts/bench/deployment"
	"dinnerbell/scripts/bench/report"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

const (
	// cdcPoll is the time between two look-ups of a new row in the join.
	cdcPoll = 100 * time.Microsecond
	// noiseConns connections write to an unrelated table while barriers are
	// measured, each noisePerSecond times.
	noiseConns     = 2
	noisePerSecond = 1000
	barrierEvery   = 5 * time.Millisecond
)

// tableMirror is the daemon's mirror of the subscriptions inside this process,
// which can read its state.
type tableMirror struct {
	store  *state.Store
	mirror *cdc.Mirror
	cancel context.CancelFunc
	done   chan error
}

// startMirror mirrors the deployment's table through its own slot and returns
// once the mirror streams.
func startMirror(ctx context.Context, d *deployment.Deployment) (*tableMirror, error) {
	dir := filepath.Join(d.Dir, "mirror")
	store, err := state.Open(dir, state.Options{})
	if err != nil {
		return nil, fmt.Errorf("open mirror's state: %w", err)
	}
	log, err := os.OpenFile(filepath.Join(d.Dir, "mirror.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	m := &tableMirror{store: store, done: make(chan error, 1)}
	m.mirror = cdc.New(cdc.Config{Config: source.Config{
		URL:    func() (string, error) { return d.Database.URL, nil },
		Schema: "public", Table: "subscribers_restaurants", KeyColumns: []string{"id"}, ClientColumn: "client_id", RestaurantColumn: "restaurant_id",
		Publication: "dinnerbell", Slot: "bench_mirror", ApplicationName: "dinnerbell bench",
		Logger: slog.New(slog.NewTextHandler(log, nil)),
	}}, store)
	ctx, m.cancel = context.WithCancel(ctx)
	go func() {
		defer func() { _ = log.Close() }()
		m.done <- m.mirror.Run(ctx)
	}()
	return m, m.mirror.Barrier(ctx)
}

// stop ends the mirror and removes its slot, which would retain WAL.
func (m *tableMirror) stop(ctx context.Context, d *deployment.Deployment) error {
	m.cancel()
	return errors.Join(<-m.done, m.store.Close(), d.Database.DropSlot(ctx, "bench_mirror"))
}

// measureMirror measures cdc_latency, the time from the acknowledgement of a
// commit until the join has its row, and the duration of the freshness barrier.
func (st *stage) measureMirror(ctx context.Context) (err error) {
	if err := st.deployment.Stop(); err != nil {
		return err
	}
	m, err := startMirror(ctx, st.deployment)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.stop(context.WithoutCancel(ctx), st.deployment)) }()
	runs := max(st.opts.runs, 1)
	var p50, p99, b50, b99 []float64
	for range runs {
		commits, err := st.timeCommits(ctx, m, max(st.opts.samples/runs, 1))
		if err != nil {
			return fmt.Errorf("cdc_latency: %w", err)
		}
		p50, p99 = append(p50, report.Percentile(commits, 0.50)), append(p99, report.Percentile(commits, 0.99))
		barriers, err := st.timeBarriers(ctx, m, max(2*st.opts.samples/runs, 1))
		if err != nil {
			return fmt.Errorf("barrier: %w", err)
		}
		b50, b99 = append(b50, report.Percentile(barriers, 0.50)), append(b99, report.Percentile(barriers, 0.99))
	}
	st.report.Add("cdc_latency_p50", "ms", p50, "goal", 2)
	st.report.Add("cdc_latency_p99", "ms", p99, "goal", 10)
	st.report.Add("barrier_p50", "ms", b50, "")
	st.report.Add("barrier_p99", "ms", b99, "goal", 5)
	return nil
}

// timeCommits inserts rows one by one, waits until the join has each one, and
// then deletes the rows.
func (st *stage) timeCommits(ctx context.Context, m *tableMirror, n int) ([]float64, error) {
	const restaurant = "the-newest-restaurant"
	packed, err := id.Pack(restaurant)
	if err != nil {
		return nil, err
	}
	var took []float64
	for i := range n {
		if err := st.deployment.Database.Exec(ctx, `INSERT INTO public.subscribers_restaurants (client_id, restaurant_id) VALUES ($1, $2)`, fmt.Sprint("client-", i), restaurant); err != nil {
			return nil, err
		}
		committed := time.Now()
		if err := m.awaitAudience(ctx, packed, int64(i+1)); err != nil {
			return nil, err
		}
		took = append(took, milliseconds(time.Since(committed)))
	}
	if err := st.deployment.Database.Exec(ctx, `DELETE FROM public.subscribers_restaurants WHERE restaurant_id = $1`, restaurant); err != nil {
		return nil, err
	}
	return took, m.awaitAudience(ctx, packed, 0)
}

// awaitAudience waits until the join counts n clients.
func (m *tableMirror) awaitAudience(ctx context.Context, restaurant id.ID, n int64) error {
	tick := time.NewTicker(cdcPoll)
	defer tick.Stop()
	for {
		got, err := m.store.Audience(restaurant)
		if err != nil || got == n {
			return err
		}
		select {
		case <-tick.C:
		case err := <-m.done:
			m.done <- err
			return fmt.Errorf("mirror ended by itself: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// timeBarriers measures the freshness barrier while others write.
func (st *stage) timeBarriers(ctx context.Context, m *tableMirror, n int) ([]float64, error) {
	if err := st.deployment.Database.Exec(ctx, `CREATE TABLE IF NOT EXISTS public.noise (id serial8 PRIMARY KEY, text text)`); err != nil {
		return nil, err
	}
	noiseCtx, quiet := context.WithCancel(ctx)
	g, gctx := errgroup.WithContext(noiseCtx)
	for range noiseConns {
		g.Go(func() error { return makeNoise(gctx, st.deployment.Database.URL) })
	}
	var took []float64
	tick := time.NewTicker(barrierEvery)
	defer tick.Stop()
	var err error
	for range n {
		<-tick.C
		began := time.Now()
		if err = m.mirror.Barrier(gctx); err != nil {
			break
		}
		took = append(took, milliseconds(time.Since(began)))
	}
	quiet()
	if noiseErr := g.Wait(); !errors.Is(noiseErr, context.Canceled) {
		err = errors.Join(err, noiseErr)
	}
	return took, err
}

// makeNoise commits small transactions until ctx ends.
func makeNoise(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	tick := time.NewTicker(time.Second / noisePerSecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if _, err := conn.Exec(ctx, `INSERT INTO public.noise (text) VALUES ('nothing of interest')`); err != nil {
				return errors.Join(ctx.Err(), err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

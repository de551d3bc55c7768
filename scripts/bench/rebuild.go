package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"
)

// rebuild: a new snapshot of all subscriptions, beside a Go client that drains
// the same COPY and throws it away; then what it takes on disk, and how long a
// start takes.
func (st *stage) rebuild(ctx context.Context) error {
	if err := st.d.stop(); err != nil {
		return err
	}
	var ours, limit []float64
	rows := float64(st.people.Rows())
	for run := range st.opts.runs {
		began := time.Now()
		if err := st.d.command(ctx, "rebuild", "--offline"); err != nil {
			return err
		}
		us := time.Since(began).Seconds()
		began = time.Now()
		if err := st.drainCopy(ctx); err != nil {
			return err
		}
		them := time.Since(began).Seconds()
		ours, limit = append(ours, rows/us), append(limit, rows/them)
		st.sayf("rebuild, run %d of %d: %s rows/s, draining COPY %s rows/s", run+1, st.opts.runs, thousands(int64(rows/us)), thousands(int64(rows/them)))
	}
	st.report.add("rebuild", "rows/s", ours, "copy_to_stdout", limit...)
	if err := st.beside(ctx); err != nil {
		return err
	}
	return st.restart(ctx)
}

// beside: the same, and a comparison of all rows, by a daemon that runs.
func (st *stage) beside(ctx context.Context) error {
	if err := st.d.start(ctx); err != nil { // with the first takeover of the lanes
		return err
	}
	rates := map[string][]float64{}
	for range st.opts.runs {
		for _, command := range []string{"rebuild", "verify"} {
			began := time.Now()
			if err := st.d.command(ctx, command); err != nil {
				return err
			}
			rates[command] = append(rates[command], float64(st.people.Rows())/time.Since(began).Seconds())
		}
		began := time.Now()
		if err := st.drainCopy(ctx); err != nil {
			return err
		}
		rates["drain"] = append(rates["drain"], float64(st.people.Rows())/time.Since(began).Seconds())
	}
	st.report.add("rebuild_online", "rows/s", rates["rebuild"], "copy_to_stdout", rates["drain"]...)
	st.report.add("verify", "rows/s", rates["verify"], "copy_to_stdout", rates["drain"]...)
	return st.d.stop()
}

// drainCopy reads the table as fast as Postgres gives it.
func (st *stage) drainCopy(ctx context.Context) error {
	_, err := st.d.db.conn.PgConn().CopyTo(ctx, io.Discard, `COPY public.subscribers_restaurants (id, restaurant_id, client_id) TO STDOUT (FORMAT binary)`)
	if err != nil {
		return fmt.Errorf("drain COPY: %w", err)
	}
	return nil
}

// restart: from the start of the process until /readyz says 200, after an
// orderly end and after a kill. Between the two the disk is looked at: the
// daemon has had time for what it does in the background.
func (st *stage) restart(ctx context.Context) error {
	if err := st.d.start(ctx); err != nil {
		return err
	}
	var orderly, killed []float64
	for range st.opts.runs {
		if err := st.d.stop(); err != nil {
			return err
		}
		took, err := st.timedStart(ctx)
		if err != nil {
			return err
		}
		orderly = append(orderly, took)
		if err := st.d.kill(); err != nil {
			return err
		}
		if took, err = st.timedStart(ctx); err != nil {
			return err
		}
		killed = append(killed, took)
	}
	st.report.add("restart", "s", orderly, "goal", 1)
	st.report.add("restart_after_kill", "s", killed, "")
	if err := st.d.stop(); err != nil {
		return err
	}
	// The checkpoints of the last minutes hold generations that rebuilds have
	// replaced.
	store, err := diskUsage(filepath.Join(st.d.stateDir(), "store"))
	if err != nil {
		return err
	}
	all, err := diskUsage(st.d.stateDir())
	if err != nil {
		return err
	}
	rows := float64(st.people.Rows())
	st.report.add("disk", "B/subscription", []float64{store / rows}, "goal", 64)
	st.report.add("disk_with_checkpoints", "B/subscription", []float64{all / rows}, "")
	return nil
}

func (st *stage) timedStart(ctx context.Context) (seconds float64, err error) {
	began := time.Now()
	if err := st.d.launch(); err != nil {
		return 0, err
	}
	if err := st.d.ready(ctx); err != nil {
		return 0, err
	}
	return time.Since(began).Seconds(), nil
}

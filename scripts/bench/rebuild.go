package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"dinnerbell/scripts/bench/report"
	"dinnerbell/scripts/bench/usage"
)

// measureRebuild measures a new snapshot of all subscriptions beside a Go
// client that discards the output of the same COPY, then the state's size on
// disk and the duration of a start.
func (st *stage) measureRebuild(ctx context.Context) error {
	if err := st.deployment.Stop(); err != nil {
		return err
	}
	var ours, limit []float64
	rows := float64(st.people.Rows())
	for run := range st.opts.runs {
		began := time.Now()
		if err := st.deployment.RunCommand(ctx, "rebuild", "--offline"); err != nil {
			return err
		}
		us := time.Since(began).Seconds()
		began = time.Now()
		if err := st.readWholeTable(ctx); err != nil {
			return err
		}
		them := time.Since(began).Seconds()
		ours, limit = append(ours, rows/us), append(limit, rows/them)
		st.sayf("rebuild, run %d of %d: %s rows/s, draining COPY %s rows/s", run+1, st.opts.runs, report.Thousands(int64(rows/us)), report.Thousands(int64(rows/them)))
	}
	st.report.Add("rebuild", "rows/s", ours, "copy_to_stdout", limit...)
	if err := st.measureOnline(ctx); err != nil {
		return err
	}
	return st.measureRestart(ctx)
}

// measureOnline measures a rebuild and a verification of all rows by a running
// daemon.
func (st *stage) measureOnline(ctx context.Context) error {
	if err := st.deployment.Start(ctx); err != nil { // with the first takeover of the lanes
		return err
	}
	rates := map[string][]float64{}
	for range st.opts.runs {
		for _, command := range []string{"rebuild", "verify"} {
			began := time.Now()
			if err := st.deployment.RunCommand(ctx, command); err != nil {
				return err
			}
			rates[command] = append(rates[command], float64(st.people.Rows())/time.Since(began).Seconds())
		}
		began := time.Now()
		if err := st.readWholeTable(ctx); err != nil {
			return err
		}
		rates["drain"] = append(rates["drain"], float64(st.people.Rows())/time.Since(began).Seconds())
	}
	st.report.Add("rebuild_online", "rows/s", rates["rebuild"], "copy_to_stdout", rates["drain"]...)
	st.report.Add("verify", "rows/s", rates["verify"], "copy_to_stdout", rates["drain"]...)
	return st.deployment.Stop()
}

// readWholeTable reads the table as fast as Postgres sends it.
func (st *stage) readWholeTable(ctx context.Context) error {
	_, err := st.deployment.Database.Conn.PgConn().CopyTo(ctx, io.Discard, `COPY public.subscribers_restaurants (id, restaurant_id, client_id) TO STDOUT (FORMAT binary)`)
	if err != nil {
		return fmt.Errorf("drain COPY: %w", err)
	}
	return nil
}

// measureRestart measures the time from the start of the process until /readyz
// answers 200, after an orderly end and after a kill. Then it measures the
// disk: the daemon has had time for its background work.
func (st *stage) measureRestart(ctx context.Context) error {
	if err := st.deployment.Start(ctx); err != nil {
		return err
	}
	var orderly, killed []float64
	for range st.opts.runs {
		if err := st.deployment.Stop(); err != nil {
			return err
		}
		took, err := st.timeStart(ctx)
		if err != nil {
			return err
		}
		orderly = append(orderly, took)
		if err := st.deployment.Kill(); err != nil {
			return err
		}
		if took, err = st.timeStart(ctx); err != nil {
			return err
		}
		killed = append(killed, took)
	}
	st.report.Add("restart", "s", orderly, "goal", 1)
	st.report.Add("restart_after_kill", "s", killed, "")
	if err := st.deployment.Stop(); err != nil {
		return err
	}
	// The checkpoints of the last minutes hold generations that rebuilds have
	// replaced.
	store, err := usage.DiskUsage(filepath.Join(st.deployment.StateDir(), "store"))
	if err != nil {
		return err
	}
	all, err := usage.DiskUsage(st.deployment.StateDir())
	if err != nil {
		return err
	}
	rows := float64(st.people.Rows())
	st.report.Add("disk", "B/subscription", []float64{store / rows}, "goal", 64)
	st.report.Add("disk_with_checkpoints", "B/subscription", []float64{all / rows}, "")
	return nil
}

func (st *stage) timeStart(ctx context.Context) (seconds float64, err error) {
	began := time.Now()
	if err := st.deployment.Launch(); err != nil {
		return 0, err
	}
	if err := st.deployment.AwaitReady(ctx); err != nil {
		return 0, err
	}
	return time.Since(began).Seconds(), nil
}

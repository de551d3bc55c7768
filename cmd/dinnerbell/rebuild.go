package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"dinnerbell/cdc"
)

// rebuildCmd takes a new snapshot of the subscriptions.
type rebuildCmd struct {
	Offline bool `help:"Without a daemon: it must not be running."`
}

// Run fills the state of state.dir anew. The lock on that folder sees to it that
// no daemon uses it meanwhile.
func (c *rebuildCmd) Run(ctx context.Context, a *app) error {
	if !c.Offline {
		return notAvailable("rebuild without --offline (stop the daemon and use: dinnerbell rebuild --offline)")
	}
	cfg, err := a.load()
	if err != nil {
		return err
	}
	log := a.logger(cfg.Log)
	store, err := openState(cfg, log, nil)
	if err != nil {
		return err
	}
	began := time.Now()
	shown := newProgress(a.stderr, "rows")
	err = cdc.New(sourceConfig(cfg, log), store).Rebuild(ctx, func(rows, total int64) { shown.update("snapshot", rows, total) })
	shown.finish()
	rows, at := store.Subscriptions(), store.EndLSN()
	if err := errors.Join(err, store.Close()); err != nil {
		return fmt.Errorf("rebuild subscriptions: %w", err)
	}
	took := time.Since(began)
	_, err = fmt.Fprintf(a.stdout, "rebuilt %s subscriptions at %s in %s (%s rows/s)\n",
		thousands(rows), at, took.Round(time.Millisecond), thousands(int64(float64(rows)/took.Seconds())))
	return err
}

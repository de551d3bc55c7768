package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"dinnerbell/cdc"
	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/control"
	"dinnerbell/cmd/dinnerbell/internal/daemon"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/state/statedir"
)

// rebuildCmd takes a new snapshot of the subscriptions.
type rebuildCmd struct {
	Offline bool `help:"Rebuild without the daemon, which must not be running."`
	JSON    bool `help:"The result as JSON."`
}

// rebuildResult is the result of a rebuild.
type rebuildResult struct {
	Subscriptions int64   `json:"subscriptions"`
	LSN           string  `json:"lsn"` // at which the new rows replaced the old
	Seconds       float64 `json:"seconds"`
}

// Help shows how it is used.
func (*rebuildCmd) Help() string {
	return `Without --offline the command asks the running daemon.

Examples:
  dinnerbell rebuild
  dinnerbell rebuild --offline    # without a daemon`
}

// Run asks the running daemon, which goes on serving from the old rows. Of the
// configuration it needs state.dir alone.
func (c *rebuildCmd) Run(ctx context.Context, a *invocation) error {
	if c.Offline {
		return c.rebuildOffline(ctx, a)
	}
	cfg, err := config.Load(a.configFile, a.env)
	if err != nil {
		return err
	}
	shown := terminal.NewProgress(a.stderr, "rows")
	var r rebuildResult
	err = control.Do(ctx, cfg.State.Dir, "rebuild", nil, control.ReplyHandler{Progress: shown.Update, Result: &r})
	shown.Finish()
	if errors.Is(err, control.ErrNoDaemon) {
		return fmt.Errorf("%w, or rebuild without it: dinnerbell rebuild --offline", err)
	}
	if err != nil {
		return err
	}
	return c.printResult(a, r)
}

// rebuildOffline takes a new snapshot into state.dir. The lock on that folder keeps
// a daemon from using it meanwhile.
func (c *rebuildCmd) rebuildOffline(ctx context.Context, a *invocation) error {
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	log := a.newLogger(cfg)
	store, err := daemon.OpenState(cfg, log, version, nil)
	if locked, ok := errors.AsType[*statedir.LockedError](err); ok {
		return &besideDaemonError{locked}
	}
	if err != nil {
		return err
	}
	began := time.Now()
	shown := terminal.NewProgress(a.stderr, "rows")
	err = cdc.New(daemon.SourceConfig(cfg, log), store).Rebuild(ctx, func(rows, total int64) { shown.Update("snapshot", rows, total) })
	shown.Finish()
	r := rebuildResult{Subscriptions: store.Subscriptions(), LSN: store.EndLSN().String(), Seconds: time.Since(began).Seconds()}
	if err := errors.Join(err, store.Close()); err != nil {
		return fmt.Errorf("rebuild subscriptions: %w", err)
	}
	return c.printResult(a, r)
}

// besideDaemonError refuses a rebuild without the daemon while it runs.
type besideDaemonError struct{ *statedir.LockedError }

// Error names the way beside a daemon.
func (e *besideDaemonError) Error() string {
	return fmt.Sprintf("state directory %s is in use by process %s; if that is the daemon, it rebuilds while it serves: dinnerbell rebuild", e.Dir, e.Holder)
}

// Unwrap returns the error that the lock gave.
func (e *besideDaemonError) Unwrap() error { return e.LockedError }

func (c *rebuildCmd) printResult(a *invocation, r rebuildResult) error {
	if c.JSON {
		return json.NewEncoder(a.stdout).Encode(r)
	}
	_, err := fmt.Fprintf(a.stdout, "rebuilt %s subscriptions at %s in %s (%s rows/s)\n", terminal.Thousands(r.Subscriptions), r.LSN,
		time.Duration(r.Seconds*float64(time.Second)).Round(time.Millisecond), terminal.Thousands(int64(float64(r.Subscriptions)/r.Seconds)))
	return err
}

// rebuildOnline is the daemon's side: an Action.
func rebuildOnline(ctx context.Context, e *daemon.Engine, c *control.Call) (any, error) {
	began := time.Now()
	defer e.LoadGC.Begin()()
	defer showWork(c, e.Mirror)()
	done, err := e.Mirror.RebuildOnline(ctx)
	if err != nil {
		return nil, err
	}
	return rebuildResult{Subscriptions: done.Subscriptions, LSN: done.At.String(), Seconds: time.Since(began).Seconds()}, nil
}

// showWork sends the progress of the mirror's rebuild or verification to the
// client, until stop.
func showWork(c *control.Call, mirror *cdc.Mirror) (stop func()) {
	ended, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(control.ProgressEvery)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
			}
			if w := mirror.Status().Work; w != nil {
				c.Progress(w.Stage, w.Copy.Rows, w.Copy.Total)
			}
		}
	}()
	return func() { close(ended); <-stopped }
}

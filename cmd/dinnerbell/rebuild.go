package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"dinnerbell/cdc"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
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
	store, err := openState(cfg.State.Dir, log)
	if err != nil {
		return err
	}
	began := time.Now()
	shown := newProgress(a.stderr)
	err = cdc.New(sourceConfig(cfg, log), store).Rebuild(ctx, shown.update)
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

// progressDelay keeps short work from flashing a bar.
const progressDelay = 2 * time.Second

// progress is a bar on a terminal, once the work has taken a while. Elsewhere it
// is nothing: a log has no use for it.
type progress struct {
	mu    sync.Mutex
	out   io.Writer // nil: not a terminal
	began time.Time
	bar   *progressbar.ProgressBar
}

func newProgress(stderr io.Writer) *progress {
	p := &progress{began: time.Now()}
	if f, ok := stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.out = f
	}
	return p
}

// update shows how many rows are done of an estimated total (0: unknown).
func (p *progress) update(rows, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.out == nil || time.Since(p.began) < progressDelay {
		return
	}
	if total <= 0 {
		total = -1 // a spinner
	} else {
		total = max(total, rows) // it is an estimate of the planner
	}
	if p.bar == nil {
		p.bar = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(p.out),
			progressbar.OptionSetDescription("snapshot"),
			progressbar.OptionSetItsString("rows"),
			progressbar.OptionShowIts(), progressbar.OptionShowCount(),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionClearOnFinish(),
		)
	}
	p.bar.ChangeMax64(total)
	_ = p.bar.Set64(rows) // a bar that cannot be drawn is no reason to stop
}

// finish removes the bar.
func (p *progress) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}

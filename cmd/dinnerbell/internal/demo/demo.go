// Package demo shows the daemon at work on its own Postgres and broker, or, with
// Once, checks one round of campaigns against an independent join.
//
// Nothing it touches is shared with anything else: all servers are children on
// free loopback ports, in one temporary folder that is removed at the end.
package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/terminal"
)

// Options of a demo.
type Options struct {
	Once bool // one checked round instead of a stream of campaigns
	JSON bool // results as JSON
	// Chaos kills the daemon (SIGKILL) now and then, starts it again on its state, and
	// compares both sinks; with Once twice.
	Chaos bool

	Style terminal.Style // of Stdout

	Subscriptions int // rows; 200,000 if 0
	Restaurants   int // 2,000 if 0

	Binary string   // dinnerbell itself, for the children
	Env    []string // of the children, as os.Environ gives it

	Stdout io.Writer // results
	Stderr io.Writer // messages about the steps of the demo
}

// ErrWrong reports a round that was not delivered exactly once. The details are on
// Stderr.
var ErrWrong = errors.New("notifications are missing, doubled or wrong")

// MinRestaurants is how many a round needs: each kind of campaign has its own.
const MinRestaurants = 30

// Run starts all servers, shows or checks the daemon, and stops everything again.
// The end of ctx is no error while campaigns are streaming.
func Run(ctx context.Context, o Options) (err error) {
	if o.Subscriptions == 0 {
		o.Subscriptions = 200_000
	}
	if o.Restaurants == 0 {
		o.Restaurants = 2_000
	}
	w := &deployment{opts: o}
	defer func() {
		if stopErr := w.stopServers(); stopErr != nil {
			err = errors.Join(err, fmt.Errorf("clean up: %w", stopErr))
		}
	}()
	if err := w.startServers(ctx); err != nil {
		return interruptError(ctx, o, err)
	}
	if o.Once && !o.Chaos {
		return w.runOnce(ctx)
	}
	if err := w.printHints(); err != nil {
		return err
	}
	return interruptError(ctx, o, w.runLive(ctx))
}

// interruptError returns nil for errors that a Ctrl-C has caused. A round that was
// cut short has not been checked, so its error stays.
func interruptError(ctx context.Context, o Options, err error) error {
	if ctx.Err() != nil && !o.Once {
		return nil
	}
	return err
}

// sayf reports progress, with the time since the demo began.
func (d *deployment) sayf(format string, args ...any) {
	_, _ = fmt.Fprintf(d.opts.Stderr, "%6.1fs  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

// printJSON writes one line of JSON to the results.
func (d *deployment) printJSON(v any) error {
	if err := json.NewEncoder(d.opts.Stdout).Encode(v); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/control"
	"dinnerbell/cmd/dinnerbell/internal/httpserve"
	"dinnerbell/cmd/dinnerbell/internal/status"
	"dinnerbell/internal/halt"
	"dinnerbell/internal/postgres"
	"dinnerbell/state"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
)

// daemonOptions are what the command gives the daemon.
type daemonOptions struct {
	cfg      *config.Config
	log      *slog.Logger
	build    status.Build
	actions  map[string]engineAction
	exitCode func(err error) int // of a command whose action ended with err
}

// runDaemon opens the state and runs the daemon until ctx ends, which drains it, or
// until nothing can go on without an operator.
func runDaemon(ctx context.Context, o daemonOptions) (err error) {
	store, err := openState(o.cfg, o.log, o.build.Version, nil)
	if err != nil {
		return err
	}
	d := newDaemon(o, store)
	defer func() { err = errors.Join(err, d.engine().close()) }()
	l, err := listen(ctx, o.cfg)
	if err != nil {
		return err
	}
	d.logStart(o.cfg, l.tcp.Addr())
	if err := d.run(ctx, l); err != nil {
		return err
	}
	o.log.Info("stopped")
	return nil
}

// listen opens the TCP listener and the socket, so that a port in use is said
// before anything else begins.
func listen(ctx context.Context, cfg *config.Config) (*listeners, error) {
	socket, err := control.Listen(ctx, cfg.State.Dir)
	if err != nil {
		return nil, err
	}
	tcp, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.HTTP.Listen)
	if err != nil {
		if op, ok := errors.AsType[*net.OpError](err); ok {
			err = op.Err // without the address again
		}
		return nil, errors.Join(fmt.Errorf("listen on http.listen %s: %w", cfg.HTTP.Listen, err), socket.Close())
	}
	return &listeners{tcp: tcp, socket: socket}, nil
}

// listeners are where the daemon is reached: read-only over TCP, and over the
// socket in state.dir by who runs it.
type listeners struct{ tcp, socket net.Listener }

// daemon is the wiring: two halves, one after the other if the store is
// damaged, and what is said about them.
type daemon struct {
	daemonOptions

	current atomic.Pointer[engine]
	stalls  status.StallDetector
	damage  damageHistory
	gc      loadGC
	waits   prometheus.Histogram // of the joins, for freshness
}

// newDaemon makes the daemon around an open store, which it owns from here on:
// close its engine at the end.
func newDaemon(o daemonOptions, store *state.Store) *daemon {
	d := &daemon{daemonOptions: o, waits: status.NewFreshnessWaits()}
	if _, aside := store.SetAside(); aside {
		d.damage.add(time.Now())
	}
	d.newEngine(store)
	return d
}

// logStart says what runs and between what, without secrets.
func (d *daemon) logStart(cfg *config.Config, tcp net.Addr) {
	source, _ := cfg.SourceURL() // Validate has tried them
	sink, _ := cfg.SinkURL()
	d.log.Info("starting", "version", d.build.Version, "state_dir", cfg.State.Dir,
		"source", postgres.Redact(source), "table", cfg.Source.Table.String(), "slot", cfg.Source.Slot,
		"sink", postgres.Redact(sink), "brokers", cfg.Kafka.Brokers, "campaigns", cfg.Kafka.Campaigns,
		"notifications", cfg.Kafka.Notifications, "http", tcp.String())
}

// run serves HTTP around the work: from before it begins, and until it has
// drained, so that the draining can be watched.
func (d *daemon) run(ctx context.Context, l *listeners) error {
	httpCtx, stopHTTP := context.WithCancel(context.WithoutCancel(ctx))
	g, gctx := errgroup.WithContext(ctx)
	readOnly := status.NewHandler(d.build, d.report, d.log, d.waits)
	httpserve.WarnOfFewDescriptors(d.log, httpserve.DescriptorLimit())
	g.Go(func() error {
		return httpserve.Serve(httpCtx, httpserve.ReadOnly(readOnly, l.tcp.Addr()), d.log, l.tcp, httpserve.AnswerPatience)
	})
	// Actions end when the draining begins.
	actions := map[string]control.Action{}
	for name, do := range d.actions {
		actions[name] = d.withEngine(do)
	}
	control := control.NewHandler(gctx, readOnly, actions, d.exitCode, d.log)
	g.Go(func() error { return httpserve.Serve(httpCtx, control, d.log, l.socket, 0) })
	g.Go(func() error {
		defer stopHTTP()
		return d.runEngines(gctx)
	})
	return g.Wait()
}

// runEngines runs halves until ctx ends or one of them ends for good. A damaged
// store is not the end: it is replaced, and the work goes on.
func (d *daemon) runEngines(ctx context.Context) error {
	h := d.engine()
	for {
		err := d.runEngine(ctx, h)
		if ctx.Err() != nil || h.store.Damage() == nil {
			return err
		}
		if h, err = d.replace(ctx, h); h == nil {
			return err
		}
	}
}

// runEngine runs both halves until ctx ends, one of them ends for good, or the store
// is found damaged.
func (d *daemon) runEngine(ctx context.Context, h *engine) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := h.mirror.Run(gctx)
		if halted, ok := errors.AsType[*halt.Error](err); ok {
			d.log.Error("source halted; what is decided is still shipped", "what", halted.What, "to_mend", halted.Hint)
			if h.admitted() {
				h.awaitStandstill(gctx)
			}
			if ctx.Err() != nil {
				return nil //nolint:nilerr // asked to end, and it has been logged
			}
		}
		return err
	})
	g.Go(func() error {
		// A second daemon with this slot would take the first one's place in the
		// consumer group.
		select {
		case <-h.mirror.Admitted():
			return h.service.Run(gctx)
		case <-gctx.Done():
			return nil
		}
	})
	g.Go(func() error { return d.logReadiness(gctx) })
	g.Go(func() error { return d.dropReplaced(gctx, h) })
	g.Go(func() error {
		select {
		case <-h.store.Damaged():
			return h.store.Damage()
		case <-gctx.Done():
			return nil
		}
	})
	return g.Wait()
}

// logReadiness looks at the status now and then, so that a stall is seen even if nobody
// asks, and logs when readiness changes.
func (d *daemon) logReadiness(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	ready := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		r := d.report()
		switch {
		case r.Ready && !ready:
			d.log.Info("ready", "subscriptions", r.Source.Subscriptions, "lanes", len(r.Lanes))
		case !r.Ready && ready:
			d.log.Warn("not ready", "reasons", r.Reasons)
		}
		ready = r.Ready
	}
}

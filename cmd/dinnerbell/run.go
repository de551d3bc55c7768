package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"dinnerbell/cdc"
	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/internal/halt"
	"dinnerbell/internal/postgres"
	"dinnerbell/state"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
)

// runCmd is the daemon.
type runCmd struct{}

// Run returns once everything it started has ended: nil after a signal, when
// what was under way is finished; a halt (exit 3) when nothing can go on
// without an operator.
func (c *runCmd) Run(ctx context.Context, a *app) (err error) {
	a.daemon = true
	cfg, err := a.load()
	if err != nil {
		return err
	}
	log := a.logger(cfg)
	tuneGC(a.env)
	store, err := openState(cfg, log, nil)
	if err != nil {
		return err
	}
	d := newDaemon(cfg, store, log)
	defer func() { err = errors.Join(err, d.engine().close()) }()
	l, err := listen(ctx, cfg)
	if err != nil {
		return err
	}
	d.logStart(cfg, l.tcp.Addr())
	if err := d.run(ctx, l); err != nil {
		return err
	}
	log.Info("stopped")
	return nil
}

// openState opens state.dir, which locks it. The errors of package state say
// what to do. distrust is why the store that is there must be set aside; nil: it
// need not.
func openState(cfg *config.Config, log *slog.Logger, distrust error) (*state.Store, error) {
	o := stateOptions(cfg, log)
	o.Distrust = distrust
	store, err := state.Open(cfg.State.Dir, o)
	if err != nil {
		return nil, fmt.Errorf("open state.dir %s: %w", cfg.State.Dir, err)
	}
	return store, nil
}

// stateOptions are for whatever opens state.dir.
func stateOptions(cfg *config.Config, log *slog.Logger) state.Options {
	return state.Options{
		Logger: log.With("part", "state"), KeepCheckpoints: cfg.State.Checkpoint.Keep, Writer: version,
		ReserveBytes: cfg.State.Reserve.Bytes, ReservePercent: cfg.State.Reserve.Percent,
		OpenFiles: int(min(1000, descriptorLimit()/2)),
		Fatal:     func(message string) { endAtOnce(cfg, log, message) },
	}
}

// endAtOnce ends the process where the store cannot go on: Pebble has no way
// back from a write that failed, and holds its locks. It is a crash that says
// why; the next start recovers.
func endAtOnce(cfg *config.Config, log *slog.Logger, message string) {
	log.Error("the local state cannot be written; the process ends, and the next start recovers",
		"state_dir", cfg.State.Dir, "disk", strings.TrimSpace(filesystemOf(cfg.State.Dir)), "reason", message)
	os.Exit(exitFailed)
}

// listen opens the TCP listener and the socket, so that a port in use is said
// before anything else begins.
func listen(ctx context.Context, cfg *config.Config) (*listeners, error) {
	socket, err := listenSocket(ctx, cfg.State.Dir)
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
	cfg     *config.Config
	log     *slog.Logger
	current atomic.Pointer[engine]
	stalls  stallDetector
	damage  damageHistory
	gc      loadGC
	waits   prometheus.Histogram // of the joins, for freshness
}

// newDaemon owns the store from here on: close the halves at the end.
func newDaemon(cfg *config.Config, store *state.Store, log *slog.Logger) *daemon {
	d := &daemon{cfg: cfg, log: log, waits: newFreshnessWaits()}
	if _, aside := store.SetAside(); aside {
		d.damage.add(time.Now())
	}
	d.newEngine(store)
	return d
}

// barrier is the mirror's freshness as package stream wants it. A mirror that
// has stopped for good cannot say any more what is fresh: campaigns wait, and
// what is decided is still shipped.
type barrier struct {
	mirror *cdc.Mirror
	waits  prometheus.Observer
}

// Barrier implements stream.Barrier.
func (b barrier) Barrier(ctx context.Context) error {
	start := time.Now()
	err := b.mirror.Barrier(ctx)
	if errors.Is(err, cdc.ErrStopped) {
		<-ctx.Done()
		return ctx.Err()
	}
	if err == nil {
		b.waits.Observe(time.Since(start).Seconds())
	}
	return err
}

// logStart says what runs and between what, without secrets.
func (d *daemon) logStart(cfg *config.Config, tcp net.Addr) {
	source, _ := cfg.SourceURL() // Validate has tried them
	sink, _ := cfg.SinkURL()
	d.log.Info("starting", "version", version, "state_dir", cfg.State.Dir,
		"source", postgres.Redact(source), "table", cfg.Source.Table.String(), "slot", cfg.Source.Slot,
		"sink", postgres.Redact(sink), "brokers", cfg.Kafka.Brokers, "campaigns", cfg.Kafka.Campaigns,
		"notifications", cfg.Kafka.Notifications, "http", tcp.String())
}

// run serves HTTP around the work: from before it begins, and until it has
// drained, so that the draining can be watched.
func (d *daemon) run(ctx context.Context, l *listeners) error {
	httpCtx, stopHTTP := context.WithCancel(context.WithoutCancel(ctx))
	g, gctx := errgroup.WithContext(ctx)
	readOnly := newHandler(d.report, d.log, d.waits)
	warnOfFewDescriptors(d.log, descriptorLimit())
	g.Go(func() error { return serveHTTP(httpCtx, overTCP(readOnly, l.tcp.Addr()), d.log, l.tcp, answerPatience) })
	// Actions end when the draining begins.
	actions := d.actions()
	for name, do := range actions {
		actions[name] = d.withStore(do)
	}
	control := newSocketHandler(gctx, readOnly, actions, d.log)
	g.Go(func() error { return serveHTTP(httpCtx, control, d.log, l.socket, 0) })
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

// standstill is how long nothing may be decided or shipped before the stream
// counts as having nothing left that it can do.
const standstill = 10 * time.Second

// awaitStandstill returns once the stream has done what it still can without
// the mirror: steps that are decided are shipped, campaigns whose audience is
// known are finished. New campaigns wait at the barrier for ever.
func (h *engine) awaitStandstill(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	last, since := h.service.Status().Notifications, time.Now()
	for time.Since(since) < standstill {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if now := h.service.Status().Notifications; now != last {
			last, since = now, time.Now()
		}
	}
}

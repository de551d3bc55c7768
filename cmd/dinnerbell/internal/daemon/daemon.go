// Package daemon runs the engine (store, mirror and service), replaces it when the
// store is damaged, and serves its status and the actions of the commands.
package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/control"
	"dinnerbell/cmd/dinnerbell/internal/httpserve"
	"dinnerbell/cmd/dinnerbell/internal/kafkaconn"
	"dinnerbell/cmd/dinnerbell/internal/status"
	"dinnerbell/internal/halt"
	"dinnerbell/internal/postgres"
	"dinnerbell/state"
	"dinnerbell/stream"

	"golang.org/x/sync/errgroup"
)

// Options are the inputs of the daemon.
type Options struct {
	Config   *config.Config
	Logger   *slog.Logger
	Build    status.Build
	Actions  map[string]Action
	ExitCode func(err error) int // of a command whose action ended with err

	// Reload asks for the configuration to be read again, by LoadConfig. nil: never.
	Reload     <-chan os.Signal
	LoadConfig func() (*config.Config, error)
}

// Run opens the state and runs the daemon until ctx ends, which drains it, or
// until nothing can go on without an operator.
func Run(ctx context.Context, o Options) (err error) {
	store, err := OpenState(o.Config, o.Logger, o.Build.Version, nil)
	if err != nil {
		return err
	}
	tracer, closeTracer, err := openTracer(ctx, &o)
	if err != nil {
		return errors.Join(err, store.Close())
	}
	defer closeTracer()
	d := newDaemon(o, store, tracer)
	defer func() { err = errors.Join(err, d.currentEngine().close()) }()
	l, err := openListeners(ctx, o.Config)
	if err != nil {
		return err
	}
	d.logStart(o.Config, l.tcp.Addr())
	if err := d.run(ctx, l); err != nil {
		return err
	}
	o.Logger.Info("stopped")
	return nil
}

// openListeners opens the TCP listener and the socket first, so that a port in use
// is reported before any work begins.
func openListeners(ctx context.Context, cfg *config.Config) (*listeners, error) {
	socket, err := control.Listen(ctx, cfg.State.Dir)
	if err != nil {
		return nil, err
	}
	tcp, err := listenHTTP(ctx, cfg)
	if err != nil {
		return nil, errors.Join(err, socket.Close())
	}
	return &listeners{tcp: tcp, socket: socket}, nil
}

// listeners are the two ways to the daemon: TCP, read-only, and the socket in
// state.dir, for its own user.
type listeners struct{ tcp, socket net.Listener }

// supervisor runs one engine at a time, replaces it when its store is damaged, and
// reports its status.
type supervisor struct {
	Options

	tracer    stream.Tracer // nil: no traces
	current   atomic.Pointer[Engine]
	limits    atomic.Pointer[stream.Limits] // in force
	stopping  atomic.Bool                   // run's context has ended
	level     string                        // of the log, in force; of watchReload
	site      status.Site
	stalls    status.StallDetector
	problems  status.ProblemClock
	damage    damageHistory
	gc        loadGC
	durations *status.Durations        // of the process: all engines add to them
	kafka     *kafkaconn.ClientMetrics // the same
}

// newDaemon makes the daemon around an open store, which it owns from here on:
// close its engine at the end.
func newDaemon(o Options, store *state.Store, tracer stream.Tracer) *supervisor {
	d := &supervisor{Options: o, tracer: tracer, durations: status.NewDurations(), kafka: kafkaconn.NewClientMetrics(), site: siteOf(o.Config)}
	limits := limitsOf(o.Config)
	d.limits.Store(&limits)
	d.level = o.Config.Log.Level
	if _, aside := store.SetAside(); aside {
		d.damage.add(time.Now())
	}
	d.newEngine(store)
	return d
}

// logStart logs the version and the addresses of all systems, without secrets.
func (s *supervisor) logStart(cfg *config.Config, tcp net.Addr) {
	source, _ := cfg.SourceURL() // Validate has tried them
	sink, _ := cfg.SinkURL()
	s.Logger.Info("starting", "version", s.Build.Version, "state_dir", cfg.State.Dir,
		"source", postgres.Redact(source), "table", cfg.Source.Table.String(), "slot", cfg.Source.Slot,
		"sink", postgres.Redact(sink), "brokers", cfg.Kafka.Brokers, "campaigns", cfg.Kafka.Campaigns,
		"notifications", cfg.Kafka.Notifications, "http", tcp.String(), "http_tls", cfg.HTTP.TLS.IsSet(), "http_token", cfg.HTTP.Token.IsSet())
}

// run serves HTTP from before the engine starts until it has drained, so that the
// draining can be watched.
func (s *supervisor) run(ctx context.Context, l *listeners) error {
	defer context.AfterFunc(ctx, func() { s.stopping.Store(true) })()
	httpCtx, stopHTTP := context.WithCancel(context.WithoutCancel(ctx))
	g, gctx := errgroup.WithContext(ctx)
	page, err := s.newLivePage()
	if err != nil {
		stopHTTP()
		return err
	}
	readOnly := withPage(page, status.NewHandler(s.Build, s.statusReport, s.Logger, append(s.durations.Collectors(), s.kafka)...))
	g.Go(func() error { return page.Run(httpCtx) })
	httpserve.WarnOfFewDescriptors(s.Logger, httpserve.DescriptorLimit())
	overTCP := s.newHTTPServer(readOnly, l.tcp.Addr())
	g.Go(func() error { return overTCP.Serve(httpCtx, l.tcp) })
	// Actions end when the daemon begins to drain.
	actions := map[string]control.Action{}
	for name, do := range s.Actions {
		actions[name] = s.withEngine(do)
	}
	overSocket := &httpserve.Server{Handler: control.NewHandler(gctx, readOnly, actions, s.ExitCode, s.Logger), Log: s.Logger}
	g.Go(func() error { return overSocket.Serve(httpCtx, l.socket) })
	g.Go(func() error { return s.notifySystemd(gctx) })
	g.Go(func() error { return s.watchReload(gctx) })
	g.Go(func() error {
		defer stopHTTP()
		return s.runEngines(gctx)
	})
	return g.Wait()
}

// runEngines runs engines until ctx ends or one of them fails for good. It replaces
// an engine whose store is damaged.
func (s *supervisor) runEngines(ctx context.Context) error {
	e := s.currentEngine()
	for {
		err := s.runEngine(ctx, e)
		if ctx.Err() != nil || e.Store.Damage() == nil {
			return err
		}
		if e, err = s.replaceEngine(ctx, e); e == nil {
			return err
		}
	}
}

// runEngine runs mirror and service until ctx ends, one of them fails for good, or
// the store is found damaged.
func (s *supervisor) runEngine(ctx context.Context, e *Engine) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := e.Mirror.Run(gctx)
		if halted, ok := errors.AsType[*halt.Error](err); ok {
			s.Logger.Error("source halted; decided steps are still shipped", "what", halted.What, "to_mend", halted.Hint)
			if e.isAdmitted() {
				e.awaitStandstill(gctx)
			}
			if ctx.Err() != nil {
				return nil //nolint:nilerr // asked to end; the halt has been logged
			}
		}
		return err
	})
	g.Go(func() error {
		// Without this wait a second daemon with this slot would take the first
		// one's place in the consumer group.
		select {
		case <-e.Mirror.Admitted():
			return e.Service.Run(gctx)
		case <-gctx.Done():
			return nil
		}
	})
	g.Go(func() error { return s.logReadiness(gctx) })
	g.Go(func() error { return s.dropReplaced(gctx, e) })
	g.Go(func() error {
		select {
		case <-e.Store.Damaged():
			return e.Store.Damage()
		case <-gctx.Done():
			return nil
		}
	})
	return g.Wait()
}

// logReadiness reads the status each second, so that a stall is noticed even if
// nobody asks, and logs changes of readiness.
func (s *supervisor) logReadiness(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	ready := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		r := s.statusReport()
		switch {
		case r.Ready && !ready:
			s.Logger.Info("ready", "subscriptions", r.Source.Subscriptions, "lanes", len(r.Lanes))
		case !r.Ready && ready && !r.Stopping:
			s.Logger.Warn("not ready", "reasons", r.Reasons)
		}
		ready = r.Ready
	}
}

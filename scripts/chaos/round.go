package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"dinnerbell/internal/testenv"
	"dinnerbell/scripts/chaos/history"
	"dinnerbell/scripts/chaos/network"
	"dinnerbell/scripts/chaos/oracle"
	"dinnerbell/scripts/chaos/random"
	"dinnerbell/scripts/chaos/scenario"
)

// round is one deployment from its setup to its verdict.
type round struct {
	servers  *servers
	number   int
	dir      string
	database string
	group    string
	topics   struct{ campaigns, notifications, dead, progress string }

	log                *history.Log
	admin              *kgo.Client
	daemons            []*daemonProcess // always two; with -daemons 1 the second one stands in for a zombie
	writers            []*subscriptionWriter
	producer           *campaignProducer
	samples            *sampler                       // nil unless this is a soak
	startRows          map[int64]history.Subscription // by row id, before the workload
	transactionNumbers atomic.Int64
	failedVerifies     atomic.Int64 // verify commands that found a difference during the faults

	mu         sync.Mutex                            // guards the fields below
	deleted    map[oracle.RecordPosition]*kgo.Record // records that the retention fault deleted from the campaigns topic
	complaints []string                              // forbidden effects of commands

	lateSince time.Duration // who is subscribed since then must have every campaign that is live then
	recovery  time.Duration // from the end of the faults until the daemons had caught up
}

func newRound(w *servers, number int) *round {
	name := fmt.Sprintf("chaos_%d", number)
	r := &round{servers: w, number: number, dir: filepath.Join(w.dir, fmt.Sprintf("r%d", number)), database: name, group: name, startRows: map[int64]history.Subscription{}, deleted: map[oracle.RecordPosition]*kgo.Record{}}
	r.topics.campaigns, r.topics.notifications = name+".campaigns", name+".notifications"
	r.topics.dead, r.topics.progress = name+".dead", name+".progress"
	return r
}

// notifiesLateSubscribers reports whether the round's daemons notify late subscribers: every second round,
// and a soak.
func (r *round) notifiesLateSubscribers() bool { return r.number%2 == 0 || r.servers.opts.soak > 0 }

// stormDuration is how long the workload and the faults last.
func (r *round) stormDuration() time.Duration {
	return time.Duration(r.servers.opts.seconds) * time.Second
}

func (r *round) workloadPace() pace {
	if r.servers.opts.soak > 0 {
		return soakPace
	}
	return roundPace
}

func (r *round) slotOf(d *daemonProcess) string { return r.database + "_" + d.name }

// run runs the round. An error means that the round could not be run; the
// verdict holds the findings.
func (r *round) run(ctx context.Context) (v *oracle.Verdict, err error) {
	v = oracle.NewVerdict()
	if err := r.setUp(ctx); err != nil {
		return v, fmt.Errorf("set up round %d: %w", r.number, err)
	}
	if err := r.runStorm(ctx); err != nil {
		return v, fmt.Errorf("run round %d: %w", r.number, err)
	}
	settled := r.awaitSettled(ctx, v)
	r.verifyDaemons(ctx, v)
	for _, d := range r.daemons {
		if err := d.closeForGood(); err != nil {
			v.Problemf("%v", err)
		}
		for _, exit := range d.unaskedExits() {
			v.Problemf("%s", exit)
		}
	}
	if r.samples != nil {
		r.samples.checkSlopes(v)
	}
	for _, c := range r.complaints {
		v.Problemf("%s", c)
	}
	if ctx.Err() != nil {
		return v, ctx.Err()
	}
	if err := r.compareSinks(ctx, v, settled); err != nil {
		return v, fmt.Errorf("compare sinks of round %d: %w", r.number, err)
	}
	return v, nil
}

// setUp makes the database, the topics and the configurations.
func (r *round) setUp(ctx context.Context) (err error) {
	if err := os.MkdirAll(r.dir, 0o750); err != nil {
		return err
	}
	if r.log, err = history.NewLog(filepath.Join(r.dir, "history.jsonl"), history.CampaignLife(r.stormDuration())); err != nil {
		return err
	}
	if r.admin, err = r.servers.newKafkaClient(); err != nil {
		return err
	}
	resp, err := kadm.NewClient(r.admin).CreateTopic(ctx, history.Partitions, 1, nil, r.topics.campaigns)
	if err == nil {
		err = resp.Err
	}
	if err != nil {
		return fmt.Errorf("create topic: %w", err)
	}
	if r.producer, err = newProducer(r); err != nil {
		return err
	}
	if err := r.makeDatabase(ctx); err != nil {
		return err
	}
	for i := range 2 {
		if err := r.addDaemon(i); err != nil {
			return err
		}
	}
	config := filepath.Join(r.dir, "setup.yaml")
	direct := r.servers.postgres.URL(r.database)
	if err := r.writeConfig(config, "setup", direct, direct, r.servers.broker.Addr(), "127.0.0.1:0"); err != nil {
		return err
	}
	if err := r.runSetup(ctx, config); err != nil {
		return err
	}
	return r.prepareSlowCommits(ctx)
}

// runSetup runs `dinnerbell setup`.
func (r *round) runSetup(ctx context.Context, config string) error {
	out, err := exec.CommandContext(ctx, r.servers.binary, "-c", config, "setup").CombinedOutput() //nolint:gosec // the daemon under test
	if err != nil {
		return fmt.Errorf("dinnerbell setup: %w\n%s", err, out)
	}
	return nil
}

// makeDatabase creates the source and inserts the rows of all writers. Each
// writer draws its rows from its own stream of random numbers.
func (r *round) makeDatabase(ctx context.Context) error {
	root, err := r.servers.connectPostgres(ctx, "postgres")
	if err != nil {
		return err
	}
	defer func() { _ = root.Close(ctx) }()
	if _, err := root.Exec(ctx, "CREATE DATABASE "+r.database); err != nil {
		return fmt.Errorf("create database: %w", err)
	}
	conn, err := r.servers.connectPostgres(ctx, r.database)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, testenv.ContractTables+receiptTable); err != nil {
		return fmt.Errorf("create tables: %w", err)
	}
	truncate := &sync.RWMutex{}
	for i := range scenario.Writers {
		b := scenario.NewWriterRows(random.NewStream(r.servers.opts.seed, r.number, random.WriterStream+i), i)
		r.writers = append(r.writers, &subscriptionWriter{round: r, rows: b, numbers: &r.transactionNumbers, truncate: truncate})
		maps.Copy(r.startRows, b.Rows)
	}
	for _, w := range r.writers {
		for _, o := range r.writers {
			w.allRows = append(w.allRows, o.rows)
		}
	}
	rows := make([][]any, 0, len(r.startRows))
	for id, p := range r.startRows {
		rows = append(rows, []any{int32(id), p.Client, p.Restaurant})
	}
	if _, err := conn.CopyFrom(ctx, pgx.Identifier{"subscribers_restaurants"}, []string{"id", "client_id", "restaurant_id"}, pgx.CopyFromRows(rows)); err != nil {
		return fmt.Errorf("insert subscriptions: %w", err)
	}
	return nil
}

// addDaemon makes a daemon with a network of its own.
func (r *round) addDaemon(i int) error {
	l, err := network.NewLinks(testenv.Loopback(r.servers.postgres.Port()), r.servers.broker.Addr())
	if err != nil {
		return err
	}
	port, err := testenv.FreePort()
	if err != nil {
		return err
	}
	name := fmt.Sprintf("d%d", i)
	d := &daemonProcess{
		name: name, binary: r.servers.binary, links: l, http: testenv.Loopback(port), dir: filepath.Join(r.dir, name),
		config: filepath.Join(r.dir, name+".yaml"), log: filepath.Join(r.dir, name+".log"),
	}
	if r.servers.opts.soak > 0 {
		d.env = []string{fmt.Sprintf("GOGC=%d", soakCollector)}
	}
	r.daemons = append(r.daemons, d)
	direct := r.servers.postgres.URL(r.database)
	source, err := l.SourceURL(direct)
	if err != nil {
		return err
	}
	sink, err := l.SinkURL(direct)
	if err != nil {
		return err
	}
	return r.writeConfig(d.config, name, source, sink, l.Broker(), d.http)
}

// writeConfig writes a configuration as JSON, which is YAML.
func (r *round) writeConfig(path, name, source, sink, brokers, http string) error {
	text, err := json.MarshalIndent(map[string]any{
		"source": map[string]any{"url": source, "slot": r.database + "_" + name},
		"sink":   map[string]any{"url": sink},
		"kafka": map[string]any{
			"brokers": []string{brokers}, "campaigns": r.topics.campaigns, "notifications": r.topics.notifications,
			"dead_letters": r.topics.dead, "progress": r.topics.progress, "group": r.group,
		},
		"state": map[string]any{"dir": filepath.Join(r.dir, name), "checkpoint": map[string]any{"every": r.workloadPace().checkpoint.String(), "keep": 2}},
		"http":  map[string]any{"listen": http},
		"join":  map[string]any{"late_subscribers": r.notifiesLateSubscribers()},
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return os.WriteFile(path, text, 0o600)
}

// runStorm runs the workload and the faults side by side for the round's
// seconds.
func (r *round) runStorm(ctx context.Context) error {
	for _, d := range r.daemons[:r.servers.opts.daemons] {
		if err := d.startProcess(); err != nil {
			return err
		}
	}
	draw := drawSchedule
	if r.servers.opts.soak > 0 {
		draw = drawSoakSchedule
	}
	list := draw(random.NewStream(r.servers.opts.seed, r.number, random.FaultStream), r.servers.opts, r.stormDuration())
	base := r.log.Now() // the setup took a while
	for _, f := range list {
		f.At += base
	}
	ctx, cancel := context.WithTimeout(ctx, r.stormDuration())
	defer cancel()
	g, gctx := errgroup.WithContext(ctx)
	for _, w := range r.writers {
		g.Go(func() error { return w.commitUntilDone(gctx) })
	}
	g.Go(func() error { return r.producer.sendUntilDone(gctx) })
	if r.servers.opts.soak > 0 {
		r.samples = newSampler(r)
		g.Go(func() error { return r.samples.sampleUntilDone(gctx) })
	}
	in := &faultInjector{round: r}
	g.Go(func() error { return in.runSchedule(gctx, list) })
	return errors.Join(g.Wait(), in.healAll())
}

// cleanUp ends the round's processes, keeps the round's folder if asked to, and
// deletes the round's resources.
func (r *round) cleanUp(keep bool) error {
	var errs []error
	for _, d := range r.daemons {
		errs = append(errs, d.closeForGood())
		d.links.Close()
	}
	if r.producer != nil {
		r.producer.closeClients()
	}
	if r.log != nil {
		errs = append(errs, r.log.Close())
	}
	if keep {
		errs = append(errs, r.keepFolder())
	}
	if r.servers.lostServer() == nil {
		errs = append(errs, r.dropResources())
	}
	if r.admin != nil {
		r.admin.Close()
	}
	return errors.Join(append(errs, os.RemoveAll(r.dir))...)
}

// dropResources deletes the slots, the database and the topics.
func (r *round) dropResources() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	root, err := r.servers.connectPostgres(ctx, "postgres")
	if err != nil {
		return err
	}
	defer func() { _ = root.Close(ctx) }()
	for ctx.Err() == nil { // a walsender notices the end of its daemon with a delay
		_, err = root.Exec(ctx, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active_pid IS NOT NULL`)
		if err == nil {
			_, err = root.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots`)
		}
		if err == nil {
			break
		}
		testenv.Pause(ctx, 100*time.Millisecond)
	}
	if err != nil {
		return fmt.Errorf("drop slots: %w", err)
	}
	if _, err := root.Exec(ctx, "DROP DATABASE IF EXISTS "+r.database+" WITH (FORCE)"); err != nil {
		return fmt.Errorf("drop database: %w", err)
	}
	t := r.topics
	if _, err := kadm.NewClient(r.admin).DeleteTopics(ctx, t.campaigns, t.notifications, t.dead, t.progress); err != nil {
		return fmt.Errorf("delete topics: %w", err)
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"dinnerbell/scripts/bench/contender"
	"dinnerbell/scripts/bench/deployment"
	"dinnerbell/scripts/bench/report"
)

// suite is one run of the program, for one goroutine.
type suite struct {
	opts      options
	stderr    io.Writer
	began     time.Time
	report    *report.Report
	servers   *deployment.Servers
	people    deployment.Population
	copyLimit *contender.CopyLimit
}

// sayf prints progress with the time since the start.
func (s *suite) sayf(format string, args ...any) {
	_, _ = fmt.Fprintf(s.stderr, "%6.1fs  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// run measures the wanted parts and removes the servers.
func (s *suite) run(ctx context.Context) (err error) {
	s.people = deployment.NewPopulation(s.opts.audience, s.opts.subscriptions)
	s.sayf("%s", s.people.String())
	if s.servers, err = deployment.StartServers(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.servers.Stop(s.opts.keep)) }()
	if s.copyLimit, err = contender.NewCopyLimit(ctx, s.servers); err != nil {
		return err
	}
	for _, broker := range s.opts.brokers {
		if err := s.measureOnBroker(ctx, broker); err != nil {
			return fmt.Errorf("on %s: %w", broker, err)
		}
	}
	return nil
}

// stage is the part of a run that uses one broker.
type stage struct {
	*suite
	kind       string // kfake, kafka
	broker     string
	producer   *deployment.CampaignProducer
	deployment *deployment.Deployment
	dinnerbell *contender.Dinnerbell
	byhand     *contender.ByHand
}

// measureOnBroker measures the parts that use one broker; on the second broker
// only those that depend on the broker.
func (s *suite) measureOnBroker(ctx context.Context, kind string) (err error) {
	st := &stage{suite: s, kind: kind}
	if st.broker, err = s.servers.StartBroker(ctx, kind); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.servers.StopBroker(kind)) }()
	if st.producer, err = deployment.NewProducer(st.broker); err != nil {
		return err
	}
	defer st.producer.Client.Close()
	if err := st.warmBroker(ctx); err != nil {
		return err
	}
	s.sayf("filling databases for %s", kind)
	name := "ours_" + kind
	if st.deployment, err = deployment.NewDeployment(ctx, s.servers, s.opts.binary, name, st.broker, "", st.producer, &s.people); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.deployment.Stop()) }()
	st.dinnerbell = &contender.Dinnerbell{Deployment: st.deployment, Producer: st.producer, ProfileDir: s.opts.perf}
	if st.byhand, err = contender.NewByHand(ctx, s.servers, s.opts.byhand, "byhand_"+kind, st.broker, st.producer, &s.people); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.byhand.Stop()) }()
	if err := st.runParts(ctx); err != nil {
		return err
	}
	if err := st.deployment.Stop(); err != nil {
		return err
	}
	return errors.Join(s.servers.DropDatabase(ctx, st.deployment.Database), s.servers.DropDatabase(ctx, st.byhand.Database))
}

// runParts runs the wanted parts and then checks the notifications topic.
func (st *stage) runParts(ctx context.Context) error {
	for _, p := range []struct {
		name string
		// everywhere: the result depends on the broker, so the part runs on
		// each one.
		everywhere bool
		run        func(context.Context) error
	}{
		{"rebuild", false, st.measureRebuild},
		{"fanout", true, st.measureFanout},
		{"small", false, st.measureSmall},
		{"lanes", !st.opts.quick, st.measureLanes},
		{"latency", true, st.measureLatency},
		{"scheduled", true, st.measureScheduled},
		{"fairness", true, st.measureFairness},
		{"late", true, st.measureLate},
		{"kill", false, st.measureDuplicates},
		{"memory", false, st.measureMemory},
		{"cdc", false, st.measureMirror},
		{"drain", false, st.measureDrain},
		{"history", false, st.measureHistory},
		{"flatness", false, st.measureFlatness},
		{"units", true, st.measureUnits},
	} {
		if !st.opts.wantsPart(p.name) || !p.everywhere && st.kind != st.opts.brokers[0] {
			continue
		}
		st.sayf("%s on %s", p.name, st.kind)
		if err := p.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return st.dinnerbell.CheckTopic(ctx)
}

// warmRecords is how many records a broker takes before it is measured: enough
// for a JVM to compile its hot code, as a server that has been up for a day has
// done.
const warmRecords = 2_000_000

func (st *stage) warmBroker(ctx context.Context) error {
	if st.kind != deployment.KindKafka {
		return nil
	}
	st.sayf("warming %s up", st.kind)
	const topic = "bench.warm"
	if err := st.producer.CreateTopics(ctx, topic); err != nil {
		return err
	}
	l, err := contender.NewLoad(&st.people, deployment.KindLarge, 1, 1, true)
	if err != nil {
		return err
	}
	p := &contender.ProduceLimit{Broker: st.broker, Topic: topic}
	records := warmRecords
	if st.opts.quick {
		records /= 4
	}
	for sent := 0; sent < records; sent += l.Total {
		if err := p.Prepare(ctx, l); err != nil {
			return err
		}
		if err := errors.Join(p.Deliver(ctx, l), p.Settle(ctx, l)); err != nil {
			return fmt.Errorf("warm broker up: %w", err)
		}
	}
	return nil
}

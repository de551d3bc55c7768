package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// suite is one run of the program. For one goroutine.
type suite struct {
	opts    options
	stderr  io.Writer
	began   time.Time
	report  *report
	servers *servers
	people  population
	copy    *copyLimit
}

// sayf reports progress, with the time since the start.
func (s *suite) sayf(format string, args ...any) {
	_, _ = fmt.Fprintf(s.stderr, "%6.1fs  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// run measures what was asked for and takes everything down again.
func (s *suite) run(ctx context.Context) (err error) {
	s.people = newPopulation(s.opts.audience, s.opts.subscriptions)
	s.sayf("%s", s.people.String())
	if s.servers, err = startServers(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.servers.stop(s.opts.keep)) }()
	if s.copy, err = newCopyLimit(ctx, s.servers); err != nil {
		return err
	}
	for _, broker := range s.opts.brokers {
		if err := s.onBroker(ctx, broker); err != nil {
			return fmt.Errorf("on %s: %w", broker, err)
		}
	}
	return nil
}

// stage is what runs on one broker.
type stage struct {
	*suite
	kind     string // kfake, kafka
	broker   string
	producer *producer
	d        *deployment
	ours     *ours
	byhand   *byHand
}

// onBroker measures everything that has to do with one broker; on real Kafka
// only what depends on the broker.
func (s *suite) onBroker(ctx context.Context, kind string) (err error) {
	st := &stage{suite: s, kind: kind}
	if st.broker, err = s.servers.broker(ctx, kind); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.servers.stopBroker(kind)) }()
	if st.producer, err = newProducer(st.broker); err != nil {
		return err
	}
	defer st.producer.client.Close()
	if err := st.warmBroker(ctx); err != nil {
		return err
	}
	s.sayf("filling databases for %s", kind)
	name := "ours_" + kind
	if st.d, err = deploy(ctx, s.servers, s.opts.binary, name, st.broker, "", st.producer, &s.people); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.d.stop()) }()
	st.ours = &ours{d: st.d, producer: st.producer, perf: s.opts.perf}
	if st.byhand, err = newByHand(ctx, s.servers, s.opts.byhand, "byhand_"+kind, st.broker, st.producer, &s.people); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.byhand.stop()) }()
	if err := st.parts(ctx); err != nil {
		return err
	}
	if err := st.d.stop(); err != nil {
		return err
	}
	return errors.Join(s.servers.drop(ctx, st.d.db), s.servers.drop(ctx, st.byhand.db))
}

// parts runs the wanted parts, and checks what was delivered in all of them.
func (st *stage) parts(ctx context.Context) error {
	for _, p := range []struct {
		name string
		// everywhere: on each broker, not on the first alone. Of the others
		// the result does not depend on the broker.
		everywhere bool
		run        func(context.Context) error
	}{
		{"rebuild", false, st.rebuild},
		{"fanout", true, st.fanout},
		{"small", false, st.small},
		{"lanes", !st.opts.quick, st.lanes},
		{"latency", true, st.latency},
		{"kill", false, st.kill},
		{"memory", false, st.memory},
		{"cdc", false, st.cdc},
		{"drain", false, st.drain},
		{"flatness", false, st.flatness},
		{"units", true, st.units},
	} {
		if !st.opts.wants(p.name) || !p.everywhere && st.kind != st.opts.brokers[0] {
			continue
		}
		st.sayf("%s on %s", p.name, st.kind)
		if err := p.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return st.ours.check(ctx)
}

// warmRecords is what a broker takes before it is measured: enough for a JVM to
// have compiled what it runs, as one that has been up for a day has.
const warmRecords = 2_000_000

func (st *stage) warmBroker(ctx context.Context) error {
	if st.kind != kindKafka {
		return nil
	}
	st.sayf("warming %s up", st.kind)
	const topic = "bench.warm"
	if err := st.producer.createTopics(ctx, topic); err != nil {
		return err
	}
	l, err := newLoad(&st.people, kindLarge, 1, 1, true)
	if err != nil {
		return err
	}
	p := &produceLimit{broker: st.broker, topic: topic}
	records := warmRecords
	if st.opts.quick {
		records /= 4
	}
	for sent := 0; sent < records; sent += l.total {
		if err := p.prepare(ctx, l); err != nil {
			return err
		}
		if err := errors.Join(p.deliver(ctx, l), p.settle(ctx, l)); err != nil {
			return fmt.Errorf("warm broker up: %w", err)
		}
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
)

// memory: the daemon's largest resident set, over a start and a campaign to
// the largest restaurant, half of all subscriptions.
func (st *stage) memory(ctx context.Context) (err error) {
	if err := st.d.stop(); err != nil {
		return err
	}
	kind := kindHuge
	if _, ok := st.people.Group(kind); !ok {
		kind = kindLarge
	}
	l, err := newLoad(&st.people, kind, 1, 1, false)
	if err != nil {
		return err
	}
	if err := st.ours.prepare(ctx, l); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.ours.settle(ctx, l)) }()
	if err := st.ours.deliver(ctx, l); err != nil {
		return err
	}
	peak, err := peakRSS(st.d.daemon.PID())
	if err != nil {
		return err
	}
	st.report.add("memory_peak", "MB", []float64{peak / 1e6}, "goal", 300)
	return nil
}

// flatSmall is the size of the small population that flatness compares with, and
// flatAudience that of its large campaign.
const (
	flatSmall    = 100_000
	flatAudience = 10_000
)

// flatness: what a notification costs, in CPU time of the daemon and Postgres,
// with all subscriptions ÷ with a hundred thousand, for campaigns to a thousand
// different restaurants in turn, where each has to be found anew. Both daemons
// get the same load in turn.
func (st *stage) flatness(ctx context.Context) (err error) {
	small := newPopulation(flatAudience, 0)
	small = newPopulation(flatAudience, max(flatSmall, small.Rows()))
	d, err := deploy(ctx, st.servers, st.opts.binary, "flat_"+st.kind, st.broker, "flat.", st.producer, &small)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop(), st.servers.drop(context.WithoutCancel(ctx), d.db)) }()
	field := []entry{
		{name: fmt.Sprint(st.people.Rows()), contender: st.ours},
		{name: fmt.Sprint(small.Rows()), contender: &ours{d: d, producer: st.producer}},
	}
	// Restaurants of a kind have the same ids in both populations: the groups before
	// them have as many.
	err = st.tournament(ctx, "flatness", st.opts.runs, field, func() (*load, error) {
		return newLoad(&small, kindHundred, st.opts.audience/100, 1, false)
	})
	if err != nil {
		return err
	}
	cost := func(e *entry) []float64 {
		return pluck(e.samples, func(s sample) float64 { return s.own + s.postgres })
	}
	st.report.addRatio("flatness", cost(&field[0]), cost(&field[1]))
	st.report.add("flatness_daemon_cpu", "s/million", field[0].cpu(), "small_town", field[1].cpu()...)
	st.report.add("flatness_throughput", "notifications/s", field[0].rates(), "small_town", field[1].rates()...)
	return nil
}

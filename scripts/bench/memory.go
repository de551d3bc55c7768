package main

import (
	"context"
	"errors"
	"fmt"

	"dinnerbell/scripts/bench/contender"
	"dinnerbell/scripts/bench/deployment"
	"dinnerbell/scripts/bench/usage"
)

// measureMemory measures the daemon's largest resident set during a start and a
// campaign to the largest restaurant, which has half of all subscriptions.
func (st *stage) measureMemory(ctx context.Context) (err error) {
	if err := st.deployment.Stop(); err != nil {
		return err
	}
	kind := deployment.KindHuge
	if _, ok := st.people.Group(kind); !ok {
		kind = deployment.KindLarge
	}
	l, err := contender.NewLoad(&st.people, kind, 1, 1, false)
	if err != nil {
		return err
	}
	if err := st.dinnerbell.Prepare(ctx, l); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.dinnerbell.Settle(ctx, l)) }()
	if err := st.dinnerbell.Deliver(ctx, l); err != nil {
		return err
	}
	peak, err := usage.PeakRSS(st.deployment.Daemon.PID())
	if err != nil {
		return err
	}
	st.report.Add("memory_peak", "MB", []float64{peak / 1e6}, "goal", 300)
	return nil
}

// flatSmall is the size of the small population for flatness, and flatAudience
// the audience of its large campaign.
const (
	flatSmall    = 100_000
	flatAudience = 10_000
)

// measureFlatness divides the cost of a notification with all subscriptions by
// the cost with a hundred thousand. The cost is CPU time of the daemon and of
// Postgres. Campaigns go to a thousand different restaurants in turn, so the
// daemon has to find each one anew. Both daemons get the same loads in turn.
func (st *stage) measureFlatness(ctx context.Context) (err error) {
	small := deployment.NewPopulation(flatAudience, 0)
	small = deployment.NewPopulation(flatAudience, max(flatSmall, small.Rows()))
	d, err := deployment.NewDeployment(ctx, st.servers, st.opts.binary, "flat_"+st.kind, st.broker, "flat.", st.producer, &small)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, d.Stop(), st.servers.DropDatabase(context.WithoutCancel(ctx), d.Database))
	}()
	field := []contestant{
		{name: fmt.Sprint(st.people.Rows()), Contender: st.dinnerbell},
		{name: fmt.Sprint(small.Rows()), Contender: &contender.Dinnerbell{Deployment: d, Producer: st.producer}},
	}
	// The restaurants of this kind have the same ids in both populations, since
	// the groups before them have as many restaurants.
	err = st.runTournament(ctx, "flatness", st.opts.runs, field, func() (*contender.CampaignLoad, error) {
		return contender.NewLoad(&small, deployment.KindHundred, st.opts.audience/100, 1, false)
	})
	if err != nil {
		return err
	}
	cost := func(e *contestant) []float64 {
		return valuesOf(e.samples, func(s contender.Sample) float64 { return s.OwnCPU + s.PostgresCPU })
	}
	st.report.AddRatio("flatness", cost(&field[0]), cost(&field[1]))
	st.report.Add("flatness_daemon_cpu", "s/million", field[0].cpu(), "small_town", field[1].cpu()...)
	st.report.Add("flatness_throughput", "notifications/s", field[0].rates(), "small_town", field[1].rates()...)
	return nil
}

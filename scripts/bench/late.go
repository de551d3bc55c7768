package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/workload"
	"dinnerbell/scripts/bench/contender"
	"dinnerbell/scripts/bench/deployment"
	"dinnerbell/scripts/bench/report"
	"dinnerbell/scripts/bench/usage"
)

const (
	// lateCampaigns are live while clients subscribe, each of a restaurant of its own.
	lateCampaigns = 1000
	// lateMany are live on one lane while the cost of a change is measured.
	lateMany = 100_000
	// lateFirst is the first of the restaurants of these.
	lateFirst = 10_000_000
)

// measureLate measures join.late_subscribers on a deployment of its own: the time from the
// commit of a subscription until the notification of a live campaign is visible to a
// read_committed reader, with a thousand live campaigns and with a hundred thousand on one
// lane; and what the option costs the catching up with the source.
func (st *stage) measureLate(ctx context.Context) (err error) {
	small := deployment.NewPopulation(flatAudience, 0)
	d, err := deployment.NewDeployment(ctx, st.servers, st.opts.binary, "late_"+st.kind, st.broker, "late.", st.producer, &small)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, d.Stop(), st.servers.DropDatabase(context.WithoutCancel(ctx), d.Database))
	}()
	if st.kind == st.opts.brokers[0] { // the drain does not depend on the broker
		if err := st.measureLateDrain(ctx, d); err != nil {
			return err
		}
	}
	if err := errors.Join(d.SetLateSubscribers(ctx, true), d.Start(ctx)); err != nil {
		return err
	}
	if err := st.measureLateNotifications(ctx, d, &small, "late", lateCampaigns); err != nil {
		return err
	}
	if st.opts.quick {
		return nil
	}
	if err := st.measureLateNotifications(ctx, d, &small, "late_100k", lateMany); err != nil {
		return err
	}
	peak, err := usage.PeakRSS(d.Daemon.PID())
	st.report.Add("late_100k_memory_"+st.kind, "MB", []float64{peak / 1e6}, "")
	return err
}

// measureLateNotifications has n campaigns go out, each of a restaurant of its own. Then
// clients subscribe one after the other, each to the restaurant of one campaign. Beyond
// the population's restaurants nobody subscribes to a restaurant before.
func (st *stage) measureLateNotifications(ctx context.Context, d *deployment.Deployment, people *deployment.Population, series string, n int) error {
	l, err := contender.NewLoad(people, deployment.KindTen, n, 1, false)
	if err != nil {
		return err
	}
	for i := range l.Campaigns {
		if n > lateCampaigns {
			l.Campaigns[i].Restaurant = workload.RestaurantID(lateFirst + i)
		}
	}
	before, err := d.Database.CountRows(ctx, "dinnerbell.campaign")
	if err != nil {
		return err
	}
	if err := st.producer.Send(ctx, contender.EncodeRecords(d.CampaignsTopic, l)...); err != nil {
		return err
	}
	if err := d.Daemon.AwaitCount(ctx, before+int64(n), func() (int64, error) {
		return d.Database.CountRows(ctx, "dinnerbell.campaign WHERE state = 'finished'")
	}); err != nil {
		return err
	}
	w, err := deployment.Watch(ctx, st.broker, d.NotificationsTopic, kgo.ReadCommitted())
	if err != nil {
		return err
	}
	defer w.Close()
	var took []float64
	for i := range st.opts.samples + latencyWarm {
		c := &l.Campaigns[i%n]
		if err := d.Database.Exec(ctx, `INSERT INTO public.subscribers_restaurants (client_id, restaurant_id) VALUES (gen_random_uuid(), $1)`, c.Restaurant); err != nil {
			return err
		}
		committed := time.Now()
		at, err := w.AwaitCampaign(ctx, c.ID, i/n+1)
		if err != nil {
			return err
		}
		if i >= latencyWarm {
			took = append(took, milliseconds(at.Sub(committed)))
		}
	}
	st.sayf("%s: p50 %.1f ms, p99 %.1f ms", series, report.Percentile(took, 0.5), report.Percentile(took, 0.99))
	for _, p := range []float64{0.50, 0.99} {
		st.report.Add(fmt.Sprintf("%s_p%.0f_%s", series, 100*p, st.kind), "ms", []float64{report.Percentile(took, p)}, "")
	}
	return nil
}

// measureLateDrain measures what the option costs the catching up with the source while no
// campaign is live.
func (st *stage) measureLateDrain(ctx context.Context, d *deployment.Deployment) error {
	late := *st
	late.deployment = d
	return late.compareDrains(ctx, "late_drain", func(on bool) error { return d.SetLateSubscribers(ctx, on) })
}

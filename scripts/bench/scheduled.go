package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/scripts/bench/contender"
	"dinnerbell/scripts/bench/deployment"
	"dinnerbell/scripts/bench/report"
	"dinnerbell/scripts/bench/usage"
)

const (
	// scheduledWaiting campaigns wait for later starts while others start, half of
	// them within the hour.
	scheduledWaiting = 100_000
	// scheduledTogether campaigns start in each second of the second series.
	scheduledTogether = 100
	scheduledAhead    = 3 * time.Second // from the produce of a series to its first start
)

// measureScheduled measures the time from the second in which a campaign of a hundred
// starts until its last notification is visible to a read_committed reader, while a
// hundred thousand campaigns wait for later starts. Then it measures the same for a
// hundred such campaigns that start in the same second.
func (st *stage) measureScheduled(ctx context.Context) (err error) {
	d := st.deployment
	if err := d.Stop(); err != nil { // a new process, whose memory is measured
		return err
	}
	if err := d.Start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Stop(), st.forgetScheduled(context.WithoutCancel(ctx))) }()
	if err := st.sendWaiting(ctx); err != nil {
		return err
	}
	w, err := deployment.Watch(ctx, st.broker, d.NotificationsTopic, kgo.ReadCommitted())
	if err != nil {
		return err
	}
	defer w.Close()
	seconds := 60
	if st.opts.quick {
		seconds = 10
	}
	one, _, err := st.watchStarts(ctx, w, seconds, 1)
	if err != nil {
		return err
	}
	last, each, err := st.watchStarts(ctx, w, seconds, scheduledTogether)
	if err != nil {
		return err
	}
	peak, err := usage.PeakRSS(d.Daemon.PID())
	if err != nil {
		return err
	}
	for _, s := range []struct {
		name   string
		values []float64
	}{{"scheduled", one}, {"scheduled_together", last}, {"scheduled_together_each", each}} {
		for _, p := range []float64{0.50, 0.99} {
			st.report.Add(fmt.Sprintf("%s_p%.0f_%s", s.name, 100*p, st.kind), "ms", []float64{report.Percentile(s.values, p)}, "")
		}
	}
	st.report.Add("scheduled_memory_"+st.kind, "MB", []float64{peak / 1e6}, "")
	return nil
}

// sendWaiting sends the campaigns that wait, and returns when the daemon has accepted
// all of them.
func (st *stage) sendWaiting(ctx context.Context) error {
	l, err := contender.NewLoad(&st.people, deployment.KindHundred, scheduledWaiting, 1, false)
	if err != nil {
		return err
	}
	first := time.Now().Add(20 * time.Minute)
	for i := range l.Campaigns {
		c := &l.Campaigns[i]
		c.Start = first.Add(time.Duration(i) * 80 * time.Minute / scheduledWaiting).Unix()
		c.End = c.Start + 3600
	}
	began := time.Now()
	if err := st.producer.Send(ctx, contender.EncodeRecords(st.deployment.CampaignsTopic, l)...); err != nil {
		return err
	}
	err = st.deployment.Daemon.AwaitCount(ctx, scheduledWaiting, func() (int64, error) {
		return st.deployment.Database.CountRows(ctx, `dinnerbell.campaign WHERE state = 'pending'`)
	})
	st.report.Add("scheduled_accepted_"+st.kind, "campaigns/s", []float64{scheduledWaiting / time.Since(began).Seconds()}, "")
	return err
}

// watchStarts lets some campaigns start together in each of some seconds. It returns, in
// milliseconds after the start, when the last notification of each second and of
// each campaign was visible.
func (st *stage) watchStarts(ctx context.Context, w *deployment.TopicWatcher, seconds, together int) (last, each []float64, err error) {
	l, err := contender.NewLoad(&st.people, deployment.KindHundred, seconds*together, 1, false)
	if err != nil {
		return nil, nil, err
	}
	first := time.Now().Add(scheduledAhead).Truncate(time.Second)
	for i := range l.Campaigns {
		l.Campaigns[i].Start = first.Unix() + int64(i/together)
	}
	if err := st.producer.Send(ctx, contender.EncodeRecords(st.deployment.CampaignsTopic, l)...); err != nil {
		return nil, nil, err
	}
	if late := time.Since(first); late > 0 {
		return nil, nil, fmt.Errorf("the campaigns were sent %s after the first start", late)
	}
	last = make([]float64, seconds)
	for i := range l.Campaigns {
		at, err := w.AwaitCampaign(ctx, l.Campaigns[i].ID, l.Campaigns[i].Count)
		if err != nil {
			return nil, nil, err
		}
		ms := milliseconds(at.Sub(time.Unix(l.Campaigns[i].Start, 0)))
		each = append(each, ms)
		last[i/together] = max(last[i/together], ms)
	}
	st.dinnerbell.Total += int64(l.Total) // for the check of the topic
	st.sayf("scheduled: p50 %.1f ms, p99 %.1f ms for the last of %d, p99 %.1f ms for each", report.Percentile(last, 0.5), report.Percentile(last, 0.99), together, report.Percentile(each, 0.99))
	return last, each, nil
}

// forgetScheduled deletes the campaigns that wait, while no daemon runs.
func (st *stage) forgetScheduled(ctx context.Context) error {
	if err := st.deployment.Database.Exec(ctx, `DELETE FROM dinnerbell.campaign WHERE state = 'pending'`); err != nil {
		return err
	}
	return st.deployment.Database.Exec(ctx, `VACUUM ANALYZE dinnerbell.campaign`)
}

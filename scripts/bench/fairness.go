package main

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/scripts/bench/contender"
	"dinnerbell/scripts/bench/deployment"
	"dinnerbell/scripts/bench/report"
)

// measureFairness sends campaigns of a hundred, ten a second, to the lane that is in
// the middle of a campaign to the largest restaurant, which has half of all
// subscriptions. It measures the time from each produce until its last notification
// is visible to a read_committed reader. Then it lets two of the large ones run at
// once and compares how far they are.
func (st *stage) measureFairness(ctx context.Context) error {
	if err := st.deployment.Start(ctx); err != nil {
		return err
	}
	var p50, p99, worst, rates, alone, shares []float64
	for range st.opts.runs {
		took, rate, err := st.besideWhale(ctx)
		if err != nil {
			return err
		}
		p50, p99 = append(p50, report.Percentile(took, 0.5)), append(p99, report.Percentile(took, 0.99))
		worst, rates = append(worst, report.Percentile(took, 1)), append(rates, rate)
		st.sayf("fairness: %d campaigns beside a large one at %s/s: p50 %.1f ms, p99 %.1f ms, worst %.1f ms", len(took), report.Thousands(int64(rate)), p50[len(p50)-1], p99[len(p99)-1], worst[len(worst)-1])
		if rate, _, err = st.runWhales(ctx, 1); err != nil {
			return err
		}
		alone = append(alone, rate)
		rate, share, err := st.runWhales(ctx, 2)
		if err != nil {
			return err
		}
		shares = append(shares, share...)
		st.sayf("fairness: a large one alone at %s/s; two at %s/s, the slower at %.3f of the faster one's progress", report.Thousands(int64(alone[len(alone)-1])), report.Thousands(int64(rate)), report.Percentile(share, 0))
	}
	st.report.Add("fairness_p50_"+st.kind, "ms", p50, "")
	st.report.Add("fairness_p99_"+st.kind, "ms", p99, "")
	st.report.Add("fairness_worst_"+st.kind, "ms", worst, "")
	st.report.Add("fairness_large_"+st.kind, "notifications/s", rates, "alone", alone...)
	st.report.Add("fairness_share_"+st.kind, "ratio", shares, "")
	return st.deployment.Stop()
}

// fairnessPause is how long a large campaign runs before small ones are sent.
const fairnessPause = time.Second

// sendWhales sends large campaigns to one lane and waits until each runs.
func (st *stage) sendWhales(ctx context.Context, w *deployment.TopicWatcher, n int) (*contender.CampaignLoad, error) {
	kind := deployment.KindHuge
	if _, ok := st.people.Group(kind); !ok {
		kind = deployment.KindLarge
	}
	l, err := contender.NewLoad(&st.people, kind, 1, 1, false)
	if err != nil {
		return nil, err
	}
	for len(l.Campaigns) < n {
		more, err := contender.NewLoad(&st.people, kind, 1, 1, false)
		if err != nil {
			return nil, err
		}
		l.Campaigns, l.Total = append(l.Campaigns, more.Campaigns...), l.Total+more.Total
	}
	if err := st.deployment.Database.ResetFeedback(ctx); err != nil {
		return nil, err
	}
	if err := st.deployment.CatchUp(ctx); err != nil {
		return nil, err
	}
	if err := st.producer.Send(ctx, contender.EncodeRecords(st.deployment.CampaignsTopic, l)...); err != nil {
		return nil, err
	}
	for i := range l.Campaigns {
		if _, err := w.AwaitCampaign(ctx, l.Campaigns[i].ID, 1); err != nil {
			return nil, err
		}
	}
	st.dinnerbell.Total += int64(l.Total)
	return l, nil
}

// besideWhale returns the latencies of small campaigns in milliseconds, and the
// notifications a second of the large one beside them.
func (st *stage) besideWhale(ctx context.Context) (took []float64, rate float64, err error) {
	w, err := deployment.Watch(ctx, st.broker, st.deployment.NotificationsTopic, kgo.ReadCommitted())
	if err != nil {
		return nil, 0, err
	}
	defer w.Close()
	began := time.Now()
	l, err := st.sendWhales(ctx, w, 1)
	if err != nil {
		return nil, 0, err
	}
	whale := &l.Campaigns[0]
	select {
	case <-time.After(min(fairnessPause, 2*time.Since(began))):
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
	before, since := w.Count(whale.ID), time.Now()
	// At half of the rate the large campaign outlives the series for certain.
	backlog, polls := int64(0), int64(0)
	for w.Count(whale.ID) < whale.Count/2 {
		got, err := st.sendTenPerSecond(ctx, w, st.deployment.CampaignsTopic, 5)
		if err != nil {
			return nil, 0, err
		}
		took = append(took, got...)
		s, err := st.deployment.Status(ctx)
		if err != nil {
			return nil, 0, err
		}
		for _, l := range s.Lanes {
			backlog += l.Decided - l.Shipped
		}
		polls++
	}
	if polls > 0 {
		st.sayf("fairness: %.1f steps were decided and not shipped", float64(backlog)/float64(polls))
	}
	now := w.Count(whale.ID)
	rate = float64(now-before) / time.Since(since).Seconds()
	if now >= whale.Count {
		return nil, 0, fmt.Errorf("the large campaign with %d clients was over before the small ones; use more -subscriptions", whale.Count)
	}
	st.dinnerbell.Total += int64(len(took) * 100)
	_, err = w.AwaitCampaign(ctx, whale.ID, whale.Count)
	return took, rate, err
}

// runWhales lets n large campaigns run at once. It returns the notifications a
// second, and how far the slowest is in relation to the fastest at several moments.
func (st *stage) runWhales(ctx context.Context, n int) (rate float64, share []float64, err error) {
	w, err := deployment.Watch(ctx, st.broker, st.deployment.NotificationsTopic, kgo.ReadCommitted())
	if err != nil {
		return 0, nil, err
	}
	defer w.Close()
	l, err := st.sendWhales(ctx, w, n)
	if err != nil {
		return 0, nil, err
	}
	began, first := time.Now(), 0
	for i := range l.Campaigns {
		first += w.Count(l.Campaigns[i].ID)
	}
	size := l.Campaigns[0].Count
	for _, part := range []int{size / 4, size / 2, size * 3 / 4} {
		if _, err := w.AwaitCampaign(ctx, l.Campaigns[0].ID, part); err != nil {
			return 0, nil, err
		}
		low, high := size, 0
		for i := range l.Campaigns {
			c := w.Count(l.Campaigns[i].ID)
			low, high = min(low, c), max(high, c)
		}
		share = append(share, float64(low)/float64(high))
	}
	for i := range l.Campaigns {
		if _, err := w.AwaitCampaign(ctx, l.Campaigns[i].ID, size); err != nil {
			return 0, nil, err
		}
	}
	return float64(l.Total-first) / time.Since(began).Seconds(), share, nil
}

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"dinnerbell/scripts/bench/contender"
	"dinnerbell/scripts/bench/deployment"
	"dinnerbell/scripts/bench/report"
)

// latencyPace is the time between two campaigns of the second series.
const latencyPace = 100 * time.Millisecond

// measureLatency measures the time from the produce of a campaign with 100
// subscribers until a reader has the last notification. The reader of the
// daemon's topic is read_committed; the consumer written by hand has no
// transactions, so its reader is read_uncommitted.
//
// The first series sends each campaign after the end of the one before, the
// second one ten per second. Contenders take turns after each quarter of the
// campaigns.
func (st *stage) measureLatency(ctx context.Context) error {
	runners := []*latencyRunner{
		{name: "dinnerbell", topic: st.deployment.CampaignsTopic, start: st.deployment.Start, stop: st.deployment.Stop},
		{name: "by_hand", topic: st.byhand.CampaignsTopic, start: st.byhand.Start, stop: st.byhand.Stop},
	}
	const quarters = 4
	n := max(st.opts.samples/quarters, 1)
	for range quarters {
		for i, r := range runners {
			out, isolation := st.deployment.NotificationsTopic, kgo.ReadCommitted()
			if i == 1 {
				out, isolation = st.byhand.NotificationsTopic, kgo.ReadUncommitted()
			}
			if err := st.measureLatencyOf(ctx, r, out, isolation, n); err != nil {
				return fmt.Errorf("latency of %s: %w", r.name, err)
			}
		}
	}
	// The check of the topic at the end counts these notifications and those of
	// the warm-ups.
	st.dinnerbell.Total += int64(quarters * (2*n + latencyWarm) * 100)
	us, hand := runners[0], runners[1]
	for _, series := range []struct {
		name      string
		us, hands []float64
	}{
		{"latency", us.single, hand.single}, {"latency_10hz", us.paced, hand.paced},
	} {
		for _, p := range []float64{0.50, 0.99} {
			name := fmt.Sprintf("%s_p%.0f_%s", series.name, 100*p, st.kind)
			values, limits := percentilePerQuarter(series.us, quarters, p), percentilePerQuarter(series.hands, quarters, p)
			st.report.Add(name, "ms", values, "by_hand", limits...)
			st.sayf("%s: %.1f ms, by hand %.1f ms", name, report.Percentile(series.us, p), report.Percentile(series.hands, p))
		}
	}
	return nil
}

// latencyWarm campaigns come before each series without being counted.
const latencyWarm = 3

// latencyRunner is one contender's process and its latencies in milliseconds.
type latencyRunner struct {
	name          string
	topic         string
	start         func(context.Context) error
	stop          func() error
	single, paced []float64
}

func (st *stage) measureLatencyOf(ctx context.Context, r *latencyRunner, out string, isolation kgo.IsolationLevel, n int) error {
	if err := r.start(ctx); err != nil {
		return err
	}
	w, err := deployment.Watch(ctx, st.broker, out, isolation)
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := st.sendOneAtATime(ctx, w, r.topic, latencyWarm); err != nil {
		return err
	}
	single, err := st.sendOneAtATime(ctx, w, r.topic, n)
	if err != nil {
		return err
	}
	paced, err := st.sendTenPerSecond(ctx, w, r.topic, n)
	if err != nil {
		return err
	}
	r.single, r.paced = append(r.single, single...), append(r.paced, paced...)
	return r.stop()
}

// sendOneAtATime sends each campaign after the last notification of the one
// before.
func (st *stage) sendOneAtATime(ctx context.Context, w *deployment.TopicWatcher, topic string, n int) ([]float64, error) {
	l, records, err := st.smallCampaigns(topic, n)
	if err != nil {
		return nil, err
	}
	var took []float64
	for i, r := range records {
		ms, err := st.traceCampaign(ctx, w, r, &l.Campaigns[i], time.Now())
		if err != nil {
			return nil, err
		}
		took = append(took, ms)
	}
	return took, nil
}

// sendTenPerSecond sends campaigns at a fixed pace. A latency counts from the
// moment at which its campaign was due, so that a delay of the produce is
// included.
func (st *stage) sendTenPerSecond(ctx context.Context, w *deployment.TopicWatcher, topic string, n int) ([]float64, error) {
	l, records, err := st.smallCampaigns(topic, n)
	if err != nil {
		return nil, err
	}
	took := make([]float64, n)
	g, ctx := errgroup.WithContext(ctx)
	began := time.Now()
	for i, r := range records {
		due := began.Add(time.Duration(i) * latencyPace)
		select {
		case <-time.After(time.Until(due)):
		case <-ctx.Done():
			return nil, g.Wait()
		}
		g.Go(func() (err error) {
			took[i], err = st.traceCampaign(ctx, w, r, &l.Campaigns[i], due)
			return err
		})
	}
	return took, g.Wait()
}

// traceCampaign sends one campaign and returns the milliseconds from `from`
// until its last notification was visible.
func (st *stage) traceCampaign(ctx context.Context, w *deployment.TopicWatcher, r *kgo.Record, c *contender.Campaign, from time.Time) (float64, error) {
	if err := st.producer.Send(ctx, r); err != nil {
		return 0, err
	}
	at, err := w.AwaitCampaign(ctx, c.ID, c.Count)
	return milliseconds(at.Sub(from)), err
}

func (st *stage) smallCampaigns(topic string, n int) (*contender.CampaignLoad, []*kgo.Record, error) {
	l, err := contender.NewLoad(&st.people, deployment.KindHundred, n, 1, false)
	if err != nil {
		return nil, nil, err
	}
	return l, contender.EncodeRecords(topic, l), nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// percentilePerQuarter returns a percentile of each of n parts of a series. The
// parts are the runs of which the report gives median and spread.
func percentilePerQuarter(series []float64, n int, p float64) []float64 {
	out := make([]float64, 0, n)
	size := len(series) / n
	for i := range n {
		out = append(out, report.Percentile(series[i*size:(i+1)*size], p))
	}
	return out
}

package status

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Durations are the histograms of the process. Each is observed once per campaign, step
// or group of changes.
type Durations struct {
	FreshnessWait     prometheus.Histogram
	CampaignDecided   prometheus.Histogram
	CampaignDelivered prometheus.Histogram
	StepShipped       prometheus.Histogram
	SourceApplied     prometheus.Histogram
}

// duration describes a histogram.
type duration struct {
	name, help string
	least      int // index of the first bucket
}

// bounds are the ends of the buckets, in seconds.
var bounds = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900}

var (
	freshnessWait     = duration{"freshness_wait_seconds", "How long joins waited for the subscriptions to be as fresh as join.freshness asks for.", 0}
	campaignDecided   = duration{"campaign_decided_seconds", "From when a campaign is due (its message's timestamp, or its start if that is later) until its last step is in Postgres; campaigns that notified nobody or were cut off by their end do not count.", 3}
	campaignDelivered = duration{"campaign_delivered_seconds", "From when a campaign is due until its last notification is in Kafka.", 3}
	stepShipped       = duration{"step_shipped_seconds", "From the commit of a step in Postgres until its commit in Kafka.", 2}
	sourceApplied     = duration{"source_applied_seconds", "From the commit of a change in Postgres until it is visible here, of the oldest transaction of each group of changes, by the clocks of both machines.", 2}
)

// NewDurations returns empty histograms.
func NewDurations() *Durations {
	return &Durations{
		FreshnessWait: freshnessWait.newHistogram(), CampaignDecided: campaignDecided.newHistogram(), CampaignDelivered: campaignDelivered.newHistogram(),
		StepShipped: stepShipped.newHistogram(), SourceApplied: sourceApplied.newHistogram(),
	}
}

// newHistogram returns the histogram, with native buckets for servers that ask for them.
func (d duration) newHistogram() prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: "dinnerbell", Name: d.name, Help: d.help, Buckets: bounds[d.least:],
		NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
	})
}

// durationInfos describes the histograms for docs/metrics.md.
func durationInfos() (out []metricInfo) {
	for _, d := range []duration{freshnessWait, campaignDecided, campaignDelivered, stepShipped, sourceApplied} {
		out = append(out, metricInfo{name: "dinnerbell_" + d.name, kind: "histogram", help: d.help})
	}
	return out
}

// Collectors returns all histograms.
func (d *Durations) Collectors() []prometheus.Collector {
	return []prometheus.Collector{d.FreshnessWait, d.CampaignDecided, d.CampaignDelivered, d.StepShipped, d.SourceApplied}
}

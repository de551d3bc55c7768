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

// NewDurations returns empty histograms.
func NewDurations() *Durations {
	return &Durations{
		FreshnessWait: newDuration("freshness_wait_seconds", "How long joins waited for the subscriptions to be as fresh as join.freshness asks for.",
			.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300),
		CampaignDecided: newDuration("campaign_decided_seconds", "From when a campaign is due (its message's timestamp, or its start if that is later) until its last step is in Postgres.",
			.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900),
		CampaignDelivered: newDuration("campaign_delivered_seconds", "From when a campaign is due until its last notification is in Kafka.",
			.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900),
		StepShipped: newDuration("step_shipped_seconds", "From the commit of a step in Postgres until its commit in Kafka.",
			.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300),
		SourceApplied: newDuration("source_applied_seconds", "From the commit of a change in Postgres until it is visible here, of the oldest transaction of each group, by the clocks of both machines.",
			.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 900),
	}
}

// newDuration returns a histogram with these buckets in seconds, and native buckets for
// servers that ask for them.
func newDuration(name, help string, buckets ...float64) prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: "dinnerbell", Name: name, Help: help, Buckets: buckets,
		NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
	})
}

// Collectors returns all histograms.
func (d *Durations) Collectors() []prometheus.Collector {
	return []prometheus.Collector{d.FreshnessWait, d.CampaignDecided, d.CampaignDelivered, d.StepShipped, d.SourceApplied}
}

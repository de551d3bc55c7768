package status

import (
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"dinnerbell/stream"
	"dinnerbell/stream/campaign"
)

// newRegistry returns the daemon's metrics: the status, read at each scrape,
// further collectors, and the standard metrics of a Go process, under their
// standard names.
func newRegistry(build Build, report func() Report, more ...prometheus.Collector) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(
		statusCollector{build, report},
		collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(liveHeap)),
		ownProcess{collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})},
	)
	reg.MustRegister(more...)
	return reg
}

// liveHeap selects go_gc_heap_live_bytes: unlike the heap's size, it does not swing with the
// garbage that waits for its collection, so it shows a leak.
var liveHeap = collectors.GoRuntimeMetricsRule{Matcher: regexp.MustCompile(`^/gc/heap/live:bytes$`)}

// ownProcess leaves process_network_* out: these are read from /proc/net and count
// the whole network namespace, not the process.
type ownProcess struct{ all prometheus.Collector }

// Describe implements prometheus.Collector.
func (c ownProcess) Describe(out chan<- *prometheus.Desc) {
	all := make(chan *prometheus.Desc, 64)
	go func() { defer close(all); c.all.Describe(all) }()
	for d := range all {
		if !ofNetwork(d) {
			out <- d
		}
	}
}

// Collect implements prometheus.Collector.
func (c ownProcess) Collect(out chan<- prometheus.Metric) {
	all := make(chan prometheus.Metric, 64)
	go func() { defer close(all); c.all.Collect(all) }()
	for m := range all {
		if !ofNetwork(m.Desc()) {
			out <- m
		}
	}
}

func ofNetwork(d *prometheus.Desc) bool { return strings.Contains(d.String(), `"process_network_`) }

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	catalogue = append(catalogue, metricInfo{name: "dinnerbell_" + name, kind: kindOf(name), help: help, labels: labels})
	return prometheus.NewDesc("dinnerbell_"+name, help, labels, nil)
}

var (
	descBuild     = newDesc("build_info", "1; the labels hold the version, the commit and the version of Go.", "version", "commit", "go")
	descReady     = newDesc("ready", "1 when the snapshot is complete, the stream advances and lanes are owned.")
	descHalted    = newDesc("halted", "1 when a part waits for an operator; see halted in /api/status.")
	descSource    = newDesc("source_state", "1 for the state that the mirror of the subscriptions is in.", "state")
	descSlot      = newDesc("slot_wal_status", "1 for the slot's wal_status: an unreserved one may be lost at the next checkpoint, a lost one needs a new snapshot.", "status")
	descHeld      = newDesc("slot_held_bytes", "WAL that the source keeps for the slot.")
	descSafe      = newDesc("slot_safe_bytes", "WAL that may still be written before the slot may be lost; absent without max_slot_wal_keep_size.")
	descLag       = newDesc("source_lag_bytes", "WAL of the source that is not applied here yet; absent while the mirror is not connected.")
	descLagTime   = newDesc("source_lag_seconds", "Time since the moment up to which every commit of the source is applied here; 0: none is missing; absent, as the lag in bytes and changes, while the mirror is not connected.")
	descLagRows   = newDesc("source_lag_changes", "Changes of rows that are received and not applied yet; absent while the mirror is not connected.")
	descFreshAt   = newDesc("source_fresh_timestamp_seconds", "Every commit of the source before this Unix time is known to be applied here; the value does not change while the mirror is not connected.")
	descReconnect = newDesc("source_reconnects_total", "Times that the mirror has connected to the source again.")
	descSnapshots = newDesc("source_snapshots_total", "Snapshots of the subscriptions that were begun.")
	descFailovers = newDesc("source_failovers_total", "Promoted servers that were followed without a new snapshot.")
	descSubs      = newDesc("subscriptions", "Rows of the subscriptions table held locally.")
	descFreshness = newDesc("freshness_seconds", "How long the last campaign waited for the subscriptions to be fresh.")
	descState     = newDesc("state", "1 for the condition that the local state is in: ok, rebuilding or disk_full.", "condition")
	descSize      = newDesc("state_size_bytes", "Bytes of the local store, without files that only checkpoints hold.")
	descFree      = newDesc("state_free_bytes", "Free bytes of the disk that holds state.dir.")
	descReserve   = newDesc("state_reserve_bytes", "Bytes of that disk that the daemon leaves free; below, changes of the subscriptions wait.")
	descAside     = newDesc("state_quarantines_total", "Damaged local states that were set aside.")
	descEpoch     = newDesc("lane_epoch", "Takeovers of the lane.", "partition")
	descDecided   = newDesc("lane_decided", "Last step of the lane that is in Postgres.", "partition")
	descShipped   = newDesc("lane_shipped", "Last step of the lane that is in Kafka.", "partition")
	descOffset    = newDesc("lane_next_offset", "Next offset of the campaigns topic to be read.", "partition")
	descBacklog   = newDesc("lane_lag_messages", "Offsets of the campaigns topic that the lane has not decided, markers of transactions included; absent while Kafka does not answer.", "partition")
	descLaneLag   = newDesc("lane_lag_seconds", "How long the next message of the lane has waited: since its timestamp, or since it was seen at the end of the topic.", "partition")
	descOldest    = newDesc("lane_oldest_campaign_seconds", "How long the oldest campaign has been due that the lane has accepted and not delivered to its end: since its message's timestamp, or its start if that is later; campaigns that an operator holds do not count.", "partition")
	descHeldBack  = newDesc("lane_held_by_transaction", "1 while an open transaction of another producer keeps the campaigns of the lane from being read.", "partition")
	descCampaigns = newDesc("campaigns", "Campaigns under way (live), to come (scheduled), and held for an operator (parked, paused); live and scheduled are absent while no lane runs.", "state")
	descAccepted  = newDesc("campaigns_accepted_total", "Messages that this process accepted as campaigns, edits included.")
	descFinished  = newDesc("campaigns_finished_total", "Campaigns whose fan-out this process brought to its end: everybody was looked at, or the campaign's end came.")
	descParked    = newDesc("campaigns_parked_total", "Campaigns that this process parked because their audience exceeded limits.max_audience; alert on dinnerbell_campaigns{state='parked'} > 0.")
	descPace      = newDesc("pace_wait_seconds_total", "How long lanes waited for limits.notifications_per_second, added over all lanes; it rises only where the limit holds notifications back.")
	descLimit     = newDesc("limit", "The limits in force, limits.max_audience and limits.notifications_per_second; 0: none.", "limit")
	descExpired   = newDesc("campaigns_expired_total", "Campaigns that this process received after their end, cancels included.")
	descDead      = newDesc("campaigns_dead_total", "Messages that this process sent to the dead-letter topic.")
	descLetters   = newDesc("dead_letters_total", "Dead letters that this process sent, by the class of their reason.", "reason")
	descOlder     = newDesc("campaigns_older_total", "Messages that did nothing, because a newer message of their campaign was there; the log has a line for each, at most 20 in ten seconds. Across partitions the record's time decides which message is newer, so a message of a producer whose clock is ahead prevails over later edits of other producers.")
	descAlone     = newDesc("campaigns_without_audience_total", "Campaigns whose restaurant had no subscription; the log has a line for each, at most 20 in ten seconds.")
	descBadIDs    = newDesc("bad_ids_total", "Subscriptions whose client or restaurant cannot be an id.")
	descNullIDs   = newDesc("null_ids_total", "Rows whose client or restaurant is NULL, which are no subscriptions.")
	descSkew      = newDesc("clock_skew_seconds", "How far this machine's clock is ahead of Postgres', measured once a minute.")
	descTooLong   = newDesc("unservable_clients_total", "Clients left out because the feedback table or the notifications topic cannot take them, such as a client whose id is too long; dead letters name them.")
	descConflicts = newDesc("conflicts_total", "Steps of which the feedback table refused a row, and which were repeated with ON CONFLICT: a client had a row already, or a constraint, a trigger or the encoding was against the row.")
	descAborts    = newDesc("early_aborts_total", "Steps that were sent to Kafka before their commit in Postgres and aborted, since the commit took longer than 100 ms or was refused; they are sent again.")
	descSessions  = newDesc("lane_session_failures_total", "Sessions of lanes that an error ended; the log names the error, and the lane is taken over again.")
	descLate      = newDesc("late_notifications_total", "Notifications to clients who subscribed while a campaign was live.")
	descLateSubs  = newDesc("late_subscriptions_total", "New subscriptions that the lanes of this process have looked at for late subscribers; a lane looks at each, so several lanes count each several times.")
	descBehind    = newDesc("lane_source_behind_bytes", "WAL of the source that the local subscriptions are ahead of what the lane has handled for late subscribers; only with join.late_subscribers.", "partition")
	descMisses    = newDesc("delivered_misses_total", "Clients who had a campaign according to Postgres, but not according to the delivered cache.")
	descCkAge     = newDesc("checkpoint_age_seconds", "Time since the newest checkpoint was made.")
	descCkLSN     = newDesc("checkpoint_lsn", "WAL position that the newest checkpoint covers, as a number of bytes.")
	descCkHeld    = newDesc("checkpoint_held_back_bytes", "WAL whose changes are durable here and that is not acknowledged because no checkpoint covers it yet.")
	descCkFailed  = newDesc("checkpoint_failed", "1 while the last attempt at a checkpoint failed; see checkpoint in /api/status.")
	descNotified  = newDesc("notifications_total", "Notifications that this process decided (in Postgres) and shipped (in Kafka).", "stage")
	descOfLanes   = newDesc("lanes_notifications", "Notifications since the deployment began, of the lanes owned now; absent while none of them runs.", "stage")
	descEnded     = newDesc("lanes_campaigns", "Expired and dead messages since the deployment began, of the lanes owned now; absent while none of them runs.", "outcome")
)

// statusCollector turns one status into metrics, so that the dashboard and
// /api/status cannot disagree.
type statusCollector struct {
	build  Build
	report func() Report
}

// Describe sends nothing: lanes come and go.
func (statusCollector) Describe(chan<- *prometheus.Desc) {}

// Collect reads the status once.
func (c statusCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	r := c.report()
	gauge(descBuild, 1, c.build.Version, c.build.Commit, c.build.Go)
	gauge(descReady, boolValue(r.Ready))
	gauge(descHalted, boolValue(r.Halted != nil))
	gauge(descSource, 1, r.Source.State)
	if r.Source.SlotWALStatus != "" {
		gauge(descSlot, 1, r.Source.SlotWALStatus)
	}
	gaugeKnown(gauge, descHeld, r.Source.SlotHeldBytes)
	gaugeKnown(gauge, descSafe, r.Source.SlotSafeBytes)
	gaugeKnown(gauge, descLag, r.Source.LagBytes)
	gaugeKnown(gauge, descLagTime, r.Source.LagSeconds)
	gaugeKnown(gauge, descLagRows, r.Source.LagChanges)
	if !r.Source.FreshAt.IsZero() {
		gauge(descFreshAt, float64(r.Source.FreshAt.UnixMilli())/1000)
	}
	gauge(descSubs, float64(r.Source.Subscriptions))
	collectWork(r.Source.Work, gauge)
	gauge(descFreshness, r.Source.FreshnessMS/1000)
	gauge(descState, 1, r.State.Condition)
	gauge(descSize, float64(r.State.SizeBytes))
	gauge(descFree, float64(r.State.FreeBytes))
	gauge(descReserve, float64(r.State.ReserveBytes))
	count(descAside, r.State.Quarantines)
	for _, l := range r.Lanes {
		p := strconv.Itoa(int(l.Partition))
		if l.Epoch > 0 { // else it is not taken over yet
			gauge(descEpoch, float64(l.Epoch), p)
			gauge(descDecided, float64(l.Decided), p)
			gauge(descShipped, float64(l.Shipped), p)
			gauge(descOffset, float64(l.NextOffset), p)
		}
		gaugeKnown(gauge, descBacklog, l.LagMessages, p)
		gaugeKnown(gauge, descLaneLag, l.LagSeconds, p)
		gauge(descOldest, l.OldestCampaignSeconds, p)
		gauge(descHeldBack, boolValue(l.HeldByTransaction != ""), p)
		gaugeKnown(gauge, descBehind, l.SourceBehind, p)
	}
	if r.Checkpoint.ID != "" {
		gauge(descCkAge, r.Checkpoint.AgeSeconds)
		gauge(descCkLSN, float64(r.Checkpoint.LSN))
	}
	gauge(descCkHeld, float64(r.Checkpoint.HeldBackBytes))
	gauge(descCkFailed, boolValue(r.Checkpoint.LastError != ""))
	collectCampaigns(&r, gauge, count)
	collectLimits(&r, ch)
}

// collectCampaigns sends the metrics of campaigns, notifications and what became of them.
func collectCampaigns(r *Report, gauge func(*prometheus.Desc, float64, ...string), count func(*prometheus.Desc, int64, ...string)) {
	count(descFailovers, r.Source.Failovers)
	count(descReconnect, r.Counters.SourceReconnects)
	count(descSnapshots, r.Counters.Snapshots)
	count(descAborts, r.Counters.EarlyAborts)
	count(descSessions, r.Counters.LaneSessionFailures)
	count(descAccepted, r.Counters.CampaignsAccepted)
	count(descFinished, r.Counters.CampaignsFinished)
	count(descExpired, r.Counters.CampaignsExpired)
	count(descDead, r.Counters.CampaignsDead)
	for _, class := range campaign.ReasonClasses {
		count(descLetters, r.Counters.DeadLetters[class], string(class))
	}
	count(descOlder, r.Counters.CampaignsOlder)
	count(descAlone, r.Counters.CampaignsWithoutAudience)
	count(descBadIDs, r.Counters.BadIDs)
	count(descNullIDs, r.Counters.NullIDs)
	count(descTooLong, r.Counters.UnservableClients)
	gauge(descSkew, r.ClockSkewMS/1000)
	count(descConflicts, r.Counters.Conflicts)
	count(descMisses, r.Counters.DeliveredMisses)
	count(descLate, r.Counters.LateNotified)
	count(descLateSubs, r.Counters.LateSubscriptions)
	count(descNotified, r.Counters.NotificationsDecided, "decided")
	count(descNotified, r.Counters.NotificationsShipped, "shipped")
	if !r.hasFigures() {
		return
	}
	gauge(descCampaigns, float64(r.Campaigns.Live), "live")
	gauge(descCampaigns, float64(r.Campaigns.Scheduled), "scheduled")
	gauge(descOfLanes, float64(r.Notifications.Decided), "decided")
	gauge(descOfLanes, float64(r.Notifications.Shipped), "shipped")
	gauge(descEnded, float64(r.Campaigns.Expired), "expired")
	gauge(descEnded, float64(r.Campaigns.Dead), "dead")
}

// hasFigures reports whether the counts of campaigns and notifications are those of now,
// of one lane at least: a last known number has no place among metrics.
func (r *Report) hasFigures() bool {
	return r.Figures == nil || slices.ContainsFunc(r.Lanes, func(l Lane) bool { return l.State == string(stream.LaneRunning) })
}

// collectLimits sends the campaigns that wait for an operator, the limits in force, and
// their effect.
func collectLimits(r *Report, ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(descCampaigns, prometheus.GaugeValue, float64(r.Campaigns.Parked), "parked")
	ch <- prometheus.MustNewConstMetric(descCampaigns, prometheus.GaugeValue, float64(r.Campaigns.Paused), "paused")
	ch <- prometheus.MustNewConstMetric(descLimit, prometheus.GaugeValue, float64(r.Limits.MaxAudience), "max_audience")
	ch <- prometheus.MustNewConstMetric(descLimit, prometheus.GaugeValue, float64(r.Limits.NotificationsPerSecond), "notifications_per_second")
	ch <- prometheus.MustNewConstMetric(descParked, prometheus.CounterValue, float64(r.Counters.CampaignsParked))
	ch <- prometheus.MustNewConstMetric(descPace, prometheus.CounterValue, r.Counters.PaceWaitSeconds)
}

// gaugeKnown sends a value unless it is not known.
func gaugeKnown[T int64 | float64](gauge func(*prometheus.Desc, float64, ...string), d *prometheus.Desc, v *T, labels ...string) {
	if v != nil {
		gauge(d, float64(*v), labels...)
	}
}

func boolValue(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Package status makes the one status of the daemon: its JSON, the reasons not to be
// ready, and the metrics.
package status

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"

	"dinnerbell/cdc"
	"dinnerbell/cdc/tablecopy"
	"dinnerbell/cmd/dinnerbell/internal/logging"
	"dinnerbell/stream"
	"dinnerbell/stream/campaign"
)

// Report is the body of /api/status and of `status --json`. Its keys are part of
// the contract; reasons, state, halted and the like beside them are additions.
type Report struct {
	Ready   bool   `json:"ready"`
	Version string `json:"version"`
	// Reasons list why the daemon is not ready.
	Reasons []string `json:"reasons,omitempty"`
	// Stopping: the daemon was asked to end, and finishes the steps in flight.
	Stopping bool `json:"stopping,omitempty"`
	// Problems list why not all is well, the worst first, each with the command that
	// mends it; also those that do not make the daemon unready.
	Problems      []Problem           `json:"problems,omitempty"`
	Source        Source              `json:"source"`
	Lanes         []Lane              `json:"lanes"`
	Campaigns     campaignsReport     `json:"campaigns"`
	Notifications notificationsReport `json:"notifications"`
	Figures       *Figures            `json:"figures,omitempty"`
	Unreached     *unreachedReport    `json:"unreached,omitempty"`
	Halted        *Halt               `json:"halted"`
	Counters      countersReport      `json:"counters"`
	Limits        limitsReport        `json:"limits"`
	// ClockSkewMS is how far this machine's clock was ahead of Postgres' at the last look.
	ClockSkewMS float64 `json:"clock_skew_ms"`
	// ClockSkewErrorMS is the largest error of ClockSkewMS: half of the time that Postgres
	// took to answer.
	ClockSkewErrorMS float64          `json:"clock_skew_error_ms"`
	State            stateReport      `json:"state"`
	Checkpoint       checkpointReport `json:"checkpoint"`
	// Recent lists the campaigns that this process handled last, the newest first.
	Recent []RecentCampaign `json:"recent_campaigns"`
	// Events lists what the log told lately, the newest first.
	Events []Event `json:"events"`
}

// countersReport counts what this process did since it started. No count falls
// while the process lives: campaigns and notifications above are totals of the
// lanes, which come and go.
type countersReport struct {
	NotificationsDecided int64 `json:"notifications_decided"`
	NotificationsShipped int64 `json:"notifications_shipped"`
	CampaignsAccepted    int64 `json:"campaigns_accepted"` // messages that were accepted as campaigns, edits included
	CampaignsFinished    int64 `json:"campaigns_finished"` // campaigns whose fan-out is over
	CampaignsExpired     int64 `json:"campaigns_expired"`
	CampaignsDead        int64 `json:"campaigns_dead"`
	// DeadLetters counts dead letters by the class of their reason, of the classes that
	// were met. Those that name left-out clients refuse no campaign.
	DeadLetters map[campaign.ReasonClass]int64 `json:"dead_letters,omitempty"`
	// CampaignsOlder are messages without effect, because a newer message of their
	// campaign was accepted before.
	CampaignsOlder int64 `json:"campaigns_older"`
	// CampaignsWithoutAudience are campaigns whose restaurant had no subscription.
	CampaignsWithoutAudience int64 `json:"campaigns_without_audience"`
	// BadIDs are subscriptions whose client or restaurant cannot be an id: empty,
	// or not valid UTF-8.
	BadIDs int64 `json:"bad_ids"`
	// NullIDs are subscriptions whose client or restaurant is NULL.
	NullIDs int64 `json:"null_ids"`
	// UnservableClients are clients whose notification cannot be written: the id is
	// too long, or the feedback table refuses the row.
	UnservableClients int64 `json:"unservable_clients"`
	// Conflicts are steps that were done again because the feedback table refused a
	// row: mostly of a client who had been notified before.
	Conflicts int64 `json:"conflicts"`
	// DeliveredMisses are clients whom Postgres knew to have a campaign and the
	// delivered cache did not.
	DeliveredMisses int64 `json:"delivered_misses"`
	// LateNotified are clients who were notified because they subscribed while a
	// campaign was live, and LateSubscriptions the new subscriptions that lanes have
	// looked at for that.
	LateNotified      int64 `json:"late_notified"`
	LateSubscriptions int64 `json:"late_subscriptions"`
	// CampaignsParked are campaigns whose audience exceeded limits.max_audience.
	CampaignsParked int64 `json:"campaigns_parked"`
	// PaceWaitSeconds is how long lanes waited for limits.notifications_per_second.
	PaceWaitSeconds float64 `json:"pace_wait_seconds"`
	// EarlyAborts are steps that were sent to Kafka before their commit in Postgres, in
	// vain: the transaction was aborted, and the step is sent again.
	EarlyAborts int64 `json:"early_aborts"`
	// LaneSessionFailures are sessions of lanes that an error ended; each is followed by
	// a takeover.
	LaneSessionFailures int64 `json:"lane_session_failures"`
	// SourceReconnects and Snapshots are of the mirror.
	SourceReconnects int64 `json:"source_reconnects"`
	Snapshots        int64 `json:"snapshots"`
}

// limitsReport are the limits in force, which may change without a restart.
type limitsReport struct {
	MaxAudience            int64 `json:"max_audience"`
	NotificationsPerSecond int64 `json:"notifications_per_second"`
}

// Source is the mirror of the subscriptions.
type Source struct {
	State      string `json:"state"`
	AppliedLSN string `json:"applied_lsn"`
	// LagBytes is WAL that is not applied here, LagSeconds the time since the moment up to
	// which every commit is applied (0: none is missing), and LagChanges the changes of
	// rows that are received and not applied. null while the mirror is not connected.
	LagBytes   *int64   `json:"lag_bytes"`
	LagSeconds *float64 `json:"lag_seconds"`
	LagChanges *int64   `json:"lag_changes"`
	// FreshAt is the newest moment of which it is known that every commit before it is
	// applied here.
	FreshAt       time.Time `json:"fresh_at,omitzero"`
	SlotWALStatus string    `json:"slot_wal_status"` // "": not known
	Subscriptions int64     `json:"subscriptions"`
	FreshnessMS   float64   `json:"freshness_ms"` // how long the last join waited
	LastError     string    `json:"last_error,omitempty"`
	SlotHeldBytes *int64    `json:"slot_held_bytes"`           // WAL that the server keeps for the slot; null: not known
	SlotSafeBytes *int64    `json:"slot_safe_bytes,omitempty"` // until it may be lost; absent: no limit, or not known
	Failovers     int64     `json:"failovers,omitempty"`       // promoted servers that were followed
	// Work is a rebuild or verification beside the stream.
	Work *Work `json:"work,omitempty"`

	// SnapshotRows and the fields below are set while a snapshot is taken: the rows
	// copied so far, and Postgres' estimate of the total.
	SnapshotRows          int64   `json:"snapshot_rows,omitempty"`
	SnapshotTotal         int64   `json:"snapshot_total,omitempty"`
	SnapshotPercent       float64 `json:"snapshot_percent,omitempty"`
	SnapshotRowsPerSecond float64 `json:"snapshot_rows_per_second,omitempty"`
	SnapshotSecondsLeft   float64 `json:"snapshot_seconds_left,omitempty"`
}

// Lane is one partition of the campaigns topic that this daemon owns.
type Lane struct {
	Partition  int32  `json:"partition"`
	Epoch      int64  `json:"epoch"`
	Decided    int64  `json:"decided"` // last step in Postgres
	Shipped    int64  `json:"shipped"` // last step in Kafka
	NextOffset int64  `json:"next_offset"`
	State      string `json:"state"` // takeover, running, stopped, halted
	// LagMessages is how many offsets of the campaigns topic wait to be decided, and
	// LagSeconds for how long the first of them has waited. null: not known, since Kafka
	// does not answer or the lane has not been taken over.
	LagMessages *int64   `json:"lag_messages"`
	LagSeconds  *float64 `json:"lag_seconds"`
	// OldestCampaignSeconds is how long the oldest accepted campaign has been due that is
	// not delivered to its end; 0: none waits.
	OldestCampaignSeconds float64 `json:"oldest_campaign_seconds"`
	// WaitingForFreshness: the lane holds campaigns until the subscriptions have
	// caught up.
	WaitingForFreshness bool `json:"waiting_for_freshness,omitempty"`
	// HeldByTransaction: an open transaction of another producer on the campaigns
	// topic keeps campaigns from being read.
	HeldByTransaction string `json:"held_by_transaction,omitempty"`
	// SourceLSN is how far the lane has handled the changes of the subscriptions for
	// late subscribers, and SourceBehind how many bytes of WAL the local subscriptions
	// are ahead of that. Absent without join.late_subscribers.
	SourceLSN    string `json:"source_lsn,omitempty"`
	SourceBehind *int64 `json:"source_behind_bytes,omitempty"`
	// WaitsForLSN: nothing is joined before the local subscriptions have come to this
	// position, which the lane has handled already.
	WaitsForLSN string `json:"waits_for_lsn,omitempty"`
	LastError   string `json:"last_error,omitempty"`
	// HaltedWhat and HaltedHint say why a halted lane is halted and how it goes on.
	HaltedWhat string `json:"halted_what,omitempty"`
	HaltedHint string `json:"halted_hint,omitempty"`
}

// campaignsReport counts campaigns under way now, and campaigns since the
// deployment began. null: not known.
type campaignsReport struct {
	Live      int64 `json:"live"`
	Scheduled int64 `json:"scheduled"`
	Expired   int64 `json:"expired"`
	Dead      int64 `json:"dead"`
	Parked    int64 `json:"parked"` // larger than limits.max_audience: they wait for an operator's approval
	Paused    int64 `json:"paused"` // by an operator
}

// notificationsReport counts notifications since the deployment began; see Figures.
type notificationsReport struct {
	Decided int64 `json:"decided"`
	Shipped int64 `json:"shipped"`
}

// Figures says what is not of now in the counts of campaigns and notifications. It is
// absent while they are all of now.
type Figures struct {
	// AsOf is the oldest moment that a lane's share is of: the lane does not run. Absent:
	// every share is of now.
	AsOf time.Time `json:"as_of,omitzero"`
	// LanesMissing is how many lanes have no share, because this process has not taken
	// them over yet.
	LanesMissing int `json:"lanes_missing,omitempty"`
	// Unknown reports that this process has not taken over any lane yet: the counts are 0,
	// and say nothing.
	Unknown bool `json:"unknown,omitempty"`
}

// unreachedReport names the systems that do not answer while lanes do not run, with the
// error of the last attempt.
type unreachedReport struct {
	Sink  string `json:"sink,omitempty"`
	Kafka string `json:"kafka,omitempty"`
}

// Halt is a part of the daemon that waits for an operator.
type Halt struct {
	Part string `json:"part"` // source, or stream
	What string `json:"what"` // the event and its object
	Hint string `json:"hint"` // the command that mends it
}

// NewReport makes a report of the statuses of mirror and service. complete reports
// whether the local state holds a whole snapshot. Reasons lack stalls, which need a
// history.
func NewReport(version string, m cdc.Status, s stream.Status, complete bool) Report {
	r := Report{
		Version: version,
		Source: Source{
			State: string(m.State), AppliedLSN: m.AppliedLSN.String(), LagBytes: knownNumber(m.LagBytes), LagSeconds: knownSeconds(m.Lag), LagChanges: knownNumber(m.LagChanges), FreshAt: m.FreshAt.UTC(),
			SlotWALStatus: m.SlotWALStatus, Subscriptions: m.Subscriptions, FreshnessMS: m.FreshnessMS,
			LastError: oneLine(m.LastError), Work: newWorkReport(m.Work),
		},
		Lanes:       []Lane{}, // never null
		Campaigns:   campaignsReport{Parked: s.Campaigns.Parked, Paused: s.Campaigns.Paused},
		Halted:      newHaltReport(m, s),
		ClockSkewMS: float64(s.ClockSkew) / float64(time.Millisecond), ClockSkewErrorMS: float64(s.ClockSkewError) / float64(time.Millisecond),
		Counters:   newCountersReport(m, s),
		Limits:     limitsReport(s.Limits),
		State:      stateReport{Condition: conditionOK},
		Checkpoint: newCheckpointReport(m),
		Recent:     newRecentReport(s.Recent),
		Events:     []Event{}, // never null
	}
	r.setFigures(&s)
	if u := s.Unreached; u.Sink != "" || u.Kafka != "" {
		r.Unreached = &unreachedReport{oneLine(u.Sink), oneLine(u.Kafka)}
	}
	r.Source.Failovers = m.Failovers
	if m.SlotKnown {
		r.Source.SlotHeldBytes, r.Source.SlotSafeBytes = knownNumber(m.SlotHeldBytes), knownNumber(m.SafeWALSize)
	}
	if m.State == cdc.StateSnapshot {
		r.Source.setSnapshot(m.Snapshot)
	}
	for _, l := range s.Lanes {
		lane := Lane{
			Partition: l.Partition, Epoch: l.Epoch, Decided: l.Decided, Shipped: l.Shipped, NextOffset: l.NextOffset,
			LagMessages: knownNumber(l.LagMessages), LagSeconds: knownSeconds(l.Lag), OldestCampaignSeconds: roundToMilli(l.Oldest.Seconds()),
			State: string(l.State), WaitingForFreshness: l.WaitingForFreshness, HeldByTransaction: l.HeldByTransaction, LastError: oneLine(l.LastError),
		}
		if l.Halted != nil {
			lane.HaltedWhat, lane.HaltedHint = oneLine(l.Halted.What), oneLine(l.Halted.Hint)
		}
		if l.SourceLSN > 0 {
			lane.SourceLSN, lane.SourceBehind = l.SourceLSN.String(), &l.Behind
		}
		if l.WaitsForLSN > 0 {
			lane.WaitsForLSN = l.WaitsForLSN.String()
		}
		r.Lanes = append(r.Lanes, lane)
	}
	r.Reasons = slices.Concat(sourceReasons(m, complete), laneReasons(s))
	return r
}

// setFigures fills in the counts of campaigns and notifications.
func (r *Report) setFigures(s *stream.Status) {
	if !s.FiguresAt.IsZero() || s.FiguresMissing > 0 || s.FiguresUnknown {
		r.Figures = &Figures{AsOf: s.FiguresAt.UTC(), LanesMissing: s.FiguresMissing, Unknown: s.FiguresUnknown}
	}
	if s.FiguresUnknown {
		return
	}
	c, n := s.Campaigns, s.Notifications
	r.Campaigns.Live, r.Campaigns.Scheduled, r.Campaigns.Expired, r.Campaigns.Dead = c.Live, c.Scheduled, c.Expired, c.Dead
	r.Notifications.Decided, r.Notifications.Shipped = n.Decided, n.Shipped
}

// FiguresUnknown reports whether nobody knows the counts of campaigns and notifications yet.
func (r *Report) FiguresUnknown() bool { return r.Figures != nil && r.Figures.Unknown }

// SetStopping makes the report that of a daemon that was asked to end. Its lanes end one
// after another, which is no trouble and says nothing about the other members of the
// group.
func (r *Report) SetStopping() {
	r.Stopping = true
	r.Reasons = []string{"daemon: stopping: it was asked to end, and finishes the steps in flight"}
}

func newCountersReport(m cdc.Status, s stream.Status) countersReport {
	letters := map[campaign.ReasonClass]int64{}
	for i, class := range campaign.ReasonClasses {
		if n := s.Letters[i]; n > 0 {
			letters[class] = n
		}
	}
	return countersReport{
		DeadLetters:          letters,
		NotificationsDecided: s.Decided, NotificationsShipped: s.Shipped,
		CampaignsAccepted: s.Accepted, CampaignsFinished: s.Finished, CampaignsExpired: s.Expired, CampaignsDead: s.Dead, CampaignsOlder: s.Older, CampaignsWithoutAudience: s.WithoutAudience,
		BadIDs: m.BadIDs, NullIDs: m.NullIDs, UnservableClients: s.Unservable, Conflicts: s.Conflicts, DeliveredMisses: s.DeliveredMisses, LateNotified: s.LateNotified, LateSubscriptions: s.LateEntries,
		CampaignsParked: s.Parked, PaceWaitSeconds: s.PaceWaits.Seconds(),
		EarlyAborts: s.EarlyAborts, LaneSessionFailures: s.SessionsFailed, SourceReconnects: m.Reconnects, Snapshots: m.Snapshots,
	}
}

// setSnapshot fills in the progress of a snapshot.
func (s *Source) setSnapshot(p tablecopy.Progress) {
	s.SnapshotRows, s.SnapshotTotal, s.SnapshotPercent = p.Rows, p.Total, roundToTenth(p.Percent)
	s.SnapshotRowsPerSecond, s.SnapshotSecondsLeft = roundToTenth(p.Rate), roundToTenth(p.Left.Seconds())
}

// knownNumber returns nil for a number that is not known, which is negative.
func knownNumber(n int64) *int64 {
	if n < 0 {
		return nil
	}
	return &n
}

// knownSeconds is knownNumber for a duration, in seconds.
func knownSeconds(d time.Duration) *float64 {
	if d < 0 {
		return nil
	}
	s := roundToMilli(d.Seconds())
	return &s
}

// roundToMilli keeps three decimals.
func roundToMilli(x float64) float64 { return math.Round(1000*x) / 1000 }

// roundToTenth keeps one decimal: the rest is noise.
func roundToTenth(x float64) float64 { return math.Round(10*x) / 10 }

// oneLine returns a text of another system as one line of bounded length.
func oneLine(s string) string { return logging.Line(s) }

// RewriteStrings changes every string of the report. It is for secrets: anybody may
// read a status.
func (r *Report) RewriteStrings(change func(string) string) {
	rewriteStrings(reflect.ValueOf(r), func(s string) string { return oneLine(change(s)) })
}

// rewriteStrings changes every string in v, which points to a report.
func rewriteStrings(v reflect.Value, change func(string) string) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			rewriteStrings(v.Elem(), change)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				rewriteStrings(v.Field(i), change)
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			rewriteStrings(v.Index(i), change)
		}
	case reflect.String:
		v.SetString(change(v.String()))
	default:
	}
}

// newHaltReport returns the halt to show: the source's before a lane's, because no
// campaign is joined without the source.
func newHaltReport(m cdc.Status, s stream.Status) *Halt {
	switch {
	case m.Halted != nil:
		return &Halt{Part: string(m.Halted.Part), What: m.Halted.What, Hint: m.Halted.Hint}
	case s.Halted != nil:
		return &Halt{Part: string(s.Halted.Part), What: s.Halted.What, Hint: s.Halted.Hint}
	}
	return nil
}

// sourceReasons lists why the subscriptions are not up to date.
func sourceReasons(m cdc.Status, complete bool) []string {
	var reasons []string
	if !complete {
		reasons = append(reasons, fmt.Sprintf("snapshot: not complete, %d rows so far", m.Snapshot.Rows))
	}
	if m.State != cdc.StateStreaming {
		why := "source: " + string(m.State)
		if m.LastError != "" {
			why += ": " + oneLine(m.LastError)
		}
		reasons = append(reasons, why)
	}
	return reasons
}

// laneReasons lists why campaigns do not advance. A daemon that has no lane (the
// group has more members than lanes) stands by and is not ready.
func laneReasons(s stream.Status) []string {
	return addUnreached(waitReasons(s), s.Unreached)
}

// addUnreached adds the systems that do not answer and that no reason names.
func addUnreached(reasons []string, u stream.Unreached) []string {
	for _, system := range []struct{ name, err string }{{"sink", u.Sink}, {"kafka", u.Kafka}} {
		text := oneLine(system.err)
		if text != "" && !slices.ContainsFunc(reasons, func(r string) bool { return strings.Contains(r, text) }) {
			reasons = append(reasons, system.name+": does not answer: "+text)
		}
	}
	return reasons
}

// The parts of the reason of a daemon that has no lane.
const (
	noneOwned     = "lanes: none owned"
	ownedByOthers = "other members of the group have them all"
	groupIsSilent = "the group has not answered yet"
)

// NoLanesError returns the error that keeps the daemon from owning any lane; "" where it
// owns some, waits for the group, or others have them all.
func (r *Report) NoLanesError() string {
	for _, reason := range r.Reasons {
		if text, ok := strings.CutPrefix(reason, noneOwned+": "); ok && !strings.HasPrefix(text, ownedByOthers) {
			return text
		}
	}
	return ""
}

// waitReasons lists why lanes do not run.
func waitReasons(s stream.Status) []string {
	switch {
	case len(s.Lanes) == 0 && s.LastError != "":
		return []string{noneOwned + ": " + oneLine(s.LastError)}
	case len(s.Lanes) == 0 && s.Assigned:
		return []string{noneOwned + ": " + ownedByOthers + ", or the campaigns topic does not exist (`dinnerbell setup` creates it)"}
	case len(s.Lanes) == 0:
		return []string{noneOwned + ", " + groupIsSilent + "; if it stays so, the campaigns topic does not exist (`dinnerbell setup` creates it)"}
	}
	var reasons []string
	for _, l := range s.Lanes {
		if l.State == "running" && l.HeldByTransaction != "" {
			reasons = append(reasons, fmt.Sprintf("lane %d: %s", l.Partition, l.HeldByTransaction))
		}
		if l.State == "running" {
			continue
		}
		why := fmt.Sprintf("lane %d: %s", l.Partition, l.State)
		if l.LastError != "" {
			why += ": " + oneLine(l.LastError)
		}
		reasons = append(reasons, why)
	}
	return reasons
}

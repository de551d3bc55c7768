package status

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"dinnerbell/cdc"
	"dinnerbell/cdc/tablecopy"
	"dinnerbell/internal/halt"
	"dinnerbell/internal/testenv/envtest/generated"
	"dinnerbell/state/id"
	"dinnerbell/stream"
	"dinnerbell/stream/campaign"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// healthy returns the statuses of mirror and service in a daemon at work.
func healthy() (cdc.Status, stream.Status) {
	m := cdc.Status{State: cdc.StateStreaming, AppliedLSN: id.LSN(0x1A2B), SlotWALStatus: "reserved", SlotKnown: true, SafeWALSize: -1, Subscriptions: 7, FreshnessMS: 0.3}
	s := stream.Status{Assigned: true, Lanes: []stream.LaneStatus{
		{Partition: 0, Epoch: 1, Decided: 12, Shipped: 12, NextOffset: 40, State: "running"},
	}}
	s.Campaigns.Live, s.Campaigns.Scheduled, s.Campaigns.Expired, s.Campaigns.Dead = 1, 2, 3, 4
	s.Campaigns.Parked, s.Campaigns.Paused, s.Limits = 5, 6, stream.Limits{MaxAudience: 100, NotificationsPerSecond: 200}
	s.Notifications.Decided, s.Notifications.Shipped = 9, 8
	s.Counts = stream.Counts{Parked: 7, PaceWaits: 1500 * time.Millisecond, Decided: 6, Shipped: 5, Expired: 2, Dead: 1, Older: 4, WithoutAudience: 3, Letters: campaign.ClassCounts{0: 5}}
	return m, s
}

// The shape is the contract's; state is an addition to a lane.
const goldenStatus = `{"ready":true,"version":"dev",` +
	`"source":{"state":"streaming","applied_lsn":"0/1A2B","lag_bytes":0,"lag_seconds":0,"lag_changes":0,"slot_wal_status":"reserved","subscriptions":7,"freshness_ms":0.3,"slot_held_bytes":0},` +
	`"lanes":[{"partition":0,"epoch":1,"decided":12,"shipped":12,"next_offset":40,"state":"running","lag_messages":0,"lag_seconds":0,"oldest_campaign_seconds":0}],` +
	`"campaigns":{"live":1,"scheduled":2,"expired":3,"dead":4,"parked":5,"paused":6},` +
	`"notifications":{"decided":9,"shipped":8},` +
	`"halted":null,"counters":{"notifications_decided":6,"notifications_shipped":5,"campaigns_accepted":0,"campaigns_finished":0,"campaigns_expired":2,"campaigns_dead":1,"dead_letters":{"tombstone":5},"campaigns_older":4,"campaigns_without_audience":3,"bad_ids":0,"null_ids":0,"unservable_clients":0,"conflicts":0,"delivered_misses":0,"late_notified":0,"late_subscriptions":0,"campaigns_parked":7,"pace_wait_seconds":1.5,"early_aborts":0,"lane_session_failures":0,"source_reconnects":0,"snapshots":0},"limits":{"max_audience":100,"notifications_per_second":200},"clock_skew_ms":0,"clock_skew_error_ms":0,"state":{"condition":"ok","free_bytes":0,"reserve_bytes":0,"size_bytes":0,"quarantines":0},"checkpoint":{"lsn":"0/0","age_seconds":0,"held_back_bytes":0},"recent_campaigns":[],"events":[]}` + "\n"

// get asks a handler for one path.
func get(t *testing.T, r Report, method, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h := NewHandler(Build{}, func() Report { return r }, slog.New(slog.DiscardHandler))
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, nil))
	return w
}

func TestStatusShape(t *testing.T) {
	t.Parallel()
	m, s := healthy()
	r := NewReport("dev", m, s, true)
	r.Ready = true
	resp := get(t, r, "GET", "/api/status")
	if got := resp.Body.String(); got != goldenStatus {
		t.Errorf("got  %swant %s", got, goldenStatus)
	}
	if ct := resp.Header().Get("Content-Type"); ct != "application/json" {
		t.Errorf("content type %q", ct)
	}
	empty := get(t, NewReport("dev", cdc.Status{}, stream.Status{}, false), "GET", "/api/status").Body.String()
	if !strings.Contains(empty, `"lanes":[]`) || !strings.Contains(empty, `"applied_lsn":"0/0"`) {
		t.Errorf("without anything: %s", empty)
	}
}

func TestReasonsNotToBeReady(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change     func(m *cdc.Status, s *stream.Status)
		incomplete bool
		want       string // the only reason begins so; "" for ready
	}{
		"healthy":       {change: func(*cdc.Status, *stream.Status) {}},
		"no snapshot":   {change: func(m *cdc.Status, _ *stream.Status) { m.Snapshot.Rows = 5 }, incomplete: true, want: "snapshot: not complete, 5 rows"},
		"disconnected":  {change: func(m *cdc.Status, _ *stream.Status) { m.State, m.LastError = cdc.StateConnecting, "refused" }, want: "source: connecting: refused"},
		"halted source": {change: func(m *cdc.Status, _ *stream.Status) { m.State = cdc.StateHalted }, want: "source: halted"},
		"not assigned":  {change: func(_ *cdc.Status, s *stream.Status) { *s = stream.Status{} }, want: "lanes: none owned, the group has not answered"},
		"standby":       {change: func(_ *cdc.Status, s *stream.Status) { s.Lanes = nil }, want: "lanes: none owned: other members"},
		"lane takeover": {change: func(_ *cdc.Status, s *stream.Status) { s.Lanes[0].State = "takeover" }, want: "lane 0: takeover"},
		"lane halted": {change: func(_ *cdc.Status, s *stream.Status) {
			s.Lanes[0].State, s.Lanes[0].LastError = "halted", "rolled back"
		}, want: "lane 0: halted: rolled back"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, s := healthy()
			tc.change(&m, &s)
			r := NewReport("dev", m, s, !tc.incomplete)
			if tc.want == "" {
				if len(r.Reasons) > 0 {
					t.Errorf("reasons %q, want none", r.Reasons)
				}
				return
			}
			if len(r.Reasons) != 1 || !strings.HasPrefix(r.Reasons[0], tc.want) {
				t.Errorf("reasons %q, want one: %q", r.Reasons, tc.want)
			}
		})
	}
}

func TestHaltIsReported(t *testing.T) {
	t.Parallel()
	m, s := healthy()
	s.Halted = &halt.Error{Part: halt.Stream, Lane: 0, What: "K > P", Hint: "do this"}
	if got := NewReport("dev", m, s, true).Halted; got == nil || *got != (Halt{"stream", "K > P", "do this"}) {
		t.Errorf("halted = %+v", got)
	}
	m.Halted = &halt.Error{Part: halt.Source, What: "slot", Hint: "rebuild"}
	if got := NewReport("dev", m, s, true).Halted; got == nil || *got != (Halt{"source", "slot", "rebuild"}) {
		t.Errorf("halted = %+v", got)
	}
}

func TestEndpoints(t *testing.T) {
	t.Parallel()
	ready := Report{Ready: true}
	unready := Report{Reasons: []string{"source: connecting"}}
	for name, tc := range map[string]struct {
		report       Report
		method, path string
		code         int
		body         string
	}{
		"alive":           {ready, "GET", "/healthz", 200, "ok\n"},
		"alive unready":   {unready, "GET", "/healthz", 200, "ok\n"},
		"ready":           {ready, "GET", "/readyz", 200, `{"ready":true,"reasons":[]}` + "\n"},
		"unready":         {unready, "GET", "/readyz", 503, `{"ready":false,"reasons":["source: connecting"]}` + "\n"},
		"unknown":         {ready, "GET", "/api/stop", 404, "nothing here; see /, /api/status, /healthz, /readyz, /metrics\n"},
		"write to status": {ready, "POST", "/api/status", 405, "Method Not Allowed\n"},
		"write to any":    {ready, "DELETE", "/x", 405, "Method Not Allowed\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			resp := get(t, tc.report, tc.method, tc.path)
			if got := resp.Body.String(); resp.Code != tc.code || got != tc.body {
				t.Errorf("%d %q, want %d %q", resp.Code, got, tc.code, tc.body)
			}
		})
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	m, s := healthy()
	r := NewReport("dev", m, s, true)
	r.Ready = true
	text := get(t, r, "GET", "/metrics").Body.String()
	for _, want := range []string{
		"dinnerbell_ready 1\n", "dinnerbell_halted 0\n", "dinnerbell_subscriptions 7\n",
		`dinnerbell_lane_shipped{partition="0"} 12` + "\n", `dinnerbell_notifications_total{stage="decided"} 6` + "\n",
		`dinnerbell_lanes_notifications{stage="decided"} 9` + "\n", "dinnerbell_campaigns_without_audience_total 3\n", "dinnerbell_campaigns_older_total 4\n",
		"dinnerbell_campaigns_dead_total 1\n", `dinnerbell_dead_letters_total{reason="tombstone"} 5` + "\n", `dinnerbell_dead_letters_total{reason="bad_time"} 0` + "\n", `dinnerbell_lanes_campaigns{outcome="dead"} 4` + "\n", "\nprocess_open_fds ", "\ngo_goroutines ", "dinnerbell_freshness_seconds 0.0003\n", `dinnerbell_source_state{state="streaming"} 1` + "\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	standard := regexp.MustCompile(`^(# HELP |# TYPE )?(dinnerbell|go|process|promhttp)_`)
	for line := range strings.Lines(text) {
		if !standard.MatchString(line) || strings.Contains(line, "network") || strings.Contains(line, "dinnerbell_process") {
			t.Errorf("neither ours nor standard: %s", line)
		}
	}
}

// docs/metrics.md is written from the code, and lists exactly the metrics that the daemon
// serves.
func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	generated.Check(t, "../../../../docs/metrics.md", "metrics", Reference())
	if odd := unknownWorries(); len(odd) > 0 {
		t.Errorf("no metrics of these names: %q", odd)
	}
	text := everyMetric(t)
	names := func(pattern, text string) []string {
		var out []string
		for _, found := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			out = append(out, found[1])
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	served := names(`(?m)^# TYPE (dinnerbell_\w+ \w+)`, text)
	listed := names("(?m)^\\| `(dinnerbell_\\w+` \\| \\w+)", Reference())
	for i := range listed {
		listed[i] = strings.ReplaceAll(listed[i], "` |", "")
	}
	slices.Sort(listed)
	if !slices.Equal(served, listed) {
		t.Errorf("served %q\nlisted %q", served, listed)
	}
}

// everyMetric returns the metrics of a daemon in which each one has a value.
func everyMetric(t *testing.T) string {
	t.Helper()
	m, s := healthy()
	m.SafeWALSize, m.FreshAt, m.Work = 1, time.Unix(1, 0), &cdc.WorkStatus{Kind: "rebuild"}
	m.Checkpoint.ID = "20260101T000000.000Z"
	s.Lanes[0].SourceLSN = 1 // as with late subscribers
	r := NewReport("dev", m, s, true)
	d := NewDurations()
	for _, h := range d.Collectors() {
		if o, ok := h.(prometheus.Observer); ok {
			o.Observe(1)
		}
	}
	w := httptest.NewRecorder()
	NewHandler(Build{}, func() Report { return r }, slog.New(slog.DiscardHandler), d.Collectors()...).
		ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	return w.Body.String()
}

// Names and help of all metrics follow Prometheus' conventions.
func TestMetricsFollowConventions(t *testing.T) {
	t.Parallel()
	problems, err := promlint.New(strings.NewReader(everyMetric(t))).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("promlint: %v, %v", problems, err)
	}
}

// While a snapshot is taken the status shows its progress.
func TestStatusOfASnapshot(t *testing.T) {
	t.Parallel()
	m, s := healthy()
	m.Snapshot = tablecopy.Progress{Rows: 1200000, Total: 3000000, Percent: 40, Rate: 500000, Left: 3600 * time.Millisecond}
	if r := NewReport("dev", m, s, true); r.Source.SnapshotRows != 0 {
		t.Errorf("after the snapshot: %+v", r.Source)
	}
	m.State = cdc.StateSnapshot
	r := NewReport("dev", m, s, false)
	src := r.Source
	if src.SnapshotRows != 1200000 || src.SnapshotTotal != 3000000 || src.SnapshotPercent != 40 || src.SnapshotRowsPerSecond != 500000 || src.SnapshotSecondsLeft != 3.6 {
		t.Errorf("source is %+v", src)
	}
}

// TCP stays read-only.
func TestTCPHasNoActions(t *testing.T) {
	t.Parallel()
	h := NewHandler(Build{}, func() Report { return Report{} }, slog.New(slog.DiscardHandler))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/control/checkpoint/create", strings.NewReader("{}")))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST over TCP: %d", w.Code)
	}
}

package livepage

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/status"
	"dinnerbell/internal/precondition"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
)

const markup = `<script>alert("bell")</script><b title='x'>soup & "salad"</b>`

// patience bounds how long a test waits for an expected event.
const patience = envtest.Patience

// newPage makes the page of a daemon that reports r and has the campaigns given.
func newPage(t *testing.T, r *status.Report, fanOuts []stream.FanOut, open []sink.OpenCampaign, openErr error) *Page {
	t.Helper()
	p, err := New(Daemon{
		Status:   func() status.Report { return *r },
		FanOuts:  func() []stream.FanOut { return fanOuts },
		Counters: func() stream.Counters { return stream.Counters{} },
		Open:     func(context.Context, int) ([]sink.OpenCampaign, error) { return open, openErr },
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func get(t *testing.T, p *Page, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return w
}

func TestTextOfCampaignsIsText(t *testing.T) {
	t.Parallel()
	now := time.Now().Unix()
	r := &status.Report{Ready: true, Recent: []status.RecentCampaign{
		{Campaign: markup, Title: markup, Restaurant: markup, What: "finished", At: time.Now()},
		{What: "refused", Reason: markup, At: time.Now()},
	}, Events: []status.Event{{Text: markup, Level: "info"}}}
	key := campaign.Key{Campaign: markup, Restaurant: markup}
	p := newPage(t, r, []stream.FanOut{{Campaign: markup + "2", Title: markup, End: now + 60, Audience: 10, Passed: 5}}, []sink.OpenCampaign{
		{Key: key, Title: markup, Phase: sink.PhaseParked, End: now + 60, Audience: 7},
		{Key: key, Title: markup, Phase: sink.PhaseScheduled, Start: now + 30, End: now + 60},
	}, nil)
	body := get(t, p, "/").Body.String()
	if n := strings.Count(body, "&lt;script&gt;"); n < 8 {
		t.Errorf("the text stands there %d times, want at least 8", n)
	}
	if strings.Contains(body, "<script>") || strings.Contains(body, "<b title") {
		t.Errorf("the page has markup of a campaign:\n%s", body)
	}
	for _, want := range []string{"dinnerbell approve &#39;", "50 %", "dinnerbell dead-letters list"} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

func TestHeadNamesWhatIsWrongAndTheCommand(t *testing.T) {
	t.Parallel()
	healthy := func() *status.Report {
		return &status.Report{Ready: true, Source: status.Source{State: "streaming"}, Lanes: []status.Lane{{Partition: 0, State: "running"}, {Partition: 1, State: "running"}}}
	}
	site := status.Site{Source: "db:5432", Sink: "db:5432", Brokers: "k1:9092,k2:9092", StateDir: "/var/lib/bell"}
	for name, tc := range map[string]struct {
		change func(r *status.Report)
		class  string
		want   []string
	}{
		"well": {func(*status.Report) {}, "ok", []string{"Delivering", "All is well"}},
		"lane": {func(r *status.Report) {
			r.Lanes[1] = status.Lane{Partition: 1, State: "halted", HaltedWhat: "Postgres was rolled back", HaltedHint: "`dinnerbell resolve --lane 1` on one machine"}
		}, "halted", []string{"Partly halted: 1 of 2 lanes deliver", "Lane 1: Postgres was rolled back.", "<code>dinnerbell resolve --lane 1</code> on one machine"}},
		"postgres": {func(r *status.Report) { r.Ready, r.Source.State, r.Source.LastError = false, "connecting", "refused" }, "down", []string{"Not delivering", "db:5432 does not answer", "<code>dinnerbell doctor</code> names the cause"}},
		"kafka": {func(r *status.Report) {
			r.Ready, r.Lanes[0].State, r.Lanes[0].LastError = false, "stopped", "dial k2:9092: refused"
			r.Lanes[1].State, r.Lanes[1].LastError = "stopped", "dial k2:9092: refused"
		}, "down", []string{"Not delivering", "Kafka at k1:9092,k2:9092", "start the broker"}},
		"disk": {func(r *status.Report) { r.Ready, r.State.Condition = false, status.DiskFull }, "down", []string{"Not delivering", "df -h /var/lib/bell"}},
		"snapshot": {func(r *status.Report) {
			r.Ready, r.Source.State, r.Source.SnapshotRows, r.Source.SnapshotTotal = false, "snapshot", 10, 1000
		}, "work", []string{"Getting ready", "10 rows of about 1,000"}},
		"parked":  {func(r *status.Report) { r.Campaigns.Parked = 2 }, "warning", []string{"2 campaigns are parked", "<code>dinnerbell approve CAMPAIGN</code>"}},
		"paused":  {func(r *status.Report) { r.Campaigns.Paused = 1 }, "warning", []string{"One campaign is paused", "dinnerbell resume CAMPAIGN"}},
		"unknown": {func(r *status.Report) { r.Ready, r.Reasons = false, []string{"the moon"} }, "down", []string{"Not ready", "the moon.", "dinnerbell doctor"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := healthy()
			tc.change(r)
			r.Problems = status.FindProblems(r, site)
			body := get(t, newPage(t, r, nil, nil, nil), "/").Body.String()
			if want := `data-state="` + tc.class + `"`; !strings.Contains(body, want) {
				t.Errorf("the page lacks %q", want)
			}
			for _, want := range tc.want {
				if !strings.Contains(body, want) {
					t.Errorf("the page lacks %q", want)
				}
			}
			if t.Failed() {
				_, head, _ := strings.Cut(body, `data-section="head"`)
				t.Log(head[:min(len(head), 1500)])
			}
		})
	}
}

func TestPolicyAndAssets(t *testing.T) {
	t.Parallel()
	p := newPage(t, &status.Report{}, nil, nil, errors.New("refused"))
	for path, want := range map[string]int{"/": 200, "/live/page.js": 200, "/live/page.css": 200, "/live/uplot.js": 200, "/live/uplot.css": 200, "/live/uplot-LICENSE.txt": 200, "/live/page.html": 404, "/live/../page.go": 404} {
		w := get(t, p, path)
		if w.Code != want {
			t.Errorf("%s: %d, want %d", path, w.Code, want)
		}
		h := w.Header()
		if h.Get("Content-Security-Policy") != policy || h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%s: headers %v", path, h)
		}
	}
	body := get(t, p, "/").Body.String()
	for _, bad := range []string{"style=", "<style", " onclick", "http://", "https://"} {
		if strings.Contains(strings.ReplaceAll(body, "xmlns='http://www.w3.org/2000/svg'", ""), bad) {
			t.Errorf("the page contains %q", bad)
		}
	}
}

// A stream sends the page each second, its number is bounded, and it ends with Run.
func TestStreamsAreBoundedAndEnd(t *testing.T) {
	t.Parallel()
	p := newPage(t, &status.Report{Ready: true, Version: "v1"}, nil, nil, nil)
	server := httptest.NewServer(p)
	defer server.Close()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()

	var bodies []*bufio.Scanner
	for n := range maxStreams {
		bodies = append(bodies, openStream(t, server.URL))
		if !awaitLine(bodies[n], "event: page") {
			t.Fatalf("stream %d ends", n)
		}
	}
	resp, err := http.Get(server.URL + "/live/events")
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("one stream too many: %s, %v", resp.Status, err)
	}
	if !awaitLine(bodies[0], "event: samples") {
		t.Error("no second event")
	}
	stop()
	for n, body := range bodies {
		for body.Scan() {
			continue // until its end
		}
		if err := body.Err(); err != nil {
			t.Errorf("stream %d: %v", n, err)
		}
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A stream ends at its age, and the answer to HEAD is no stream.
func TestStreamsEndAtTheirAge(t *testing.T) {
	t.Parallel()
	p := newPage(t, &status.Report{Ready: true, Version: "v1"}, nil, nil, nil)
	p.streamAge = 50 * time.Millisecond
	server := httptest.NewServer(p)
	defer server.Close()
	stream := openStream(t, server.URL)
	if !awaitLine(stream, "event: page") {
		t.Fatal("no event")
	}
	for stream.Scan() {
		continue // until its end
	}
	if err := stream.Err(); err != nil {
		t.Error(err)
	}
	p.streamAge = time.Hour
	resp, err := http.Head(server.URL + "/live/events")
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("HEAD: %s, %v", resp.Status, err)
	}
	if p.streams.hasStreams() {
		t.Error("a stream is left")
	}
}

func openStream(t *testing.T, url string) *bufio.Scanner {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/live/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	return lines
}

func awaitLine(lines *bufio.Scanner, want string) bool {
	for lines.Scan() {
		if lines.Text() == want {
			return true
		}
	}
	return false
}

// smallSends accepts connections that hold little of what their client does not read.
type smallSends struct{ net.Listener }

// Accept implements net.Listener.
func (l smallSends) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if tcp, ok := conn.(*net.TCPConn); ok && err == nil {
		err = tcp.SetWriteBuffer(4 << 10)
	}
	return conn, err
}

// A client that never reads loses its stream: neither its goroutine nor its memory stays.
func TestStreamOfAClientThatNeverReadsEnds(t *testing.T) {
	t.Parallel()
	var looks atomic.Int64
	p := newPage(t, &status.Report{}, nil, nil, nil)
	p.patience = 100 * time.Millisecond
	p.daemon.Status = func() status.Report {
		text := fmt.Sprint(looks.Add(1)) + strings.Repeat("x", 100<<10)
		return status.Report{Ready: true, Events: []status.Event{{Text: text}}}
	}
	server := httptest.NewUnstartedServer(p)
	server.Listener = smallSends{server.Listener}
	server.Start()
	defer server.Close()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()

	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if tcp, ok := conn.(*net.TCPConn); !ok || tcp.SetReadBuffer(4<<10) != nil {
		t.Fatal("the client's buffer cannot be bounded")
	}
	if _, err := fmt.Fprint(conn, "GET /live/events HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	envtest.Until(t, patience, func() error {
		if looks.Load() == 0 {
			return errors.New("no frame yet")
		}
		if p.streams.hasStreams() {
			return errors.New("the stream is still there")
		}
		return nil
	})
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// What is not known, or not of now, is not shown as a number of now.
func TestFiguresThatAreNotOfNow(t *testing.T) {
	t.Parallel()
	n := int64(1234)
	r := &status.Report{Lanes: []status.Lane{{State: "takeover"}}, Source: status.Source{State: "connecting"}, Figures: &status.Figures{Unknown: true}}
	look := func(want []string, bad ...string) {
		t.Helper()
		body := get(t, newPage(t, r, nil, nil, nil), "/").Body.String()
		for _, w := range want {
			if !strings.Contains(body, w) {
				t.Errorf("the page lacks %q", w)
			}
		}
		for _, b := range bad {
			if strings.Contains(body, b) {
				t.Errorf("the page has %q", b)
			}
		}
	}
	look([]string{`<b data-value="live">–</b>`, `<b data-value="shipped">–</b>`, "not known: no lane is taken over yet", "none was finished in the last 0 s", "none is seen while lanes do not run", `<td class="r">–</td>`},
		"15 min</dd>", "without a limit", "none waits", "keeps 0 B", "0.0 ms")
	r.Figures = &status.Figures{AsOf: time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)}
	r.Campaigns.Live, r.Campaigns.Scheduled, r.Notifications.Decided, r.Notifications.Shipped = n, n, n, n
	look([]string{`<b data-value="live">1,234</b>`, `<b data-value="shipped">1,234</b>`, "last known, as of 12:00:00"}, "not known: no lane")
	r.Stopping, r.Problems = true, []status.Problem{{Part: "daemon", Level: status.LevelWork, What: "the daemon ends", Mend: "nothing to do"}}
	look([]string{"<strong>Stopping</strong>", "The daemon ends."})
}

// Each statement that mends a problem has a line of its own, to be pasted.
func TestStatementsHaveTheirLines(t *testing.T) {
	t.Parallel()
	r := &status.Report{Problems: []status.Problem{{Part: "source", Level: status.LevelHalted, What: "a right is missing", Mend: "GRANT a TO b; ALTER TABLE c OWNER TO d; then start again",
		Remedy: precondition.SplitRemedy("GRANT a TO b; ALTER TABLE c OWNER TO d; then start again")}}}
	body := get(t, newPage(t, r, nil, nil, nil), "/").Body.String()
	if want := `</span> then start again<code class="statement">GRANT a TO b;</code><code class="statement">ALTER TABLE c OWNER TO d;</code></span>`; !strings.Contains(body, want) {
		t.Errorf("the page lacks %s:\n%s", want, body)
	}
}

func TestRingKeepsFifteenMinutes(t *testing.T) {
	t.Parallel()
	var r ring
	var c stream.Counters
	began := time.Unix(1_800_000_000, 0)
	for n := range ringLength + 100 {
		c.Shipped += 10
		c.Decided += 20
		if n == ringLength+50 { // a new engine counts from zero
			c = stream.Counters{Shipped: 10, Decided: 20}
		}
		c.Latencies[n%2*10]++
		r.add(began.Add(time.Duration(n)*time.Second), c)
	}
	all, next := r.samplesSince(0)
	if len(all) != ringLength || next != int64(ringLength+99) {
		t.Fatalf("%d samples up to %d", len(all), next)
	}
	for i, s := range all {
		if s.shipped != 10 || s.decided != 20 {
			t.Errorf("sample %d: %+v", i, s)
		}
	}
	if some, _ := r.samplesSince(next - 3); len(some) != 3 || some[2] != all[len(all)-1] {
		t.Errorf("the last three: %+v", some)
	}
	median, p99 := r.latencyQuantiles()
	if median != 4 || p99 != 24 {
		t.Errorf("median %v, 99th percentile %v", median, p99)
	}
	if m := groupMinutes(all); len(m) < 15 || len(m) > 16 || m[0].Shipped != 10 {
		t.Errorf("%d minutes, the newest %+v", len(m), m[0])
	}
	if computeRate(all) != 10 {
		t.Errorf("rate %v", computeRate(all))
	}
}

func TestTexts(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	for _, tc := range []struct{ got, want string }{
		{formatSpan(-time.Second), "0 s"}, {formatSpan(59 * time.Second), "59 s"}, {formatSpan(61 * time.Second), "1 min"}, {formatSpan(26 * time.Hour), "1 d 2 h"}, {formatSpan(400 * 24 * time.Hour), "1 years"},
		{formatMilliseconds(0.31), "0.3 ms"}, {formatMilliseconds(float32(302)), "302 ms"}, {formatMilliseconds(1500 * time.Millisecond), "1.5 s"},
		{perSecond(0), "0"}, {perSecond(0.24), "0.2"}, {perSecond(12345.6), "12,346"},
		{formatClock(now, now.Add(-time.Hour)), "11:00"}, {formatClock(now, now.AddDate(0, 0, 1)), "May 5 12:00"}, {formatClock(now, time.Time{}), "–"},
		{quoteArgument("123e4567-e89b"), "123e4567-e89b"}, {quoteArgument("it's; rm"), `'it'\''s; rm'`}, {quoteArgument("-x"), "-- '-x'"}, {quoteArgument(""), "''"},
	} {
		if tc.got != tc.want {
			t.Errorf("got %q, want %q", tc.got, tc.want)
		}
	}
}

func ExampleNew() {
	_, err := New(Daemon{}, slog.New(slog.DiscardHandler))
	fmt.Println(err)
	// Output: <nil>
}

//go:build page

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/internal/testenv/relay"
	"dinnerbell/internal/testenv/workload"
)

// pageDeployment is a deployment whose servers the test stops, with a disk that it fills.
type pageDeployment struct {
	*deployment
	postgres *testenv.Postgres
	broker   *testenv.Broker
	origin   string
	sent     int
}

const markupContent = `<script>document.title="bell"</script><b>Soup</b> & "salad"`

// newPageDeployment starts a daemon with four lanes and restaurants of several sizes.
func newPageDeployment(t *testing.T) *pageDeployment {
	t.Helper()
	dir := envtest.Dir(t)
	p := &pageDeployment{postgres: envtest.StartPostgres(t, filepath.Join(dir, "postgres"), nil), broker: envtest.StartBroker(t, filepath.Join(dir, "broker"))}
	t.Cleanup(func() {
		if err := p.broker.Stop(); err != nil {
			t.Error(err)
		}
	})
	p.deployment = newDeploymentAt(t, envtest.DatabaseOn(t, p.postgres), envtest.KafkaAt(t, p.broker.Addr()))
	p.onSmallDisk(200, "64MB")
	port, err := testenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	p.setConfig("http", map[string]any{"listen": testenv.Loopback(port)})
	p.setConfig("limits", map[string]any{"max_audience": 20_000, "notifications_per_second": 900})
	p.origin = "http://" + testenv.Loopback(port) + "/"
	p.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id)
SELECT md5('c' || n)::uuid::text, r.name FROM (VALUES ('pasta-bar', 40), ('ramen-after-ten', 18000), ('pizzeria-napoli', 9000), ('corner-bakery', 260), ('everybody', 25000)) AS r(name, size), generate_series(1, r.size) n`)
	p.setup(4)
	p.start()
	p.awaitReadyWithin(pagePatience)
	return p
}

// send produces a campaign to one lane; start is relative to now.
func (p *pageDeployment) send(partition int32, id, restaurant, content string, start time.Duration) {
	p.Helper()
	c := workload.NewCampaign(id, restaurant, time.Now().Add(start), time.Hour)
	c.Content = content
	p.produce(partition, c)
}

// sendSmall sends some small campaigns over all lanes.
func (p *pageDeployment) sendSmall(n int) {
	p.Helper()
	names := []string{"Two pizzas for one", "Lunch menu until three", "Fresh bread at five", "Sunday roast", "Free delivery today", "Tiramisu on the house"}
	for range n {
		p.sent++
		restaurant := []string{"pasta-bar", "corner-bakery"}[p.sent%2]
		p.send(int32(p.sent%4), fmt.Sprintf("7f3c9a1e-0b1d-4c6f-9a52-%012d", p.sent), restaurant, names[p.sent%len(names)], -10*time.Second)
	}
}

// pageStatus is the part of /api/status that the page is compared with.
type pageStatus struct {
	Campaigns struct {
		Live      int64 `json:"live"`
		Scheduled int64 `json:"scheduled"`
		Parked    int64 `json:"parked"`
	} `json:"campaigns"`
	Source struct {
		State         string `json:"state"`
		Slot          string `json:"slot_wal_status"`
		Subscriptions int64  `json:"subscriptions"`
	} `json:"source"`
	Counters struct {
		Accepted int64            `json:"campaigns_accepted"`
		Expired  int64            `json:"campaigns_expired"`
		Letters  map[string]int64 `json:"dead_letters"`
	} `json:"counters"`
	Lanes []struct {
		Partition  int32 `json:"partition"`
		Decided    int64 `json:"decided"`
		NextOffset int64 `json:"next_offset"`
	} `json:"lanes"`
}

// statusNow reads /api/status.
func (p *pageDeployment) statusNow() (s pageStatus) {
	p.Helper()
	body, err := testenv.Get(p.Context(), p.origin+"api/status")
	if err != nil {
		p.Fatal(err)
	}
	if err := json.Unmarshal(body, &s); err != nil {
		p.Fatal(err)
	}
	return s
}

// thousands writes a number as the page does.
func thousands(n int64) string {
	digits := fmt.Sprint(n)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

func TestPage(t *testing.T) {
	p := newPageDeployment(t)
	b := openBrowser(t, p.origin)
	b.show(1440, 900, "light")
	b.awaitText("[data-section=head]", "Delivering", "All is well")

	p.load(b)
	b.checkFaults()
	p.compareWithStatus(b)
	p.checkLooks(b)
	p.checkWithoutScripts(b)
	p.checkSilentStream(b)
	p.checkFullDisk(b)
	p.checkLostKafka(b)
	p.checkDeadPostgres(b)
	p.checkRestart(b)
	p.checkHaltedLane(b)
	b.checkFaults()
}

// load sends campaigns of each kind, and waits until the page shows them under way.
func (p *pageDeployment) load(b *browser) {
	p.Helper()
	p.send(0, "sunday-roast", "corner-bakery", "Sunday roast for two", 25*time.Minute)
	p.send(1, "late-night", "pasta-bar", "Carbonara after midnight", 50*time.Minute)
	p.send(2, "to-everybody", "everybody", "Ten percent off for everybody", -time.Second)
	record := &kgo.Record{Topic: p.topicName("campaigns"), Partition: 3, Value: []byte(`{"not":"a campaign"}`)}
	if err := p.campaigns.ProduceSync(p.Context(), record).FirstErr(); err != nil {
		p.Fatal(err)
	}
	p.send(0, "<i>markup</i>", "pasta-bar", markupContent, -time.Second)
	b.awaitText("[data-section=campaigns]", "parked", "dinnerbell approve to-everybody", "Sunday roast for two", markupContent, "<i>markup</i>", "dinnerbell dead-letters list")
	if marked := evaluate[int](b, `document.querySelectorAll("[data-section] script, [data-section] i, .title b").length`); marked != 0 {
		p.Errorf("a campaign's markup has become %d elements", marked)
	}
	b.awaitText("[data-section=head]", "with a warning", "One campaign is parked", "dinnerbell approve CAMPAIGN")
	for range 12 {
		p.sendSmall(3)
		p.awaitFinished(b)
	}
	p.send(1, "8a51c0de-77aa-4e0f-b6c1-000000000001", "ramen-after-ten", "Ramen after ten", -time.Second)
	p.send(2, "8a51c0de-77aa-4e0f-b6c1-000000000002", "pizzeria-napoli", "Margherita, buy one get one", -time.Second)
	b.awaitText("[data-section=campaigns]", "Ramen after ten", "Margherita")
	envtest.Until(p, pagePatience, func() error {
		if shown := evaluate[string](b, `[...document.querySelectorAll(".live:has(progress)")].map(e => e.textContent).join()`); !strings.Contains(shown, "going out") || !strings.Contains(shown, " left") {
			return fmt.Errorf("no fan-out has a progress bar and its time left: %q", shown)
		}
		return nil
	})
}

// awaitFinished waits until the page counts all small campaigns as finished.
func (p *pageDeployment) awaitFinished(b *browser) {
	p.Helper()
	envtest.Until(p, pagePatience, func() error {
		if got, want := b.text("[data-section=letters] [data-value=finished]"), fmt.Sprint(p.sent+1); got != want {
			return fmt.Errorf("finished: %s, want %s", got, want)
		}
		return nil
	})
}

// compareWithStatus compares the page with /api/status, until both are of one moment.
func (p *pageDeployment) compareWithStatus(b *browser) {
	p.Helper()
	envtest.Until(p, pagePatience, func() error {
		s := p.statusNow()
		for selector, want := range map[string]string{
			"[data-section=tiles] [data-value=live]":          thousands(s.Campaigns.Live),
			"[data-section=tiles] [data-value=scheduled]":     thousands(s.Campaigns.Scheduled),
			"[data-section=tiles] [data-value=parked]":        thousands(s.Campaigns.Parked),
			"[data-section=tiles] [data-value=subscriptions]": thousands(s.Source.Subscriptions),
			"[data-section=source] [data-value=slot]":         s.Source.Slot,
			"[data-section=source] [data-value=mirror]":       s.Source.State,
			"[data-section=letters] [data-value=accepted]":    thousands(s.Counters.Accepted),
			"[data-section=letters] [data-value=expired]":     thousands(s.Counters.Expired),
		} {
			if got := b.text(selector); got != want {
				return fmt.Errorf("%s is %q, in the status %q", selector, got, want)
			}
		}
		for reason, n := range s.Counters.Letters {
			if got := b.text(fmt.Sprintf("[data-letter=%q]", reason)); got != thousands(n) {
				return fmt.Errorf("dead letters %s: %q, in the status %d", reason, got, n)
			}
		}
		if len(s.Lanes) != 4 || len(s.Counters.Letters) == 0 {
			return fmt.Errorf("%d lanes, dead letters %v", len(s.Lanes), s.Counters.Letters)
		}
		for _, l := range s.Lanes {
			for value, n := range map[string]int64{"decided": l.Decided, "next": l.NextOffset} {
				if got := b.text(fmt.Sprintf("[data-lane='%d'] [data-value=%s]", l.Partition, value)); got != thousands(n) {
					return fmt.Errorf("lane %d: %s is %q, in the status %d", l.Partition, value, got, n)
				}
			}
		}
		return nil
	})
}

// checkLooks lets axe look at the page in all its forms, and takes the pictures.
func (p *pageDeployment) checkLooks(b *browser) {
	p.Helper()
	for _, form := range []struct {
		name          string
		width, height int64
		scheme        string
	}{{"light", 1440, 900, "light"}, {"dark", 1440, 900, "dark"}, {"phone-light", 390, 844, "light"}, {"phone-dark", 390, 844, "dark"}, {"wall", 2560, 1440, "dark"}} {
		b.show(form.width, form.height, form.scheme)
		b.run(chromedp.WaitVisible(chromedp.CSS(".uplot canvas")))
		if evaluate[bool](b, `document.documentElement.scrollWidth > innerWidth`) {
			p.Errorf("%s: the page is wider than the screen", form.name)
		}
		b.checkAccessible(form.name)
		b.shoot(form.name, 1160)
	}
	b.show(1440, 900, "light")
}

// checkWithoutScripts loads the page without scripts: it is complete.
func (p *pageDeployment) checkWithoutScripts(b *browser) {
	p.Helper()
	b.run(command(emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true}), chromedp.Navigate(p.origin))
	html, err := chromedp.Run(b.ctx, chromedp.OuterHTML(chromedp.CSS("html")))
	if err != nil {
		p.Fatal(err)
	}
	for _, want := range []string{`http-equiv="refresh"`, "table class=\"campaigns\"", "Sunday roast for two", "Minute by minute", `data-lane="3"`} {
		if !strings.Contains(html, want) {
			p.Errorf("without scripts the page lacks %q", want)
		}
	}
	b.run(command(emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{}))
	b.open()
}

// checkWrong waits until the head shows a state and texts, and lets axe look at it.
func (p *pageDeployment) checkWrong(b *browser, name, class string, want ...string) {
	p.Helper()
	b.awaitText("[data-section=head] .head[data-state="+class+"]", want...)
	b.awaitText("[data-section=head] .mend code", "")
	if title := b.text("title"); strings.HasPrefix(title, "Delivering") {
		p.Errorf("%s: the title is %q", name, title)
	}
	b.checkAccessible(name)
	b.shoot(name, 560)
}

// checkSilentStream loses all bytes of the page's connections and closes none, as where a
// machine on the way has lost power: the page says so, and goes on over a new connection.
func (p *pageDeployment) checkSilentStream(b *browser) {
	p.Helper()
	var lossless atomic.Bool // connections that begin from then on
	r, err := relay.StartRelay(relay.Options{Route: func(*bufio.Reader) (relay.Route, error) {
		return relay.Route{Upstream: strings.TrimSuffix(strings.TrimPrefix(p.origin, "http://"), "/"), Exempt: lossless.Load()}, nil
	}})
	if err != nil {
		p.Fatal(err)
	}
	defer r.Close()
	b.visit("http://" + r.Address() + "/")
	// The page speaks of the silence for as long as a new connection takes: a glance now and
	// then may miss it.
	evaluate[chromedp.Void](b, `window.lostTexts = ""; new MutationObserver(() => { lostTexts += document.getElementById("lost").textContent; }).observe(document.getElementById("lost"), {childList: true}); 0`)
	lossless.Store(true)
	r.Disturb(relay.FromServer, relay.Faults{BlackHole: true})
	r.Disturb(relay.FromClient, relay.Faults{BlackHole: true})
	envtest.Until(p, pagePatience, func() error {
		said, lost, connection := evaluate[string](b, `lostTexts`), b.text("#lost"), b.text("#connection")
		if !strings.Contains(said, "No answer from the daemon since") || lost != "" || connection != "live" {
			return fmt.Errorf("a silent stream: the page has said %q, says %q, connection %q", said, lost, connection)
		}
		return nil
	})
	b.visit(p.origin)
}

func (p *pageDeployment) checkFullDisk(b *browser) {
	p.Helper()
	ballast := p.fillDisk(30 << 20)
	p.checkWrong(b, "disk", "down", "Not delivering", "disk of state.dir is full", "df -h "+p.dir, "since")
	if err := os.Remove(ballast); err != nil {
		p.Fatal(err)
	}
	b.awaitText("[data-section=head]", "with a warning")
}

func (p *pageDeployment) checkLostKafka(b *browser) {
	p.Helper()
	if err := p.broker.Stop(); err != nil {
		p.Fatal(err)
	}
	p.checkWrong(b, "kafka", "down", "delivering", "Kafka at "+p.broker.Addr(), "start the broker", "dinnerbell doctor")
	if err := p.broker.Start(p.Context()); err != nil {
		p.Fatal(err)
	}
	b.awaitText("[data-section=head]", "with a warning")
}

func (p *pageDeployment) checkDeadPostgres(b *browser) {
	p.Helper()
	if err := p.postgres.Kill(); err != nil {
		p.Fatal(err)
	}
	p.checkWrong(b, "postgres", "down", "Not delivering", "Postgres at 127.0.0.1:"+fmt.Sprint(p.postgres.Port()), "does not answer", "dinnerbell doctor")
	b.awaitText("[data-section=source]", "not known while disconnected")
	if err := p.postgres.Start(p.Context()); err != nil {
		p.Fatal(err)
	}
	b.awaitText("[data-section=head]", "with a warning")
}

// checkRestart kills the daemon: the page says that nobody answers, and goes on by itself.
func (p *pageDeployment) checkRestart(b *browser) {
	p.Helper()
	b.setAway(true)
	p.kill()
	b.awaitText("#lost", "No answer from the daemon since")
	b.checkAccessible("lost")
	p.start()
	p.awaitReadyWithin(pagePatience)
	b.awaitText("#connection", "live")
	envtest.Until(p, pagePatience, func() error {
		if text := b.text("#lost"); text != "" {
			return fmt.Errorf("the page still says %q", text)
		}
		return nil
	})
	b.setAway(false)
	p.sent = -1 // counted from the start of the daemon
	p.sendSmall(1)
	b.awaitText("[data-section=letters] [data-value=finished]", "1")

	began := time.Now() // with the page open, SIGTERM is not delayed
	b.setAway(true)
	p.stop()
	p.Logf("the daemon stopped %s after SIGTERM", time.Since(began).Round(time.Millisecond))
}

// checkHaltedLane sets the sink of one lane back, as a restored backup does: that lane
// halts, and the others go on.
func (p *pageDeployment) checkHaltedLane(b *browser) {
	p.Helper()
	p.db.Exec(`UPDATE dinnerbell.lane SET seq = seq - 1, shipped = least(shipped, seq - 1) WHERE lane = 2`)
	p.start()
	envtest.Until(p, pagePatience, func() error {
		resp, err := http.Get(p.origin + "healthz")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	p.checkWrong(b, "halted", "halted", "Partly halted: 3 of 4 lanes deliver", "Lane 2:", "rolled back", "dinnerbell resolve --lane 2")
	b.setAway(false)
	if row := b.text("[data-lane='2']"); !strings.Contains(row, "halted") {
		p.Errorf("the lane's row: %s", row)
	}
	p.stop()
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/internal/testenv/workload"
	"dinnerbell/stream/explain"

	"github.com/twmb/franz-go/pkg/kgo"
)

// explainTest is a deployment of two lanes, and the verdicts that it has seen.
type explainTest struct {
	*deployment
	topics *kgo.Client
	sent   map[int32]int64 // messages of each lane
	seen   map[explain.Verdict]bool
}

// startExplainTest makes a deployment that begins to read an hour ago, and starts its
// daemon. sections are more of its configuration. One message is older.
func startExplainTest(t *testing.T, sections string) (*explainTest, func()) {
	t.Helper()
	d := &explainTest{deployment: newDeployment(t), sent: map[int32]int64{}, seen: map[explain.Verdict]bool{}}
	begin := time.Now().Add(-time.Hour).UTC().Truncate(time.Second)
	d.config = d.changedConfig("start", `"kafka":{`, sections+`,"kafka":{"start":"`+begin.Format(time.RFC3339)+`",`)
	d.kafka.TopicNamed(d.topicIn, 2, nil)
	d.topics = d.kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	old := workload.NewCampaign("old", "r", begin.Add(-time.Hour), 9*time.Hour)
	d.send(0, begin.Add(-time.Hour), old.JSON())
	d.must("setup")
	stop, ended, _ := d.daemon()
	envtest.Until(t, envtest.Patience, d.ready)
	return d, func() {
		stop()
		<-ended
	}
}

// send writes a message with a time to a lane.
func (d *explainTest) send(lane int32, at time.Time, value []byte) {
	d.t.Helper()
	if err := d.topics.ProduceSync(d.t.Context(), &kgo.Record{Topic: d.topicIn, Partition: lane, Timestamp: at, Value: value}).FirstErr(); err != nil {
		d.t.Fatal(err)
	}
	d.sent[lane]++
}

// campaign sends a campaign to a lane: it starts and ends so long from now.
func (d *explainTest) campaign(lane int32, id, restaurant string, start, end time.Duration) {
	d.t.Helper()
	now := time.Now()
	c := workload.NewCampaign(id, restaurant, now.Add(start), end-start)
	d.send(lane, now, c.JSON())
}

// await waits until a query counts as many rows.
func (d *explainTest) await(want int64, sql string, args ...any) {
	d.t.Helper()
	envtest.Until(d.t, envtest.Patience, func() error {
		if n := d.db.Int(sql, args...); n != want {
			return fmt.Errorf("%s: %d, want %d", sql, n, want)
		}
		return nil
	})
}

// awaitRead waits until a lane has read all its messages.
func (d *explainTest) awaitRead(lane int32) {
	d.t.Helper()
	d.await(d.sent[lane], `SELECT next_offset FROM dinnerbell.lane WHERE lane = $1`, lane)
}

// explain runs the command. The exit code must fit the answer.
func (d *explainTest) explain(args ...string) (x explain.Explanation) {
	d.t.Helper()
	var stderr syncBuffer
	code, out := d.run(d.t.Context(), &stderr, append([]string{"explain", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &x); err != nil {
		d.t.Fatalf("explain %.200q: exit %d: %v: %s%s", args, code, err, out, stderr.String())
	}
	want := exitUsage
	if x.Notified != nil {
		want = map[bool]int{true: exitDone, false: exitFailed}[*x.Notified]
	}
	if code != want || strings.Contains(out+stderr.String(), password) {
		d.t.Errorf("explain %.200q: exit %d, want %d: %s%s", args, code, want, out, stderr.String())
	}
	return x
}

// want runs the command until it gives a verdict, since the mirror follows Postgres a
// moment later. The reason must hold why, and the evidence a line of each source.
func (d *explainTest) want(verdict explain.Verdict, why string, sources []explain.Source, args ...string) {
	d.t.Helper()
	var last explain.Explanation
	envtest.Until(d.t, envtest.Patience, func() error {
		last = d.explain(args...)
		if last.Verdict != verdict || !strings.Contains(last.Why, why) {
			return fmt.Errorf("explain %.200q: %s: %s; want %s with %q; evidence %+v, not known %+v", args, last.Verdict, last.Why, verdict, why, last.Evidence, last.NotKnown)
		}
		return nil
	})
	d.seen[verdict] = true
	for _, s := range sources {
		if !slices.ContainsFunc(last.Evidence, func(l explain.Line) bool { return l.Source == s && l.Place != "" }) {
			d.t.Errorf("explain %.200q: no evidence from %s: %+v; not known: %+v", args, s, last.Evidence, last.NotKnown)
		}
	}
}

// block holds a feedback row that is not committed, so that the step which writes the row
// waits. release drops it.
func (d *explainTest) block(campaign, client string) (release func()) {
	d.t.Helper()
	tx, err := d.db.Pool.Begin(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	release = func() { _ = tx.Rollback(context.WithoutCancel(d.t.Context())) }
	d.t.Cleanup(release)
	if _, err := tx.Exec(d.t.Context(), `INSERT INTO subscribers_feedback (restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
  adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, client_id, trigger_datetime_created) VALUES ('', $1, '', '', '', 0, 1, 0, $2, 0)`, campaign, client); err != nil {
		d.t.Fatal(err)
	}
	return release
}

// Every verdict of explain on real servers, each made true before it is asked for.
func TestExplainVerdicts(t *testing.T) {
	t.Parallel()
	d, stop := startExplainTest(t, `"limits":{"max_audience":12100}`)
	long := strings.Repeat("long", 300)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'w-' || lpad(n::text, 5, '0'), 'wide' FROM generate_series(1, 12000) n`)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'l-' || n, 'large' FROM generate_series(1, 12101) n`)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('early', 'r'), ('early', 'q'), ('gone', 'r'), ('lost', 'r'), ($1, 'r')`, long)
	d.db.Exec(`DELETE FROM subscribers_restaurants WHERE client_id = 'gone'`)
	cut, release := d.startCutOff()
	d.simpleVerdicts(long)
	d.oddIDs()
	d.documented()
	d.endCutOff(cut, release)
	d.underWay()
	d.notShipped()
	stop()
	d.offline()
	for _, v := range explain.Verdicts {
		if !d.seen[v] {
			t.Errorf("verdict %s was not made true", v)
		}
	}
}

// With join.late_subscribers a client who subscribes while a campaign is live is notified,
// and explain tells why one was not: gone again before its turn came, or too late.
func TestExplainLateSubscribers(t *testing.T) {
	t.Parallel()
	d, stop := startExplainTest(t, `"join":{"late_subscribers":true}`)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('early', 'r')`)
	d.campaign(0, "lunch", "r", -time.Minute, time.Hour)
	d.await(1, `SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = 'lunch'`)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('late', 'r')`)
	s := []explain.Source{explain.SourceFeedback, explain.SourceRecord, explain.SourceState, explain.SourceHistory}
	d.want(explain.Notified, "in topic ", s[:2], "lunch", "late")

	// No step can be written: the next client waits for its turn.
	hold, err := d.db.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	release := func() { _ = hold.Rollback(context.WithoutCancel(t.Context())) }
	t.Cleanup(release)
	if _, err := hold.Exec(t.Context(), `LOCK TABLE subscribers_feedback IN SHARE MODE`); err != nil {
		t.Fatal(err)
	}
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('waits', 'r')`)
	d.want(explain.UnderWay, "gets the campaign as a late subscriber", s[2:], "lunch", "waits")
	release()
	d.want(explain.Notified, "in topic ", s[:2], "lunch", "waits")
	stop()

	// While no daemon runs, one comes and goes, and one comes behind the end.
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('brief', 'r')`)
	d.db.Exec(`DELETE FROM subscribers_restaurants WHERE client_id = 'brief'`)
	stopAgain, ended, _ := d.daemon()
	envtest.Until(t, envtest.Patience, d.ready)
	d.want(explain.Unsubscribed, "behind its turn, and its subscription ended at ", s[2:], "lunch", "brief")
	d.campaign(0, "short", "r", -time.Minute, 2*time.Second)
	d.awaitRead(0)
	envtest.Until(t, envtest.Patience, func() error {
		if d.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE adv_campaign_id = 'short' AND adv_campaign_datetime_end <= extract(epoch FROM now())`) == 0 {
			return errors.New("campaign short has not ended")
		}
		return nil
	})
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('behind', 'r')`)
	d.want(explain.Notified, "in topic ", nil, "lunch", "behind")
	if d.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE adv_campaign_id = 'short' AND state = 'finished'`) == 1 { // on a slow machine it was over when it was received
		d.want(explain.SubscribedLate, "at or after the campaign's end", s[2:], "short", "behind")
	}
	stopAgain()
	<-ended
}

// simpleVerdicts are those of campaigns that lane 0 serves undisturbed.
func (d *explainTest) simpleVerdicts(long string) {
	d.campaign(0, "lunch", "r", -time.Minute, time.Hour)
	d.await(1, `SELECT count(*) FROM dinnerbell.campaign WHERE adv_campaign_id = 'lunch' AND state = 'finished'`)
	d.campaign(0, "lunch", "q", -time.Minute, time.Hour)
	d.campaign(0, "later", "r", time.Hour, 2*time.Hour)
	d.campaign(0, "held", "r", time.Hour, 2*time.Hour)
	d.campaign(0, "large", "large", -time.Minute, time.Hour)
	d.campaign(0, "axed", "r", time.Hour, 2*time.Hour)
	d.campaign(0, "over", "r", -2*time.Hour, -time.Hour)
	d.campaign(0, "stop", "r", time.Hour, 2*time.Hour)
	d.campaign(0, "stop", "r", -2*time.Hour, -time.Hour)
	d.campaign(0, "bad", "r", time.Hour, -time.Hour)
	d.send(0, time.Now(), []byte(`{"adv_campaign_id":17,"restaurant_id":"r"}`))
	d.awaitRead(0)
	d.await(2, `SELECT count(*) FROM dinnerbell.campaign WHERE adv_campaign_id = 'lunch' AND state = 'finished'`)
	d.must("pause", "held")
	d.must("cancel", "axed")
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('late', 'r')`)
	d.db.Exec(`DELETE FROM subscribers_feedback WHERE client_id = 'lost'`)

	s := func(list ...explain.Source) []explain.Source { return list }
	d.want(explain.Notified, "in topic "+strings.TrimSuffix(d.topicIn, ".campaigns")+".out since ", s(explain.SourceFeedback, explain.SourceRecord, explain.SourceCampaign, explain.SourceLane), "lunch", "early")
	d.want(explain.NotifiedEarlier, `already, for restaurant "r"`, s(explain.SourceFeedback, explain.SourceRecord), "lunch", "early", "--restaurant", "q")
	d.want(explain.NotSubscribed, "since ", s(explain.SourceState, explain.SourceHistory, explain.SourceCampaign), "lunch", "never")
	d.want(explain.Unsubscribed, "before the campaign was sent", s(explain.SourceState, explain.SourceHistory), "lunch", "gone")
	d.want(explain.SubscribedLate, "join.late_subscribers is false", s(explain.SourceState, explain.SourceHistory), "lunch", "late")
	d.want(explain.Unexplained, "subscribed while the campaign was sent", s(explain.SourceState), "lunch", "lost")
	d.want(explain.Scheduled, "starts at ", s(explain.SourceCampaign), "later", "early")
	d.want(explain.Paused, "pause by ", s(explain.SourceCampaign), "held", "early")
	d.want(explain.Parked, "its audience of 12101 exceeds limits.max_audience", s(explain.SourceCampaign), "large", "l-7")
	d.must("approve", "large")
	d.want(explain.Notified, "in topic ", s(explain.SourceCampaign), "large", "l-7")
	d.want(explain.Cancelled, "cancel by ", s(explain.SourceCampaign), "axed", "early")
	d.want(explain.Cancelled, "has ended the campaign", s(explain.SourceCampaign), "stop", "early")
	d.want(explain.Expired, "was over when it was received", s(explain.SourceCampaign), "over", "early")
	d.want(explain.Refused, "a corrected message", s(explain.SourceDeadLetter, explain.SourceMessage), "bad", "early")
	d.want(explain.Refused, "adv_campaign_id", s(explain.SourceDeadLetter), "17", "early")
	d.want(explain.ClientRefused, "1200 bytes", s(explain.SourceDeadLetter), "lunch", long)
	d.want(explain.CampaignUnknown, "no message", s(explain.SourceFeedback), "nothing", "early")
	d.want(explain.CampaignUnknown, "other restaurants", s(explain.SourceCampaign), "lunch", "early-", "--restaurant", "p")
	d.want(explain.BeforeDeployment, "before kafka.start", s(explain.SourceMessage), "old", "early")
}

// startCutOff leaves a campaign on lane 1 whose second step waits, until release, and whose
// end comes soon.
func (d *explainTest) startCutOff() (id string, release func()) {
	for life := 3 * time.Second; ; life *= 2 { // on a slow machine it is over when it is received
		id := fmt.Sprintf("cut-%s", life)
		release := d.block(id, "w-02900")
		d.campaign(1, id, "wide", -time.Minute, life)
		d.await(1, `SELECT count(*) FROM dinnerbell.campaign WHERE adv_campaign_id = $1`, id)
		if d.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE adv_campaign_id = $1 AND state = 'pending'`, id) == 1 {
			return id, release
		}
		release()
	}
}

// endCutOff asks before the lane notes the end, and behind it.
func (d *explainTest) endCutOff(id string, release func()) {
	d.want(explain.CutOff, "before the client's turn", []explain.Source{explain.SourceCampaign, explain.SourceState}, id, "w-11990")
	release()
	d.await(1, `SELECT count(*) FROM dinnerbell.campaign WHERE adv_campaign_id = $1 AND state = 'finished'`, id)
	d.want(explain.CutOff, "before the client's turn", nil, id, "w-11990")
}

// oddID is a campaign's id that needs escapes everywhere.
const oddID = "50%:1 'x'\n\u202e\x1b[2J\"ä𝄞"

// oddIDs asks about ids that are not as one expects.
func (d *explainTest) oddIDs() {
	upper := "0641F4E2-35B1-4E4B-8C1C-5A0C9F0DE800"
	clients := []string{"a:b%", "\x1b[2J\n", upper, "007", "-x", "'; --", "%3A", "ä𝄞"}
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT c, 'odd' FROM unnest($1::text[]) c`, clients)
	d.campaign(0, oddID, "odd", -time.Minute, time.Hour)
	for _, client := range clients {
		d.want(explain.Notified, "in topic ", []explain.Source{explain.SourceFeedback, explain.SourceRecord}, "--restaurant", "odd", "--", oddID, client)
	}
	d.want(explain.NotSubscribed, "", []explain.Source{explain.SourceState}, oddID, strings.ToLower(upper))
	if x := d.explain(oddID, strings.ToLower(upper)); !slices.ContainsFunc(x.Evidence, func(l explain.Line) bool { return strings.Contains(l.What, upper+`" is: ids are compared`) }) {
		d.t.Errorf("the other spelling is not named: %+v", x.Evidence)
	}
	d.want(explain.NotSubscribed, "", nil, oddID, "7")
	d.want(explain.ClientRefused, "not valid UTF-8", nil, oddID, "\xff")
	d.want(explain.ClientRefused, "100000 bytes", nil, oddID, strings.Repeat("x", 100_000))
	d.want(explain.CampaignUnknown, "", nil, "\xff", "early")
	d.want(explain.CampaignUnknown, "", nil, strings.Repeat("x", 100_000), "early")
	var stderr syncBuffer
	for _, args := range [][]string{{"", "k"}, {"c", ""}, {"c"}} {
		if code, out := d.run(d.t.Context(), &stderr, append([]string{"explain"}, args...)...); code != exitUsage || out != "" {
			d.t.Errorf("explain %q: exit %d: %s", args, code, out)
		}
	}
	_, out := d.run(d.t.Context(), &stderr, "explain", oddID, clients[1])
	if i := strings.IndexFunc(out, func(r rune) bool { return r < ' ' && r != '\n' || r == '\u202e' }); i >= 0 || !strings.HasPrefix(out, "NOTIFIED: ") {
		d.t.Errorf("the text holds a control character at %d: %q", i, out)
	}
}

// documented looks for each verdict in the documentation.
func (d *explainTest) documented() {
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		d.t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## A client did not get a campaign\n")
	section, _, _ = strings.Cut(section, "\n## ")
	for _, v := range explain.Verdicts {
		if !strings.Contains(section, "\n| `"+string(v)+"` | ") {
			d.t.Errorf("docs/operations.md does not describe the verdict %s", v)
		}
	}
}

// underWay stops a fan-out in its middle, and then replaces it.
func (d *explainTest) underWay() {
	release := d.block("wide", "w-02900")
	d.campaign(0, "wide", "wide", -time.Minute, time.Hour)
	d.await(1, `SELECT count(*) FROM dinnerbell.campaign WHERE adv_campaign_id = 'wide' AND cursor <> ''`)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('w-00000', 'wide')`)
	d.db.Exec(`DELETE FROM subscribers_restaurants WHERE client_id = 'w-11999'`)
	s := []explain.Source{explain.SourceCampaign, explain.SourceLane, explain.SourceState}
	d.want(explain.UnderWay, "ahead of the position", s, "wide", "w-11990")
	d.want(explain.SubscribedLate, "behind its turn, while the campaign was being sent", s, "wide", "w-00000")
	d.want(explain.Unsubscribed, "before its turn", s, "wide", "w-11999")
	d.want(explain.Notified, "in topic ", nil, "wide", "w-00001")
	d.campaign(0, "wide", "wide", time.Hour, 2*time.Hour)
	release()
	d.awaitRead(0)
	d.want(explain.Replaced, "starts at ", s, "wide", "w-11990")
}

// notShipped makes a topic refuse what lane 1 has decided. The daemon tells of it also
// where Kafka does not answer.
func (d *explainTest) notShipped() {
	noKafka := d.changedConfig("no-kafka", d.kafka.Brokers[0], "127.0.0.1:1")
	out := strings.TrimSuffix(d.topicIn, ".campaigns") + ".out"
	d.kafka.Configure(out, "max.message.bytes", "100")
	d.campaign(1, "stuck", "q", -time.Minute, time.Hour)
	d.await(1, `SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = 'stuck'`)
	alone := make(chan error, 1)
	go func() { alone <- d.awaitNotShipped("stuck", "early", "-c", noKafka) }()
	d.want(explain.NotShipped, "lane 1 (", []explain.Source{explain.SourceFeedback, explain.SourceOutbox, explain.SourceLane}, "stuck", "early")
	if err := <-alone; err != nil {
		d.t.Errorf("without Kafka: %v", err)
	}
	d.kafka.Configure(out, "max.message.bytes", "1048588")
}

// awaitNotShipped asks until the answer names the error of lane 1, which the lane meets a
// moment after its decision, and again with each of its sessions. An answer without Kafka
// takes seconds, so awaitNotShipped runs beside the test.
func (d *explainTest) awaitNotShipped(args ...string) error {
	for deadline := time.Now().Add(time.Minute); ; {
		x := d.explain(args...)
		if x.Verdict == explain.NotShipped && strings.Contains(x.Why, "lane 1 (") && len(x.NotKnown) == 1 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("still %+v", x)
		}
	}
}

// offline are the verdicts without a daemon, and without Kafka or Postgres.
func (d *explainTest) offline() {
	d.t.Helper()
	table := []explain.Source{explain.SourceTable}
	d.campaign(0, "waits", "r", -time.Minute, time.Hour)
	noKafka := make(chan [2]explain.Explanation)
	config := d.changedConfig("neither", d.kafka.Brokers[0], "127.0.0.1:1")
	go func() {
		noKafka <- [2]explain.Explanation{d.explain("lunch", "early", "-c", config), d.explain("nothing", "early", "-c", config)}
	}()
	d.want(explain.NotRead, "no daemon that answers here owns lane 0", append(table, explain.SourceMessage), "waits", "early")
	d.want(explain.Notified, "in topic ", nil, "lunch", "early")
	d.want(explain.NotSubscribed, "sent to every subscriber", table, "lunch", "never")
	d.want(explain.SubscribedLate, "sent to every subscriber", table, "lunch", "late")
	d.want(explain.Unknown, "could not be read", nil, "lunch", "early", "-c", d.changedConfig("no-sink", `"kafka":{`, `"sink":{"url":"postgres://u:`+password+`@127.0.0.1:1/de"},"kafka":{`))
	x := <-noKafka
	if x[0].Verdict != explain.Notified || x[1].Verdict != explain.CampaignUnknown || len(x[0].NotKnown) != 1 || len(x[1].NotKnown) < 2 {
		d.t.Errorf("without Kafka: %+v", x)
	}
}

// changedConfig writes another configuration and returns its name.
func (d *explainTest) changedConfig(name, from, to string) string {
	d.t.Helper()
	text, err := os.ReadFile(d.config)
	if err != nil {
		d.t.Fatal(err)
	}
	path := filepath.Join(d.t.TempDir(), name+".yaml")
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), from, to, 1)), 0o600); err != nil {
		d.t.Fatal(err)
	}
	return path
}

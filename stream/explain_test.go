package stream

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/explain"
	"dinnerbell/stream/operator"
	"dinnerbell/stream/topic"
)

// gather gathers the evidence about a client within limits.
func (w *deployment) gather(campaign, client string, limits operator.SearchLimits) *explain.Evidence {
	w.Helper()
	return operator.GatherEvidence(w.Context(), w.cfg.Config, explain.Question{Campaign: campaign, Client: client}, operator.EvidenceOptions{Limits: limits})
}

// gaps returns what the evidence about a source lacks.
func gaps(e *explain.Evidence, s explain.Source) (out string) {
	for _, g := range e.Gaps {
		if g.Source == s {
			out += g.What + "\n"
		}
	}
	return out
}

// The evidence is searched within bounds, and says which offsets lie beyond them.
func TestEvidenceIsReadWithinBounds(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r": {"a"}})
	w.produce(0, []byte(`{"adv_campaign_id":"bad","restaurant_id":"r"}`), encodeCampaign(w.campaign("good", "r")))
	_, stop := w.start()
	w.expect(map[string][]string{"good": {"a"}})
	stop()
	// The letter, the message and the record lie behind 5,000 others.
	noise := func(name string, n int) {
		t.Helper()
		client := w.kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
		records := make([]*kgo.Record, n)
		for i := range records {
			records[i] = &kgo.Record{Topic: name, Value: []byte(strings.Repeat("x", 100))}
		}
		if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	noise(w.cfg.Kafka.DeadLetters, 5000)
	noise(w.cfg.Kafka.Campaigns, 5000)

	e := w.gather("bad", "a", operator.SearchLimits{})
	if len(e.Letters) != 1 || e.Letters[0].Offset != 0 || len(e.Messages) != 1 || e.Messages[0].Unread || len(e.Gaps) > 0 || explain.Explain(e).Verdict != explain.Refused {
		t.Errorf("within the bounds: %+v", e)
	}
	e = w.gather("bad", "a", operator.SearchLimits{Offsets: 4096})
	if got := gaps(e, explain.SourceDeadLetter); len(e.Letters) > 0 || !strings.Contains(got, fmt.Sprintf("%s/0 holds at offsets 0 to ", w.cfg.Kafka.DeadLetters)) {
		t.Errorf("by offsets: letters %+v, gaps %q", e.Letters, got)
	}
	if got := gaps(e, explain.SourceMessage); len(e.Messages) != 1 || !strings.Contains(got, "holds at offsets ") {
		t.Errorf("by offsets: messages %+v, gaps %q", e.Messages, got)
	}
	e = w.gather("bad", "a", operator.SearchLimits{Bytes: 100_000})
	if got := gaps(e, explain.SourceDeadLetter); len(e.Letters) > 0 || !strings.Contains(got, "holds at offsets 0 to 500") {
		t.Errorf("by bytes: letters %+v, gaps %q", e.Letters, got)
	}
	e = w.gather("good", "a", operator.SearchLimits{})
	if e.Record == nil || e.Feedback == nil || len(e.Gaps) > 0 || explain.Explain(e).Verdict != explain.Notified {
		t.Errorf("the record: %+v", e)
	}
	// The lane's row knows of no shipped step yet, so only Kafka tells whether this one is.
	e = w.gather("good", "a", operator.SearchLimits{Time: 1})
	if x := explain.Explain(e); e.Record != nil || gaps(e, explain.SourceRecord) == "" || x.Verdict != explain.Unknown || x.Notified != nil {
		t.Errorf("by time: %+v", x)
	}
}

// What could not be read names the address and its key, whichever request failed.
func TestGapsNameAddressAndKey(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r": {"a"}})
	kafka := w.cfg.Kafka
	check := func(what string, parts ...string) {
		t.Helper()
		e := w.gather("none", "a", operator.SearchLimits{})
		if len(e.Gaps) == 0 {
			t.Errorf("%s: nothing is missing", what)
		}
		for _, g := range e.Gaps {
			for _, part := range parts {
				if text := g.What + "; " + g.Tell; !strings.Contains(text, part) {
					t.Errorf("%s: %q, want %q", what, text, part)
				}
			}
		}
	}
	w.cfg.Kafka.ClientOptions = func() ([]kgo.Opt, error) { return []kgo.Opt{kgo.SeedBrokers("127.0.0.1:1")}, nil }
	check("no broker", "kafka.brokers (127.0.0.1:1)")
	w.cfg.Kafka = kafka
	w.cfg.Kafka.DeadLetters, w.cfg.Kafka.Campaigns = "no-such-topic", "no-such-topic-either"
	check("no topic", "kafka.brokers ("+strings.Join(w.kafka.Brokers, ", ")+")", "no-such-topic")
	w.cfg.Sink.URL = func() (string, error) { return "postgres://nobody@127.0.0.1:1/de", nil }
	check("no sink", "sink.url", "127.0.0.1:1")
}

// Without the right to read a topic nobody has looked for what it holds: the verdict says
// so with the reason, and the gap names the right and what grants it.
func TestTopicsThatMayNotBeReadAreNotEmpty(t *testing.T) {
	t.Parallel()
	if envtest.RealKafka() {
		t.Skip("it has a broker of its own")
	}
	w, adm := newRestrictedDeployment(t)
	k := w.cfg.Kafka
	allow(t, adm, kadm.NewACLs().Topics(k.Campaigns, k.Notifications, k.DeadLetters, k.Progress), kadm.OpRead, kadm.OpWrite, kadm.OpDescribe)
	allow(t, adm, kadm.NewACLs().Groups(k.Group), kadm.OpRead, kadm.OpDescribe)
	allow(t, adm, kadm.NewACLs().TransactionalIDs(k.Group+"-0"), kadm.OpWrite, kadm.OpDescribe)
	svc, stop := w.start()
	w.awaitReady(svc)
	w.db.Exec(`INSERT INTO subscribers_feedback (restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
  adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, client_id, trigger_datetime_created) VALUES ('r1', 'c', '', '', '', 0, 1, 0, 'a', $1)`, time.Now().Unix())
	stop()
	client, err := k.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, name := range []string{k.Notifications, k.DeadLetters, k.Campaigns} { // nobody asks for the records of an empty topic
		if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: name, Value: []byte("of others")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		campaign, topic string
		source          explain.Source
		why             string
	}{
		{"c", k.Notifications, explain.SourceRecord, "its record could not be looked for: "},
		{"none", k.DeadLetters, explain.SourceDeadLetter, "the dead letters could not be read, so whether the message was refused is not known: "},
		{"none", k.Campaigns, explain.SourceMessage, "the campaigns topic could not be searched: "},
	} {
		for _, operations := range [][]kadm.ACLOperation{{kadm.OpRead}, {kadm.OpRead, kadm.OpWrite, kadm.OpDescribe}} {
			rights := kadm.NewACLs().Topics(tc.topic).Allow("User:bell").AllowHosts().ResourcePatternType(kadm.ACLPatternLiteral).Operations(operations...)
			if _, err := adm.DeleteACLs(t.Context(), rights); err != nil {
				t.Fatal(err)
			}
			x := explain.Explain(w.gather(tc.campaign, "a", operator.SearchLimits{}))
			if !strings.HasSuffix(x.Why, tc.why+"topic "+tc.topic+": User:bell lacks the right Read") {
				t.Errorf("without %v of %s: %s", operations, tc.topic, x.Why)
			}
			at := slices.IndexFunc(x.NotKnown, func(g explain.Gap) bool { return g.Source == tc.source })
			if at < 0 || !strings.Contains(x.NotKnown[at].What, "User:bell lacks the right Read") || !strings.HasPrefix(x.NotKnown[at].Tell, "kafka-acls.sh ") || !strings.HasSuffix(x.NotKnown[at].Tell, "--topic "+tc.topic+"; then dinnerbell explain again") {
				t.Errorf("without %v of %s: not known: %+v", operations, tc.topic, x.NotKnown)
			}
			if slices.ContainsFunc(x.Evidence, func(l explain.Line) bool { return l.Source == tc.source }) {
				t.Errorf("without %v of %s: evidence of it: %+v", operations, tc.topic, x.Evidence)
			}
		}
		allow(t, adm, kadm.NewACLs().Topics(tc.topic), kadm.OpRead, kadm.OpWrite, kadm.OpDescribe)
	}
}

// Without SELECT on one table of the sink the verdict names it, and the gap what grants it.
func TestTablesThatMayNotBeReadAreNotEmpty(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r": {"a"}})
	w.produce(0, encodeCampaign(w.campaign("c", "r")))
	_, stop := w.start()
	w.expect(map[string][]string{"c": {"a"}})
	stop()
	role := w.db.RoleURL()
	u, err := url.Parse(role)
	if err != nil {
		t.Fatal(err)
	}
	w.cfg.Sink.URL = func() (string, error) { return role, nil }
	for _, tc := range []struct {
		table string
		want  explain.Verdict
		why   string
	}{
		{"dinnerbell.lane", explain.Unknown, "permission denied for table lane"},
		{"dinnerbell.campaign", explain.Unknown, "permission denied for table campaign"},
		{"subscribers_feedback", explain.Unknown, "permission denied for table subscribers_feedback"},
		{"dinnerbell.outbox", explain.Notified, "and in topic"}, // by its record
	} {
		w.db.Exec("REVOKE SELECT ON " + tc.table + " FROM " + u.User.Username())
		x := explain.Explain(w.gather("c", "a", operator.SearchLimits{}))
		if x.Verdict != tc.want || !strings.Contains(x.Why, tc.why) || strings.Contains(x.Why, "to mend") || len(x.NotKnown) == 0 {
			t.Errorf("without SELECT on %s: %s: %s; not known: %+v", tc.table, x.Verdict, x.Why, x.NotKnown)
		}
		for _, g := range x.NotKnown {
			if !strings.HasPrefix(g.Tell, "GRANT SELECT ON ") || !strings.HasSuffix(g.Tell, "; then dinnerbell explain again") {
				t.Errorf("without SELECT on %s: not known: %+v", tc.table, g)
			}
		}
		w.db.Exec("GRANT SELECT ON " + tc.table + " TO " + u.User.Username())
	}
}

// The commands that read topics name the brokers too, whichever request failed.
func TestErrorsOfTopicsNameTheBrokers(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r": {"a"}})
	named := "kafka.brokers (" + strings.Join(w.kafka.Brokers, ", ") + ")"
	w.cfg.Kafka.DeadLetters = "no-such-topic"
	err := operator.ReadDeadLetters(t.Context(), w.cfg.Kafka, w.cfg.Logger, operator.LetterFilter{}, func(*operator.DeadLetter) error { return nil })
	if err == nil || !strings.Contains(err.Error(), named) {
		t.Errorf("dead letters: %v, want %q", err, named)
	}
	w.cfg.Kafka.Notifications = "no-such-topic-either"
	if _, err := operator.Audit(t.Context(), w.cfg.Config); err == nil || !strings.Contains(err.Error(), named) {
		t.Errorf("audit: %v, want %q", err, named)
	}
	w.cfg.Kafka.ClientOptions = func() ([]kgo.Opt, error) {
		return []kgo.Opt{kgo.SeedBrokers("127.0.0.1:1"), kgo.RetryTimeout(time.Second)}, nil
	}
	if _, err := topic.Setup(t.Context(), w.cfg.Kafka); err == nil || !strings.Contains(err.Error(), "kafka.brokers (127.0.0.1:1)") {
		t.Errorf("setup: %v", err)
	}
}

// Feedback is the text of somebody else: explain shows the beginning of a long one.
func TestLongFeedbackIsExplained(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r": {"a"}})
	w.produce(0, encodeCampaign(w.campaign("c", "r")))
	_, stop := w.start()
	w.expect(map[string][]string{"c": {"a"}})
	stop()
	w.db.Exec(`UPDATE subscribers_feedback SET feedback = repeat('f', 150 << 20)`)
	e := w.gather("c", "a", operator.SearchLimits{})
	if e.Feedback == nil || e.Feedback.Feedback == nil || !strings.HasPrefix(*e.Feedback.Feedback, "fff") || len(*e.Feedback.Feedback) > 1000 {
		t.Errorf("gaps %+v", e.Gaps)
	}
}

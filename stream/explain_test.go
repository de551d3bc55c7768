package stream

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

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
				if !strings.Contains(g.What, part) {
					t.Errorf("%s: %q, want %q", what, g.What, part)
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

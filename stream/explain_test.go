package stream

import (
	"fmt"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/stream/explain"
	"dinnerbell/stream/operator"
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

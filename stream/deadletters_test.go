package stream

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/stream/operator"
	"dinnerbell/stream/topic"
)

// A message that was refused for the topic's limit is sent again once the
// topic accepts it, to its partition and with its key and headers; a message that is
// no campaign stays.
func TestDeadLettersAreListedAndRetried(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 2, map[string][]string{"r1": {"a", "b"}})
	svc, stop := w.start()
	huge := w.campaign("huge", "r1")
	huge.Content = strings.Repeat("x", 1_048_000) // the campaign fits into a message, its notification does not
	client := w.kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(topic.DefaultMaxMessage))
	headers := []kgo.RecordHeader{{Key: "reason", Value: []byte("its own")}, {Key: "trace", Value: []byte("7")}}
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: w.cfg.Kafka.Campaigns, Partition: 1, Key: []byte("k"), Value: encodeCampaign(huge), Headers: headers}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	w.awaitOffset(1, 1)
	w.produce(0, []byte("no json"))
	w.awaitOffset(0, 1)
	w.produce(0, encodeCampaign(w.campaign("m", "r1")))
	w.produce(1, encodeCampaign(w.campaign("n", "r1")))
	want := map[string][]string{"m": {"a", "b"}, "n": {"a", "b"}}
	w.expect(want)

	var list []*operator.DeadLetter
	if err := operator.ReadDeadLetters(t.Context(), w.cfg.Kafka, slog.New(slog.DiscardHandler), operator.LetterFilter{}, func(d *operator.DeadLetter) error { list = append(list, d); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 || svc.Status().Campaigns.Dead != 2 {
		t.Fatalf("%d dead letters", len(list))
	}
	slices.SortFunc(list, func(a, b *operator.DeadLetter) int { return int(a.From - b.From) })
	if d := list[0]; d.Topic != w.cfg.Kafka.Campaigns || d.From != 0 || d.FromAt != 0 || !strings.Contains(d.Reason, "not JSON") || string(d.Value) != "no json" {
		t.Errorf("%+v", d)
	}
	if d := list[1]; d.From != 1 || string(d.Key) != "k" || len(d.Value) < 1_048_000 || !strings.Contains(d.Reason, "accepts") || len(d.Headers) != 2 {
		t.Errorf("%d, %q, %d bytes, %q, %v", d.From, d.Key, len(d.Value), d.Reason, d.Headers)
	}
	retry := func() (sent []int64, reasons string) {
		t.Helper()
		err := operator.RetryDeadLetters(t.Context(), w.cfg.Kafka, slog.New(slog.DiscardHandler), operator.LetterFilter{}, func(*operator.DeadLetter) bool { return true }, func(r operator.Retried) error {
			if r.SentTo >= 0 {
				sent = append(sent, r.SentTo)
			}
			reasons += r.Reason + "\n"
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return sent, reasons
	}
	if sent, reasons := retry(); len(sent) != 0 || strings.Count(reasons, "refused again") != 2 {
		t.Errorf("sent to %v; %s", sent, reasons)
	}
	stop()
	w.kafka.Configure(w.cfg.Kafka.Notifications, "max.message.bytes", "2097152")
	if sent, reasons := retry(); fmt.Sprint(sent) != "[2]" || strings.Count(reasons, "not JSON") != 1 {
		t.Errorf("sent to %v; %s", sent, reasons)
	}
	again := w.kafka.ReadAll(w.cfg.Kafka.Campaigns)
	last := again[len(again)-1] // of the last partition
	if last.Partition != 1 || string(last.Key) != "k" || len(last.Headers) != 3 || string(last.Headers[0].Value) != "its own" || last.Headers[2].Key != topic.RetryHeader {
		t.Errorf("sent again to partition %d with key %q and headers %v", last.Partition, last.Key, last.Headers)
	}
	w.start()
	want["huge"] = []string{"a", "b"}
	w.expect(want)
}

package stream

import (
	"bytes"
	"crypto/rand"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/envtest"
)

// What was aborted is not read, however full an answer is.
func TestAbortedRecordsAreNotRead(t *testing.T) {
	t.Parallel()
	cluster := envtest.Kafka(t)
	topic := cluster.Topic("full", 1, nil)
	client := cluster.Client(kgo.TransactionalID(envtest.Name("full")), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(kgo.NoCompression()))
	filler := make([]byte, 500_000)
	if _, err := rand.Read(filler); err != nil {
		t.Fatal(err)
	}
	aborted, committed := append([]byte("aborted"), filler...), append([]byte("committed"), filler...)
	const rounds = 3 * fetchBytes / (2 * 500_000)
	for range rounds {
		for _, r := range []struct {
			value []byte
			end   kgo.TransactionEndTry
		}{{aborted, kgo.TryAbort}, {committed, kgo.TryCommit}} {
			if err := client.BeginTransaction(); err != nil {
				t.Fatal(err)
			}
			if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: r.value}).FirstErr(); err != nil {
				t.Fatal(err)
			}
			if err := client.EndTransaction(t.Context(), r.end); err != nil {
				t.Fatal(err)
			}
		}
	}
	adm := kadm.NewClient(client)
	end, err := listOffset(t.Context(), topic, 0, adm.ListEndOffsets)
	if err != nil {
		t.Fatal(err)
	}
	details, err := adm.ListTopics(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	p := partitionReader{client: client, topic: topic, topicID: details[topic].ID}
	got := 0
	err = p.eachReadable(t.Context(), 0, end.Offset, func(r *record) error {
		if got++; !bytes.HasPrefix(r.value, []byte("committed")) {
			t.Errorf("the record at offset %d was aborted", r.offset)
		}
		return nil
	})
	if err != nil || got != rounds {
		t.Errorf("%d records, want %d (%v)", got, rounds, err)
	}
}

// What others write to the progress topic is passed over. Where it has the lane's
// key, compaction may have deleted the lane's own.
func TestForeignProgressRecords(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1, map[string][]string{"r1": clients("0000", 5)})
	write := func(key, value string) {
		client := w.kafka.Client(kgo.DefaultProduceTopic(w.cfg.Kafka.Progress))
		if err := client.ProduceSync(t.Context(), &kgo.Record{Key: []byte(key), Value: []byte(value)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	write("junk", `{"seq":77}`)
	_, stop := w.start()
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
	w.expect(map[string][]string{"c1": w.subs["r1"]})
	stop()
	write("0", "junk")
	write("0", "{}")
	write("another", `{"seq":99}`)
	_, stop = w.start()
	w.produce(0, encodeCampaign(w.campaign("c2", "r1")))
	w.expect(map[string][]string{"c1": w.subs["r1"], "c2": w.subs["r1"]})
	stop()
	w.kafka.Configure(w.cfg.Kafka.Progress, "cleanup.policy", "delete") // Kafka deletes from no compacted topic
	w.deleteRecords(w.cfg.Kafka.Progress, 0)                            // stands for compaction
	w.kafka.Configure(w.cfg.Kafka.Progress, "cleanup.policy", "compact")
	write("0", "junk")
	if halted := w.halted(); !strings.Contains(halted.What, "nobody else may write") || !strings.Contains(halted.Hint, "resolve") {
		t.Errorf("halted with %v", halted)
	}
}

package stream

import (
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// A takeover skips other writers' records in the progress topic. A record with the
// lane's key is a halt where the lane's own are gone: compaction may have deleted them.
func TestForeignProgressRecords(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 5)})
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

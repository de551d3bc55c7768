package stream

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/topic"
)

// kafka.start names only where a new deployment begins: later a lane reads on at its
// next offset, and a new partition is read from its beginning.
func TestStartCountsForANewDeploymentOnly(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func() string{
		"latest": func() string { return "latest" },
		"time":   func() string { return time.Now().Add(time.Hour).UTC().Format(time.RFC3339) }, // later than every record: the end
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newDeployment(t, 1, map[string][]string{"r1": {"a", "b"}})
			w.cfg.Kafka.Start = start()
			w.produce(0, encodeCampaign(w.campaign("before", "r1")))
			_, stop := w.start()
			w.awaitOffset(0, 1) // the lane row is there, and it begins behind the first message
			stop()
			w.produce(0, encodeCampaign(w.campaign("down", "r1"))) // while no daemon runs
			w.grow(w.cfg.Kafka.Campaigns, 2)
			w.produce(1, encodeCampaign(w.campaign("new partition", "r1")))
			if _, err := topic.Setup(t.Context(), w.cfg.Kafka); err != nil { // the progress topic grows with it
				t.Fatal(err)
			}
			w.start()
			w.expect(map[string][]string{"down": w.subs["r1"], "new partition": w.subs["r1"]})
		})
	}
}

// grow gives a topic n partitions.
func (w *deployment) grow(topic string, n int) {
	w.Helper()
	adm := kadm.NewClient(w.kafka.Client())
	resp, err := adm.UpdatePartitions(w.Context(), n, topic)
	if err == nil {
		err = resp.Error()
	}
	if err != nil {
		w.Fatal(err)
	}
	envtest.Until(w, patience, func() error { // a real broker takes a moment
		details, err := adm.ListTopics(w.Context(), topic)
		if have := len(details[topic].Partitions); err == nil && have != n {
			err = fmt.Errorf("%d partitions", have)
		}
		return err
	})
}

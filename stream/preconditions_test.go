package stream

import (
	"errors"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/topic"
)

// A daemon that is started before setup has run waits for it and names it.
func TestStartWaitsForSetup(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 2, map[string][]string{"r1": clients("0000", 5)})
	w.cfg.Kafka.Progress = w.kafka.Topic("short", 1, map[string]string{"cleanup.policy": "compact"})
	w.unmetPatience = time.Nanosecond
	svc, _ := w.start()
	envtest.Until(t, patience, func() error {
		if last := svc.Status().LastError; !strings.Contains(last, "fewer than the 2") || !strings.Contains(last, "dinnerbell setup") {
			return errors.New(last)
		}
		return nil
	})
	if _, err := topic.Setup(t.Context(), w.cfg.Kafka); err != nil {
		t.Fatal(err)
	}
	w.produce(1, encodeCampaign(w.campaign("c", "r1")))
	w.expect(map[string][]string{"c": w.subs["r1"]})
}

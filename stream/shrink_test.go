package stream

import (
	"strings"
	"testing"
	"time"
)

// A scheduled campaign that fitted the notifications topic when it was accepted and
// does not at its start leaves a dead letter with the true reason.
func TestTopicThatShrinksBeforeTheStartLeavesADeadLetter(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 5)})
	_, stop := w.start()
	c := w.campaign("c", "r1")
	c.Content = strings.Repeat("x", 400_000)
	c.Start = time.Now().Unix() + 10 // the daemon accepts it and stops before, on a slow machine too
	w.produce(0, encodeCampaign(c))
	w.awaitOffset(0, 1)
	stop()
	w.kafka.Configure(w.cfg.Kafka.Notifications, "max.message.bytes", "300000")
	w.start()
	w.produce(0, encodeCampaign(w.campaign("small", "r1")))
	w.expect(map[string][]string{"small": w.subs["r1"]})
	for _, d := range w.refused(1) {
		if !strings.Contains(d.Reason, "larger than the 300000 bytes that topic "+w.cfg.Kafka.Notifications+" accepts") || !strings.Contains(string(d.Value), "0000") {
			t.Errorf("%q, %.200q", d.Reason, d.Value)
		}
	}
}

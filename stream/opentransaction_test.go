package stream

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/operator"
)

// A transaction that hangs on the progress topic holds the lane's takeover back. The lane
// and audit name the command that aborts it, and the lane goes on when it has ended.
func TestOpenTransactionOnProgressIsNamed(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
	name := w.cfg.Kafka.Progress
	client := w.kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.TransactionalID(envtest.Name("hung")))
	if err := client.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: name, Key: []byte("foreign")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	const named = "a transaction is open since offset 0"
	remedy := " abort --topic " + name + " --partition 0 --start-offset 0"
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("c0", "r1")))
	envtest.Until(t, patience, func() error {
		lanes := svc.Status().Lanes
		if !slices.ContainsFunc(lanes, func(l LaneStatus) bool {
			return strings.Contains(l.LastError, named) && strings.Contains(l.LastError, remedy)
		}) {
			return fmt.Errorf("%+v", lanes)
		}
		return nil
	})
	if _, err := operator.Audit(t.Context(), w.cfg.Config); err == nil || !strings.Contains(err.Error(), named) || !strings.Contains(err.Error(), remedy) {
		t.Errorf("audit: %v", err)
	}
	if err := client.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
	w.expect(map[string][]string{"c0": {"a"}})
}

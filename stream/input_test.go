package stream

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/topic/fetch"
)

// produceTxn writes messages in one transaction and commits or aborts it.
func (w *deployment) produceTxn(client *kgo.Client, end kgo.TransactionEndTry, values ...[]byte) {
	w.Helper()
	if err := client.BeginTransaction(); err != nil {
		w.Fatal(err)
	}
	for _, v := range values {
		if err := client.ProduceSync(w.Context(), &kgo.Record{Topic: w.cfg.Kafka.Campaigns, Value: v}).FirstErr(); err != nil {
			w.Fatal(err)
		}
	}
	if err := client.EndTransaction(w.Context(), end); err != nil {
		w.Fatal(err)
	}
}

// The lane skips markers and aborted messages: next_offset reaches the log's end, so
// that retention may delete all of it, and the group has no lag. That costs few steps.
func TestMarkersAndAbortedMessagesArePassed(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 20)})
	svc, stop := w.start()
	client := w.kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.TransactionalID(envtest.Name("producer")))
	w.produceTxn(client, kgo.TryCommit, encodeCampaign(w.campaign("c1", "r1")))
	const aborted = 40
	began := time.Now()
	for i := range aborted {
		w.produceTxn(client, kgo.TryAbort, encodeCampaign(w.campaign(fmt.Sprint("x", i), "r1")))
	}
	w.expect(map[string][]string{"c1": w.subs["r1"]})
	adm := kadm.NewClient(w.kafka.Client())
	end, err := fetch.ListOffset(t.Context(), w.cfg.Kafka.Campaigns, 0, adm.ListEndOffsets)
	if err != nil {
		t.Fatal(err)
	}
	w.awaitOffset(0, end.Offset)
	if steps, most := svc.Status().Lanes[0].Decided, int64(4+time.Since(began)/emptyStepInterval); steps > most {
		t.Errorf("%d steps for one campaign and %d aborted ones, want %d at most", steps, aborted, most)
	}
	envtest.Until(t, patience, func() error {
		lags, err := adm.Lag(t.Context(), w.cfg.Kafka.Group)
		if err != nil {
			return err
		}
		group := lags[w.cfg.Kafka.Group]
		lag, ok := group.Lag.Lookup(w.cfg.Kafka.Campaigns, 0)
		if !ok || lag.Lag != 0 {
			return fmt.Errorf("lag %+v (%v)", lag, ok)
		}
		return nil
	})
	stop()
	w.deleteRecords(w.cfg.Kafka.Campaigns, 0)
	w.start()
	w.produceTxn(client, kgo.TryCommit, encodeCampaign(w.campaign("c2", "r1")))
	w.expect(map[string][]string{"c1": w.subs["r1"], "c2": w.subs["r1"]})
}

package stream

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/envtest"
)

// Ended campaigns are deleted page by page, those of every lane; a row that
// somebody has locked is left, and waits for nobody.
func TestEndedCampaignsAreDeleted(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
	w.db.Exec(`INSERT INTO dinnerbell.campaign (adv_campaign_id, restaurant_id, lane, version, msg_lane, msg_offset, msg_time, fingerprint, adv_campaign_content, adv_campaign_owner,
  adv_campaign_owner_contact, adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, state, cursor, contested, accepted_at)
SELECT 'c' || g, 'r' || g % 3, g % 5, 1, 0, g, 0, '', '', '', '', 1, CASE WHEN g % 2 = 0 THEN 100 ELSE 10000000000 END, 1, 'finished', '', false, now() - interval '30 days'
FROM generate_series(1, 40) g`)
	release := w.blockRows(`SELECT 1 FROM dinnerbell.campaign WHERE adv_campaign_id = 'c10' FOR UPDATE`)
	svc := New(w.cfg, nil, nil)
	reader := svc.readers.Open()
	defer reader.Close()
	before := time.Now().Add(-keepEnded)
	deleted, err := svc.cfg.Sink.Tables().DeleteEnded(t.Context(), reader, before, 7, patience)
	if err != nil || deleted != 19 {
		t.Errorf("%d rows deleted, %v; want 19: one is locked", deleted, err)
	}
	release()
	if deleted, err = svc.cfg.Sink.Tables().DeleteEnded(t.Context(), reader, before, 7, patience); err != nil || deleted != 1 {
		t.Errorf("%d rows deleted, %v; want the one that was locked", deleted, err)
	}
	if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE adv_campaign_datetime_end > 100`); n != 20 {
		t.Errorf("%d rows are left that are not over, want 20", n)
	}
}

// A transaction of another producer that hangs on the campaigns topic is shown:
// nothing behind it is read.
func TestHangingTransactionIsShown(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
	w.inputPatience = time.Nanosecond
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("c0", "r1")))
	w.expect(map[string][]string{"c0": {"a"}})
	client := w.kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.TransactionalID(envtest.Name("hung")))
	if err := client.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: w.cfg.Kafka.Campaigns, Value: encodeCampaign(w.campaign("c1", "r1"))}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	w.produce(0, encodeCampaign(w.campaign("c2", "r1")))
	held := func(want bool) {
		t.Helper()
		envtest.Until(t, patience, func() error {
			lanes := svc.Status().Lanes
			if got := slices.ContainsFunc(lanes, func(l LaneStatus) bool { return l.HeldByTransaction != "" }); got != want {
				return fmt.Errorf("%+v", lanes)
			}
			return nil
		})
	}
	held(true)
	if err := w.compare(map[string][]string{"c0": {"a"}}); err != nil {
		t.Error(errors.Join(errors.New("something behind the open transaction was read"), err))
	}
	if err := client.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
	w.expect(map[string][]string{"c0": {"a"}, "c2": {"a"}})
	held(false)
}

package stream

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
)

// produceAt produces with a given timestamp, which orders messages across partitions.
func (w *deployment) produceAt(partition int32, at time.Time, value []byte) {
	w.Helper()
	client := w.kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err := client.ProduceSync(w.Context(), &kgo.Record{Topic: w.cfg.Kafka.Campaigns, Partition: partition, Value: value, Timestamp: at}).FirstErr(); err != nil {
		w.Fatal(err)
	}
}

// awaitOffset waits until a lane has read up to an offset.
func (w *deployment) awaitOffset(partition int, offset int64) {
	w.Helper()
	envtest.Until(w, patience, func() error {
		if n := w.db.Int(fmt.Sprintf(`SELECT coalesce(max(next_offset), 0) FROM dinnerbell.lane WHERE lane = %d`, partition)); n < offset {
			return fmt.Errorf("lane %d at %d", partition, n)
		}
		return nil
	})
}

// checkEnd checks which message of campaign c is accepted.
func (w *deployment) checkEnd(want int64) {
	w.Helper()
	if got := w.db.Int(`SELECT adv_campaign_datetime_end FROM dinnerbell.campaign WHERE adv_campaign_id = 'c'`); got != want {
		w.Errorf("the campaign's end is %d; the newest message says %d", got, want)
	}
}

// A on lane 0, cancelled on lane 1, A again on lane 0: the newest message is A.
func TestBackToEarlierContentOverLanes(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 2, map[string][]string{"r1": clients("0000", 5)})
	w.start()
	a := w.campaign("c", "r1")
	b := a
	b.End = a.Start + 5
	now := time.Now()
	w.produceAt(0, now, encodeCampaign(a))
	w.awaitOffset(0, 1)
	w.produceAt(1, now.Add(10*time.Millisecond), encodeCampaign(b))
	w.awaitOffset(1, 1)
	w.produceAt(0, now.Add(20*time.Millisecond), encodeCampaign(a))
	w.awaitOffset(0, 2)
	w.checkEnd(a.End)
}

// A, A again; then, from a lane that was behind, a cancel that was produced between the two.
func TestRepeatMovesTheTime(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 2, map[string][]string{"r1": clients("0000", 5)})
	w.start()
	a := w.campaign("c", "r1")
	b := a
	b.End = a.Start + 5
	now := time.Now()
	w.produceAt(0, now, encodeCampaign(a))
	w.produceAt(0, now.Add(20*time.Millisecond), encodeCampaign(a))
	w.awaitOffset(0, 2)
	w.produceAt(1, now.Add(10*time.Millisecond), encodeCampaign(b))
	w.awaitOffset(1, 1)
	w.checkEnd(a.End)
}

// One step holds an older message of the campaign and then one that repeats the message
// that another lane has accepted since: the row holds the newest message. A
// repeat that took over the older message's row would give it that one's content.
func TestRepeatOfAnotherLanesMessageBehindAnOlderOne(t *testing.T) {
	older := campaign.Campaign{ID: "c", RestaurantID: "r", Content: "older", Start: 1, End: time.Now().Unix() + 3600}
	newest := older
	newest.Content = "newest"
	at := func(offset int64, c campaign.Campaign, known *campaign.Version) *message {
		return &message{offset: offset, time: offset, campaign: &c, fingerprint: c.Fingerprint(), accepted: known}
	}
	theirs := &campaign.Version{Position: campaign.Position{Lane: 1, Offset: 7}, Time: 7, Fingerprint: newest.Fingerprint(), RowVersion: 9, Owner: 1}
	before := &campaign.Version{Position: campaign.Position{Lane: 1, Offset: 2}, Time: 2, Fingerprint: older.Fingerprint(), RowVersion: 1, Owner: 1}
	for name, first := range map[string]*message{
		"first message": at(3, older, nil), "edit": at(3, older, &campaign.Version{Position: campaign.Position{Lane: 1, Offset: 2}, Time: 2, RowVersion: 1, Owner: 1}), "repeat": at(3, older, before),
	} {
		d, st := newDecider(&lane{svc: &Service{recentLimit: 1, now: time.Now}}, Config{}), newStep(sink.ContractTable())
		d.acceptMessage(st, first)
		d.acceptMessage(st, at(8, newest, theirs))
		r := st.rows[newest.Key()]
		if r.Content != newest.Content || r.fingerprint != newest.Fingerprint() || r.at.Offset != 8 {
			t.Errorf("%s: the row of offset %d says %q", name, r.at.Offset, r.Content)
		}
	}

	// The same where the older one is being served: it leaves the schedule.
	d, st := newDecider(&lane{svc: &Service{recentLimit: 1, now: time.Now}}, Config{}), newStep(sink.ContractTable())
	old := &liveCampaign{Campaign: &older, version: 2}
	d.sched.add(old)
	d.acceptMessage(st, at(8, newest, theirs))
	if r := st.rows[newest.Key()]; !old.done || !r.repeats || r.Content != newest.Content {
		t.Errorf("it is served on: %t; the row says %q", !old.done, r.Content)
	}
}

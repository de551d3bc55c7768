package stream

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
)

// shutter is a barrier that can be shut.
type shutter struct {
	mu     sync.Mutex
	opened chan struct{} // nil while it is open
}

func (s *shutter) shut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened = make(chan struct{})
}

func (s *shutter) open() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.opened)
	s.opened = nil
}

// Barrier implements Barrier.
func (s *shutter) Barrier(ctx context.Context) error {
	s.mu.Lock()
	opened := s.opened
	s.mu.Unlock()
	if opened == nil {
		return nil
	}
	select {
	case <-opened:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// produceAll writes messages to one partition in one batch.
func (w *deployment) produceAll(partition int32, values ...[]byte) {
	w.Helper()
	client := w.kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	records := make([]*kgo.Record, len(values))
	for i, v := range values {
		records[i] = &kgo.Record{Topic: w.cfg.Kafka.Campaigns, Partition: partition, Value: v}
	}
	if err := client.ProduceSync(w.Context(), records...).FirstErr(); err != nil {
		w.Fatal(err)
	}
}

// firstEpoch fails where a lane's session has ended.
func (w *deployment) firstEpoch() {
	w.Helper()
	if n := w.db.Int(`SELECT max(epoch) FROM dinnerbell.lane`); n != 1 {
		w.Errorf("a lane was taken over %d times", n)
	}
}

// A cancel needs neither fresh subscriptions nor room: while the barrier is shut,
// or as many campaigns are live as a lane takes, it is effective with the next
// step, and so are dead letters and expired messages. What needs a join waits as
// a row, over a restart too, and is joined once it can be.
func TestCancelWaitsForNothing(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"barrier", "room"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all, few := clients("0000", 4000), clients("0001", 3)
			w := newDeployment(t, 1, map[string][]string{"r1": all, "r2": few})
			w.cfg.StepClients = 50
			w.slowSteps("0.05")
			barrier := &shutter{}
			w.barrier = barrier
			if name == "room" {
				w.cfg.LiveCampaigns = 2
			}
			svc, stop := w.start()
			c, other := w.campaign("c", "r1"), w.campaign("other", "r1")
			w.produceAll(0, encodeCampaign(c), encodeCampaign(other))
			w.decided(svc, 200)
			if name == "barrier" {
				barrier.shut()
			}
			cancel, expired := c, w.campaign("expired", "r2")
			cancel.Start, cancel.End, expired.End = 100, 200, time.Now().Unix()-1
			waiting := w.campaign("waiting", "r2")
			waiting.Content = "before its edit"
			before := encodeCampaign(waiting)
			waiting.Content = "as edited"
			w.produceAll(0, before, []byte("no json"), encodeCampaign(cancel), encodeCampaign(expired), encodeCampaign(waiting))
			at := w.db.Int(`SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = 'c'`)
			w.awaitOffset(0, 7)
			if n := w.db.Int(`SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = 'c'`); n > at+500 {
				t.Errorf("%d had the campaign when it was cancelled, %d when the cancel was accepted", at, n)
			}
			envtest.Until(t, envtest.Patience, func() error { // the commit is seen in Postgres before the lane has its answer
				if s := svc.Status().Campaigns; s.Dead != 1 || s.Expired != 2 || s.Live < 2 {
					return fmt.Errorf("%+v; want 1 dead, 2 expired, what waits counted as live", s)
				}
				return nil
			})
			if n := w.db.Int(`SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = 'waiting'`); n != 0 {
				t.Errorf("%d have a campaign that is not to be joined yet", n)
			}
			got := w.notified("c")
			w.firstEpoch()
			stop()
			if name == "barrier" {
				barrier.open()
			}
			w.start()
			w.expect(map[string][]string{"c": got, "other": all, "waiting": few})
			for _, n := range w.rows() {
				if n.ID == "waiting" && n.Content != "as edited" {
					t.Errorf("%s has %q", n.client, n.Content)
				}
			}
		})
	}
}

// notified is who has a campaign once nothing more is decided of it.
func (w *deployment) notified(campaign string) (got []string) {
	for _, n := range w.rows() {
		if n.ID == campaign {
			got = append(got, n.client)
		}
	}
	return got
}

// A campaign that came while the barrier was shut meets the subscriptions of the
// moment at which the barrier opens, or later.
func TestPendingCampaignIsJoinedBehindTheBarrier(t *testing.T) {
	t.Parallel()
	few := clients("0000", 20)
	w := newDeployment(t, 1, map[string][]string{"r1": few[:5]})
	barrier := &shutter{}
	w.barrier = barrier
	svc, _ := w.start()
	w.awaitReady(svc)
	barrier.shut()
	want := map[string][]string{}
	var values [][]byte
	for i := range 50 {
		id := fmt.Sprint("c", i)
		want[id] = few
		values = append(values, encodeCampaign(w.campaign(id, "r1")))
	}
	w.produceAll(0, values...)
	w.awaitOffset(0, 50)
	envtest.Until(t, patience, func() error {
		if s := svc.Status(); !s.Lanes[0].WaitingForFreshness || s.Campaigns.Live != 50 {
			return fmt.Errorf("the status does not show that the lane waits with 50 campaigns: %+v", s)
		}
		return nil
	})
	w.subscribe(map[string][]string{"r1": few})
	barrier.open()
	w.expect(want)
	w.firstEpoch()
}

// startTimes lists so many of the waiting campaigns; the others are read
// when these are served.
func TestMoreCampaignsWaitThanAreListed(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	a := newStartTimes(3)
	a.takeReload(now)
	a.takeUnlisted(1000)
	for i := range 5 {
		a.addCommitted(now, startTime{start: int64(10 - i), key: campaign.Key{Campaign: fmt.Sprint(i), Restaurant: "r"}, version: 1})
	}
	a.addCommitted(now, startTime{start: 1001, key: campaign.Key{Campaign: "later", Restaurant: "r"}, version: 1})
	if scheduled, waiting := a.countStarts(); scheduled != 1 || waiting != 3 {
		t.Errorf("%d scheduled and %d waiting, want 1 and 3", scheduled, waiting)
	}
	if _, some := a.takeUnlisted(1000); some {
		t.Error("the others are looked for while some wait")
	}
	if n := len(a.takeDue(1000)); n != 3 {
		t.Errorf("%d are due, want 3", n)
	}
	if _, waiting := a.countStarts(); waiting != 3 {
		t.Errorf("%d wait until they are handed on, want 3", waiting)
	}
	// Campaigns that were due may still be pending.
	if limit, some := a.takeUnlisted(1000); !some || limit != 3+3+1 {
		t.Errorf("of the others %d rows are looked for, want 7", limit)
	}
	if _, some := a.takeUnlisted(1000); some {
		t.Error("the others are looked for twice")
	}
	a.addLoaded(now, []startTime{{start: 10, key: campaign.Key{Campaign: "0", Restaurant: "r"}, version: 1}, {start: 7, key: campaign.Key{Campaign: "3", Restaurant: "r"}, version: 1}})
	if _, waiting := a.countStarts(); waiting != 3+1 {
		t.Errorf("%d wait, want the three that are brought, and one that was not listed", waiting)
	}
}

// "An identical repeat does nothing": the campaign goes on where it is.
func TestRepeatsDoNotHoldACampaignUp(t *testing.T) {
	t.Parallel()
	all := clients("0000", 3000)
	w := newDeployment(t, 1, map[string][]string{"r1": all})
	w.cfg.StepClients = 50
	svc, _ := w.start()
	w.awaitReady(svc)
	c := w.campaign("c", "r1")
	client := w.kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
	repeats := 0
	envtest.Until(t, patience, func() error { // a repeat for each look
		repeats++
		if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: w.cfg.Kafka.Campaigns, Value: encodeCampaign(c)}).FirstErr(); err != nil {
			return err
		}
		if n := svc.Status().Notifications.Decided; n < 3000 {
			return fmt.Errorf("%d of 3,000 are decided after %d repeats", n, repeats)
		}
		return nil
	})
	w.awaitOffset(0, int64(repeats))
	w.expect(map[string][]string{"c": all})
	w.firstEpoch()
	if n := w.db.Int(`SELECT msg_offset FROM dinnerbell.campaign`); n != int64(repeats-1) {
		t.Errorf("the newest message is that of offset %d, want %d", n, repeats-1)
	}
	// 60 steps of clients, and those of repeats that came when nothing was left.
	if n := svc.Status().Lanes[0].Decided; n > int64(70+repeats) {
		t.Errorf("%d steps for 60 turns and %d repeats", n, repeats)
	}
}

// A cancel or an edit that is undone, while the lane's memory has no room for it:
// the last message stands.
func TestUndoWhileTheMemoryForgets(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"cancel", "edit"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newDeployment(t, 1, map[string][]string{"r1": {"a", "b"}, "none": nil})
			w.recentLimit = 1
			svc, _ := w.start()
			w.awaitReady(svc)
			first := w.campaign("c", "r1")
			first.Start = time.Now().Unix() + 6
			w.produceAll(0, encodeCampaign(first), encodeCampaign(w.campaign("o", "none")))
			w.awaitOffset(0, 2)
			second := first
			if second.Content = "wrong price"; kind == "cancel" {
				second.Start, second.End = 100, 200
			}
			w.produceAll(0, encodeCampaign(second), encodeCampaign(w.campaign("new", "none")), encodeCampaign(first))
			w.awaitOffset(0, 5)
			w.expect(map[string][]string{"c": {"a", "b"}})
			for _, n := range w.rows() {
				if n.Content != first.Content {
					t.Errorf("%s has %q", n.client, n.Content)
				}
			}
			w.firstEpoch()
		})
	}
}

// Random messages of a few campaigns on two partitions, a tiny memory, batches of
// any size: the newest message of each campaign stands, whoever was served has
// something that was current, nobody has anything twice, and no session ends.
func TestNewestOfRandomMessagesStands(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	w := newDeployment(t, 2, map[string][]string{"r0": clients("0000", 40), "r1": clients("0001", 40), "none": nil})
	w.recentLimit, w.cfg.StepClients = 2, 30
	svc, _ := w.start()
	w.awaitReady(svc)
	client := w.kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	base := w.campaign("", "")
	newest, sent := map[string]campaign.Campaign{}, [2]int64{}
	at := time.Now().Add(-time.Hour)
	for range 60 {
		var batch []*kgo.Record
		for range 1 + rnd.IntN(8) {
			c := base
			c.ID, c.RestaurantID, c.Content = fmt.Sprint("c", rnd.IntN(4)), fmt.Sprint("r", rnd.IntN(2)), fmt.Sprint("content ", rnd.IntN(3))
			if rnd.IntN(4) == 0 {
				c.Start, c.End = 100, 200
			}
			lane := rnd.IntN(2)
			at = at.Add(time.Millisecond)
			batch = append(batch, &kgo.Record{Topic: w.cfg.Kafka.Campaigns, Partition: int32(lane), Value: encodeCampaign(c), Timestamp: at})
			newest[c.ID+c.RestaurantID], sent[lane] = c, sent[lane]+1
		}
		if err := client.ProduceSync(t.Context(), batch...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	w.awaitOffset(0, sent[0])
	w.awaitOffset(1, sent[1])
	want := map[string]map[string]bool{}
	for _, c := range newest {
		stands := fmt.Sprintf(`SELECT count(*) FROM dinnerbell.campaign WHERE adv_campaign_id = '%s' AND restaurant_id = '%s' AND adv_campaign_content = '%s' AND adv_campaign_datetime_end = %d`, c.ID, c.RestaurantID, c.Content, c.End)
		if w.db.Int(stands) != 1 {
			t.Errorf("the newest message of %s over %s does not stand: %+v", c.ID, c.RestaurantID, c)
		}
		if c.End > base.Start {
			if want[c.ID] == nil {
				want[c.ID] = map[string]bool{}
			}
			for _, client := range w.subs[c.RestaurantID] {
				want[c.ID][client] = true
			}
		}
	}
	envtest.Until(t, patience, func() error {
		if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE state = 'pending'`); n > 0 {
			return fmt.Errorf("%d campaigns are pending", n)
		}
		return sameNotes(w.rows(), w.records())
	})
	got := map[string]bool{}
	for _, n := range w.rows() {
		if pair := n.ID + " " + n.client; got[pair] {
			t.Errorf("%s twice", pair)
		} else {
			got[pair] = true
		}
	}
	for id, audience := range want {
		for client := range audience {
			if !got[id+" "+client] {
				t.Errorf("%s lacks %s", client, id)
			}
		}
	}
	w.firstEpoch()
}

// The same messages on two partitions at once: both lanes insert one campaign, or
// one of them repeats it. No session ends.
func TestSameMessageOnTwoPartitions(t *testing.T) {
	t.Parallel()
	subs, want := map[string][]string{}, map[string][]string{}
	for i := range 10 {
		subs[fmt.Sprint("r", i)] = clients(fmt.Sprintf("%04x", i), 30)
	}
	w := newDeployment(t, 2, subs)
	svc, _ := w.start()
	w.awaitReady(svc)
	client := w.kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for i := range 150 {
		c := w.campaign(fmt.Sprint("c", i), fmt.Sprint("r", i%10))
		want[c.ID] = subs[c.RestaurantID]
		r := kgo.Record{Topic: w.cfg.Kafka.Campaigns, Value: encodeCampaign(c)}
		again := r
		again.Partition = 1
		if err := client.ProduceSync(t.Context(), &r, &again).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	w.expect(want)
	w.awaitOffset(0, 150)
	w.awaitOffset(1, 150)
	w.firstEpoch()
}

// Lanes that hold each other up in opposite orders: the server ends one of the two
// transactions, and that step is done again.
func TestDeadlockRepeatsTheStep(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
	s := w.owner()
	c := w.campaign("c", "r1")
	// Ends a step's transaction as a deadlock does, once.
	w.db.Exec(`CREATE SEQUENCE public.tries; CREATE FUNCTION victim() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
  IF nextval('public.tries') = 1 THEN RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01'; END IF; RETURN NULL; END$$`)
	w.db.Exec(`CREATE TRIGGER victim AFTER INSERT ON subscribers_feedback FOR EACH STATEMENT EXECUTE FUNCTION victim()`)
	if err := commitSteps(t, s, w.stepFor(&c, "a", "b")); err != nil {
		t.Fatal(err)
	}
	if n := w.db.Int(`SELECT count(*) FROM subscribers_feedback`); n != 2 {
		t.Errorf("%d rows, want 2", n)
	}
	// One that is a victim again and again ends the session.
	s.claim.Decided++
	w.db.Exec(`CREATE OR REPLACE FUNCTION victim() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
  RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01'; END$$`)
	d := w.campaign("d", "r1")
	if err := commitSteps(t, s, w.stepFor(&d, "a")); !sink.IsLockConflict(err) {
		t.Errorf("commit ended with %v, want the deadlock", err)
	}
}

// A message that loses against a newer one leaves a line and is counted: here a
// cancel, since the first message's record was stamped by a clock that is ahead.
func TestOlderMessageLeavesALine(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 2, map[string][]string{"r1": clients("0000", 5)})
	lines := &logLines{}
	w.cfg.Logger = slog.New(slog.NewTextHandler(lines, nil))
	svc, _ := w.start()
	c := w.campaign("c", "r1")
	c.Start = time.Now().Unix() + 1000
	w.produceAt(0, time.Now().Add(50*time.Minute), encodeCampaign(c))
	w.awaitOffset(0, 1)
	cancel := c
	cancel.Start, cancel.End = 100, 200
	w.produce(1, encodeCampaign(cancel))
	w.awaitOffset(1, 1)
	w.checkEnd(c.End)
	envtest.Until(t, patience, func() error {
		if n := svc.Status().Older; n != 1 {
			return fmt.Errorf("%d older messages are counted", n)
		}
		return nil
	})
	envtest.Until(t, patience, func() error { // a line is written behind the count
		if found := lines.with("level=INFO", "newer message", "lane=1", "campaign=c", "offset=0", "newer_lane=0 newer_offset=0"); len(found) != 1 {
			return fmt.Errorf("%d lines, want 1", len(found))
		}
		return nil
	})
}

package stream

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/operator"
)

func TestCampaignReachesEverySubscriberOnce(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 2, map[string][]string{"r1": clients("0000", 300), "r2": {"a", "b:c", "клиент", `q"\`}, "r3": nil})
	svc, stop := w.start()
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")), encodeCampaign(w.campaign("c2", "r2")), encodeCampaign(w.campaign("c3", "r3")))
	w.produce(1, encodeCampaign(w.campaign("c4", "r2")))
	want := map[string][]string{"c1": w.subs["r1"], "c2": w.subs["r2"], "c4": w.subs["r2"]}
	w.expect(want)
	w.checkLanes(svc)

	// A restart repeats nothing; messages after it are delivered.
	stop()
	w.start()
	w.produce(1, encodeCampaign(w.campaign("c5", "r1")))
	want["c5"] = w.subs["r1"]
	w.expect(want)
}

func TestNewestMessageWins(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 2, map[string][]string{"r1": clients("0000", 50), "r2": clients("0001", 10)})
	w.start()
	c := w.campaign("c", "r1")
	w.produce(0, encodeCampaign(c), encodeCampaign(c))
	w.expect(map[string][]string{"c": w.subs["r1"]})

	// Repeated and edited after everybody has it, on either partition: nobody twice.
	w.produce(1, encodeCampaign(c))
	c.Content = "edited"
	w.produce(1, encodeCampaign(c))
	w.produce(0, encodeCampaign(c))
	// A marker behind each partition's messages shows that they were read.
	w.produce(0, encodeCampaign(w.campaign("m0", "r2")))
	w.produce(1, encodeCampaign(w.campaign("m1", "r2")))
	w.expect(map[string][]string{"c": w.subs["r1"], "m0": w.subs["r2"], "m1": w.subs["r2"]})
	for _, n := range w.rows() {
		if n.ID == "c" && n.Content == "edited" {
			t.Errorf("client %s has the edit", n.client)
		}
	}
}

// An edit in the middle of a fan-out: those who have the campaign keep it,
// everybody else gets the edit.
func TestEditAppliesToThoseNotNotifiedYet(t *testing.T) {
	t.Parallel()
	all := clients("0000", 10_000)
	w := newDeployment(t, 2, map[string][]string{"r1": all})
	w.cfg.StepClients = 50
	svc, _ := w.start()
	c := w.campaign("c", "r1")
	w.produce(0, encodeCampaign(c))
	envtest.Until(t, patience, func() error {
		if n := svc.Status().Notifications.Decided; n < 500 {
			return fmt.Errorf("%d decided", n)
		}
		return nil
	})
	c.Content = "edited"
	w.produce(1, encodeCampaign(c)) // on the other partition: the lane changes, too
	w.expect(map[string][]string{"c": all})
	edited := 0
	for _, n := range w.rows() {
		if n.Content == "edited" {
			edited++
		}
	}
	if edited == 0 || edited > 9_500 {
		t.Errorf("%d of 10,000 have the edit", edited)
	}
}

func TestOneNotificationPerClientOverRestaurants(t *testing.T) {
	t.Parallel()
	all := clients("0000", 3000)
	w := newDeployment(t, 2, map[string][]string{"r1": all[:2500], "r2": all[500:]})
	w.start()
	w.produce(0, encodeCampaign(w.campaign("c", "r1")), encodeCampaign(w.campaign("c", "r2")))
	w.expect(map[string][]string{"c": all})
	w.produce(1, encodeCampaign(w.campaign("d", "r1")))
	w.produce(0, encodeCampaign(w.campaign("d", "r2")))
	w.expect(map[string][]string{"c": all, "d": all})
}

// Two lanes have two campaigns each, of the same ids over other restaurants, in
// opposite order, in a step each or in one: each holds rows that the other waits for.
func TestLanesThatHoldEachOtherUp(t *testing.T) {
	t.Parallel()
	for name, n := range map[string]int{"a step for each": 3500, "both in one step": 700} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := clients("0000", n)
			w := newDeployment(t, 2, map[string][]string{"low": all[:4*n/7], "high": all[3*n/7:]})
			w.produce(0, encodeCampaign(w.campaign("a", "low")), encodeCampaign(w.campaign("b", "high")))
			w.produce(1, encodeCampaign(w.campaign("b", "low")), encodeCampaign(w.campaign("a", "high")))
			svc, _ := w.start()
			w.expect(map[string][]string{"a": all, "b": all})
			w.checkLanes(svc)
			for _, l := range svc.Status().Lanes {
				if l.Epoch != 1 {
					t.Errorf("lane %d: epoch %d, want 1: its session has ended", l.Partition, l.Epoch)
				}
			}
		})
	}
}

func TestScheduledEditedCancelledExpired(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 20)})
	svc, stop := w.start()
	now := time.Now().Unix()

	expired := w.campaign("expired", "r1")
	expired.Start, expired.End = now-100, now-1
	scheduled := w.campaign("scheduled", "r1")
	scheduled.Start = now + 12
	cancelled := w.campaign("cancelled", "r1")
	cancelled.Start = now + 10 // a slow machine must have read the cancel by then
	cancel := cancelled
	cancel.Start, cancel.End = now-100, now-50
	edited := w.campaign("edited", "r1")
	edited.Start = now + 3600
	edit := edited
	edit.Start, edit.Content = now+11, "as edited"
	far := w.campaign("far", "r1") // still to come when the test is over
	far.Start = now + 1800
	w.produce(0, encodeCampaign(expired), encodeCampaign(far), encodeCampaign(scheduled), encodeCampaign(cancelled), encodeCampaign(cancel), encodeCampaign(edited), encodeCampaign(edit), encodeCampaign(w.campaign("marker", "r1")))
	w.expect(map[string][]string{"marker": w.subs["r1"]})
	// On a slow machine the two that start soon have started by now.
	if s := svc.Status(); s.Campaigns.Scheduled < 1 || s.Campaigns.Scheduled > 3 || s.Campaigns.Expired != 2 {
		t.Errorf("scheduled %d, expired %d; want 1 to 3 and 2", s.Campaigns.Scheduled, s.Campaigns.Expired)
	}

	// Held durably: it fires after a restart too, and not before its start.
	stop()
	w.start()
	w.expect(map[string][]string{"marker": w.subs["r1"], "scheduled": w.subs["r1"], "edited": w.subs["r1"]})
	for _, n := range w.rows() {
		if n.trigger < n.Start || n.ID == "edited" && n.Content != "as edited" {
			t.Errorf("decided %d: %+v", n.trigger, n)
		}
	}
}

// awaitScheduled waits until the status counts want campaigns as scheduled.
func (w *deployment) awaitScheduled(svc *Service, want int64) {
	w.Helper()
	envtest.Until(w, patience, func() error {
		if n := svc.Status().Campaigns.Scheduled; n != want {
			return fmt.Errorf("%d scheduled, want %d", n, want)
		}
		return nil
	})
}

// A campaign that is no longer scheduled is not counted as scheduled.
func TestCancelledBeforeItsStartIsNotScheduled(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 20)})
	svc, _ := w.start()
	now := time.Now().Unix()
	cancelled, moved := w.campaign("cancelled", "r1"), w.campaign("moved", "r1")
	cancelled.Start, moved.Start = now+1800, now+1800
	w.produce(0, encodeCampaign(cancelled), encodeCampaign(moved))
	w.awaitScheduled(svc, 2)
	cancelled.Start, cancelled.End = now-100, now-50
	w.produce(0, encodeCampaign(cancelled))
	w.awaitScheduled(svc, 1)
	moved.Start = now - 10
	w.produce(0, encodeCampaign(moved))
	w.awaitScheduled(svc, 0)
	w.expect(map[string][]string{"moved": w.subs["r1"]})
}

// Campaigns that start in hours are counted as scheduled, also after a restart, an edit,
// a cancel by message and a cancel by hand.
func TestDistantStartsAreScheduled(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 20)})
	svc, stop := w.start()
	soon, edited, cancelled, stopped := w.campaign("soon", "r1"), w.campaign("edited", "r1"), w.campaign("cancelled", "r1"), w.campaign("stopped", "r1")
	soon.Start = time.Now().Unix() + 1800
	for i, c := range []*campaign.Campaign{&soon, &edited, &cancelled, &stopped} {
		if c.Start < soon.Start {
			c.Start = soon.Start + int64(i)*7200
		}
		c.End = c.Start + 3600
		w.produce(0, encodeCampaign(*c))
	}
	w.awaitScheduled(svc, 4)
	stop()
	svc, _ = w.start()
	w.awaitScheduled(svc, 4)
	edited.Start += 60
	cancelled.Start, cancelled.End = 100, 200
	w.produce(0, encodeCampaign(edited), encodeCampaign(cancelled))
	w.awaitScheduled(svc, 3)
	w.operate(operator.Cancel, "stopped", "", 1)
	w.awaitScheduled(svc, 2)
	edited.Start = time.Now().Unix() - 10
	w.produce(0, encodeCampaign(edited))
	w.awaitScheduled(svc, 1)
	w.expect(map[string][]string{"edited": w.subs["r1"]})
}

func TestNothingIsDecidedAtOrAfterTheEnd(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"big": clients("0000", 40_000), "r1": {"a"}})
	w.cfg.StepClients = 50
	w.slowSteps("0.01") // 800 of them: they are cut off
	svc, _ := w.start()
	envtest.Until(t, patience, func() error {
		if s := svc.Status(); !s.Ready() {
			return fmt.Errorf("not ready: %+v", s)
		}
		return nil
	})
	c := w.campaign("c", "big")
	c.End = time.Now().Unix() + 5
	w.produce(0, encodeCampaign(c))
	envtest.Until(t, patience, func() error {
		if s := svc.Status(); time.Now().Unix() <= c.End || s.Campaigns.Live > 0 || s.Notifications.Decided != s.Notifications.Shipped {
			return fmt.Errorf("still at it: %+v", s)
		}
		return nil
	})
	rows := w.rows()
	if len(rows) == 0 || len(rows) == 40_000 {
		t.Fatalf("%d of 40,000 were notified; the test needs a fan-out that its end cuts off", len(rows))
	}
	for _, n := range rows {
		if n.trigger >= c.End {
			t.Fatalf("%s was decided at %d, the campaign ended at %d", n.client, n.trigger, c.End)
		}
	}
	if err := sameNotes(rows, w.records()); err != nil {
		t.Error(err)
	}
}

func TestBadMessagesGoToTheDeadLetters(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
	w.start()
	huge := w.campaign("huge", "r1")
	huge.Content = strings.Repeat("x", 1_048_000) // as a campaign it fits a message, with a client it does not
	bad := [][]byte{[]byte("no json"), nil, encodeCampaign(huge), []byte(`{"a":1}`)}
	w.produce(0, bad...)
	w.produce(0, encodeCampaign(w.campaign("good", "r1")))
	w.expect(map[string][]string{"good": {"a"}})
	dead := w.kafka.ReadAll(w.cfg.Kafka.DeadLetters)
	if len(dead) != len(bad) {
		t.Fatalf("%d dead letters, want %d", len(dead), len(bad))
	}
	for i, r := range dead {
		headers := map[string]string{}
		for _, h := range r.Headers {
			headers[h.Key] = string(h.Value)
		}
		if string(r.Value) != string(bad[i]) || (r.Value == nil) != (bad[i] == nil) {
			t.Errorf("dead letter %d: value of %d bytes, want %d untouched", i, len(r.Value), len(bad[i]))
		}
		if headers["reason"] == "" || headers["topic"] != w.cfg.Kafka.Campaigns || headers["partition"] != "0" || headers["offset"] != fmt.Sprint(i) {
			t.Errorf("dead letter %d: headers %v", i, headers)
		}
	}
}

// Rows that were there before count as notified: so one moves over from
// another job, and so a lost delivered cache costs time only.
func TestClientsKnownToPostgresAreNotNotifiedAgain(t *testing.T) {
	t.Parallel()
	all := clients("0000", 5000)
	w := newDeployment(t, 1, map[string][]string{"r1": all})
	w.db.Exec(`INSERT INTO subscribers_feedback (restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
 adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, client_id, trigger_datetime_created, feedback)
 SELECT 'r1', 'c', '', '', '', 1, 2, 1, c, 1, 'old' FROM unnest($1::text[]) c`, all[:1234])
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("c", "r1")))
	w.expect(map[string][]string{"c": all[1234:]})
	if svc.Status().Conflicts == 0 {
		t.Error("the conflict path was not taken")
	}
}

// Only what Postgres decided reaches Kafka, and all of it: a service is killed
// (its contexts end without a drain) over and over in the middle of fan-outs.
func TestSessionsThatEndAnywhereLoseNothing(t *testing.T) {
	t.Parallel()
	all := clients("0000", 20_000)
	w := newDeployment(t, 1, map[string][]string{"r1": all})
	w.cfg.StepClients, w.cfg.DrainTimeout = 100, time.Nanosecond
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")), encodeCampaign(w.campaign("c2", "r1")))
	for range 8 {
		svc, stop := w.start()
		before := int64(-1)
		envtest.Until(t, patience, func() error {
			s := svc.Status()
			if len(s.Lanes) == 0 || s.Lanes[0].State != "running" {
				return fmt.Errorf("not running: %+v", s)
			}
			if before < 0 {
				before = s.Lanes[0].Decided
			}
			if s.Lanes[0].Decided < before+20 && s.Notifications.Decided < 40_000 {
				return fmt.Errorf("decided %d steps", s.Lanes[0].Decided-before)
			}
			return nil
		})
		stop()
		// The delivered cache is lost with the disk.
		w.store = w.openStore()
	}
	w.start()
	w.expect(map[string][]string{"c1": all, "c2": all})
}

type closedBarrier struct{ open chan struct{} }

func (b closedBarrier) Barrier(ctx context.Context) error {
	select {
	case <-b.open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestNothingIsJoinedBeforeTheBarrier(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
	b := closedBarrier{make(chan struct{})}
	w.barrier = b
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("c", "r1")))
	envtest.Until(t, patience, func() error {
		if s := svc.Status(); len(s.Lanes) == 0 || !s.Lanes[0].WaitingForFreshness {
			return fmt.Errorf("not waiting: %+v", s)
		}
		return nil
	})
	if n := len(w.rows()); n != 0 {
		t.Errorf("%d rows before the barrier", n)
	}
	close(b.open)
	w.expect(map[string][]string{"c": {"a"}})
}

// A daemon that can do nothing must not join: it would take the place of the
// healthy one of the same slot.
func TestDaemonThatCannotReachItsSinksDoesNotJoin(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 30)})
	healthy, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
	want := map[string][]string{"c1": w.subs["r1"]}
	w.expect(want)

	for name, spoil := range map[string]func(*Config){
		"no Postgres": func(c *Config) {
			c.Sink.URL = func() (string, error) { return "postgres://nobody@127.0.0.1:1/none", nil }
		},
		"no setup": func(c *Config) { c.Sink.DaemonSchema = "elsewhere" },
		"no topic": func(c *Config) { c.Kafka.Campaigns += ".of.another" },
	} {
		cfg := w.cfg
		spoil(&cfg)
		broken := New(cfg, w.openStore(), w.barrier)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- broken.Run(ctx) }()
		envtest.Until(t, patience, func() error {
			if s := broken.Status(); s.LastError == "" || s.Assigned {
				return fmt.Errorf("%s: status %+v", name, s)
			}
			return nil
		})
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s := healthy.Status(); !s.Ready() {
		t.Errorf("the healthy one is not ready any more: %+v", s)
	}
	w.produce(0, encodeCampaign(w.campaign("c2", "r1")))
	want["c2"] = w.subs["r1"]
	w.expect(want)
}

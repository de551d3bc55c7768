package stream

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/takeover"
)

// decided waits until so many notifications are decided.
func (w *deployment) decided(svc *Service, n int64) {
	w.Helper()
	envtest.Until(w, patience, func() error {
		if got := svc.Status().Notifications.Decided; got < n {
			return fmt.Errorf("%d decided, not yet %d", got, n)
		}
		return nil
	})
}

// A campaign in the middle of its fan-out is replayed: the fan-out begins anew, no client
// gets it twice, and the lane goes on.
func TestReplayOfALiveCampaign(t *testing.T) {
	t.Parallel()
	all := clients("0000", 10_000)
	w := newDeployment(t, 1, map[string][]string{"r1": all})
	w.cfg.StepClients = 50
	svc, _ := w.start()
	c := w.campaign("c", "r1")
	w.produce(0, encodeCampaign(c), encodeCampaign(c)) // the second is an identical repeat
	w.decided(svc, 1000)
	w.awaitOffset(0, 2)
	got := w.replayAll(svc, ReplayRequest{})
	if got.Messages != 2 || got.Superseded != 1 || got.Valid != 1 || got.Have < 1000 || got.Notified == 0 || got.Have+got.Notified > 10_000 {
		t.Errorf("replay: %+v", got)
	}
	w.expect(map[string][]string{"c": all})
	if epoch := w.db.Int(`SELECT epoch FROM dinnerbell.lane`); epoch != 1 {
		t.Errorf("the lane was taken over %d times", epoch)
	}
}

// A newer message on another partition takes the campaign from the lane that
// replays it: the replay does not wait for a campaign that is no longer its own.
func TestReplayLosesACampaignToAnotherLane(t *testing.T) {
	t.Parallel()
	all := clients("0000", 10_000)
	w := newDeployment(t, 2, map[string][]string{"r1": all[:10]})
	w.cfg.StepClients = 50
	svc, _ := w.start()
	c := w.campaign("c", "r1")
	w.produce(0, encodeCampaign(c))
	w.expect(map[string][]string{"c": all[:10]})
	w.subscribe(map[string][]string{"r1": all})
	ended := make(chan error, 1)
	go func() {
		_, err := svc.Replay(t.Context(), ReplayRequest{}, nil)
		ended <- err
	}()
	w.decided(svc, 1000)
	edit := c
	edit.Content = "edited"
	w.produceAt(1, time.Now(), encodeCampaign(edit))
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("the replay waits for a campaign that another lane has")
	}
	w.expect(map[string][]string{"c": all})
	edited := 0
	for _, n := range w.rows() {
		if n.Content == "edited" {
			edited++
		}
	}
	if edited == 0 {
		t.Error("the replay was over before the edit came")
	}
}

// A campaign was due when a replay began its fan-out anew: the cursor that was loaded
// before must not replace the replay's.
func TestDueCampaignDoesNotEndAReplay(t *testing.T) {
	t.Parallel()
	d := newDecider(&lane{svc: &Service{recentLimit: recentLimit, now: time.Now}}, Config{})
	loaded := func(cursor string) *liveCampaign {
		c := campaign.Campaign{ID: "c", RestaurantID: "r1"}
		return &liveCampaign{Campaign: &c, version: 7, cursor: packID(t, cursor)}
	}
	again := loaded("a")
	d.sched.add(again)
	d.enqueueDue([]*liveCampaign{loaded("b")})
	if d.sched.byKey[again.Key()] != again {
		t.Error("what was due has taken its place")
	}
	again.version = 6
	d.enqueueDue([]*liveCampaign{loaded("b")})
	if d.sched.byKey[again.Key()] == again {
		t.Error("a newer version has not")
	}
}

// A replay does not wait for a lane whose session cannot begin before somebody mends a
// precondition: it ends with what is to be mended.
func TestReplayNamesTheUnmetPrecondition(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 5)})
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("c", "r1")))
	w.expect(map[string][]string{"c": w.subs["r1"]})
	w.kafka.Configure(w.cfg.Kafka.Progress, "cleanup.policy", "delete")
	w.db.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'dinnerbell % lane 0 %'`)
	w.produce(0, encodeCampaign(w.campaign("next", "r1"))) // its step finds the connection closed
	envtest.Until(t, patience, func() error {
		if lanes := svc.Status().Lanes; len(lanes) != 1 || !strings.Contains(lanes[0].LastError, "cleanup.policy") {
			return fmt.Errorf("lanes %+v", lanes)
		}
		return nil
	})
	began := time.Now()
	r, err := svc.Replay(t.Context(), ReplayRequest{}, nil)
	if err != nil || len(r.Lanes) != 1 || !strings.Contains(r.Lanes[0].NotCovered, "--add-config cleanup.policy=compact") {
		t.Errorf("replay: %+v, %v", r, err)
	}
	if took := time.Since(began); took > takeover.UnmetPatience/2 {
		t.Errorf("the replay has waited for %s", took)
	}
	w.kafka.Configure(w.cfg.Kafka.Progress, "cleanup.policy", "compact")
	w.awaitReady(svc)
	w.replayAll(svc, ReplayRequest{})
}

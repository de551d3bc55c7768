package stream

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/operator"
	"dinnerbell/stream/sink"
)

// list lists campaigns.
func (w *deployment) list(q operator.CampaignQuery) *operator.CampaignListing {
	w.Helper()
	l, err := operator.ListCampaigns(w.Context(), w.cfg.Sink, q)
	if err != nil {
		w.Fatal(err)
	}
	return l
}

// phases returns the phases of the listed campaigns, and their ids in the listing's
// order.
func phases(l *operator.CampaignListing) (of map[string]sink.Phase, order []string) {
	of = map[string]sink.Phase{}
	for _, c := range l.Campaigns {
		of[c.Key.Campaign] = c.Phase
		order = append(order, c.Key.Campaign)
	}
	return of, order
}

// The listing shows every phase of a campaign's life, and the service follows its
// fan-outs: audience, position and rate, after a restart in the middle too.
func TestCampaignsAreListedInEveryPhase(t *testing.T) {
	t.Parallel()
	few := clients("0000", 20)
	w := newDeployment(t, 1, map[string][]string{"big": clients("0001", 30_000), "r1": few, "none": nil})
	w.cfg.StepClients = 50
	w.slowSteps("0.02")
	barrier := &shutter{}
	w.barrier = barrier
	svc, stop := w.start()
	envtest.Until(t, patience, func() error {
		if s := svc.Status(); !s.Ready() {
			return fmt.Errorf("not ready: %+v", s)
		}
		return nil
	})
	now := time.Now().Unix()
	cut, expired, scheduled := w.campaign("cut", "big"), w.campaign("expired", "r1"), w.campaign("scheduled", "r1")
	cut.End, expired.End, scheduled.Start = now+4, now-1, now+1800
	later := w.campaign("later", "big")
	later.Start = now + 3000
	for _, c := range []string{"finished", "parked", "rejoin"} {
		w.produce(0, encodeCampaign(w.campaign(c, "r1")))
	}
	w.produce(0, encodeCampaign(w.campaign("nobody", "none")), encodeCampaign(expired), encodeCampaign(later), encodeCampaign(scheduled), encodeCampaign(cut))
	begun := []string{"live", "paused", "stopped", "ended by message"}
	for _, c := range begun {
		w.produce(0, encodeCampaign(w.campaign(c, "big")))
	}
	envtest.Until(t, patience, func() error {
		if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE notified >= 50 AND adv_campaign_id = ANY ($1)`, begun); n < int64(len(begun)) {
			return fmt.Errorf("%d have begun", n)
		}
		return nil
	})
	w.operate(operator.Pause, "paused", "", 1)
	w.operate(operator.Cancel, "stopped", "", 1)
	ended := w.campaign("ended by message", "big")
	ended.Start, ended.End = 1000, 2000
	barrier.shut()
	w.produce(0, encodeCampaign(ended), encodeCampaign(w.campaign("waiting", "r1")))
	w.db.Exec(`UPDATE dinnerbell.campaign SET state = adv_campaign_id, version = version + 1, cursor = '' WHERE adv_campaign_id IN ('parked', 'rejoin')`)
	want := map[string]sink.Phase{
		"finished": sink.PhaseFinished, "nobody": sink.PhaseFinished, "expired": sink.PhaseExpired, "scheduled": sink.PhaseScheduled, "later": sink.PhaseScheduled,
		"cut": sink.PhaseEnded, "live": sink.PhaseLive, "paused": sink.PhasePaused, "stopped": sink.PhaseCancelled, "ended by message": sink.PhaseCancelled,
		"waiting": sink.PhaseWaiting, "parked": sink.PhaseParked, "rejoin": sink.PhaseRejoin,
	}
	envtest.Until(t, patience, func() error {
		if got, _ := phases(w.list(operator.CampaignQuery{})); time.Now().Unix() <= cut.End || !maps.Equal(got, want) {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	if _, order := phases(w.list(operator.CampaignQuery{Groups: []sink.PhaseGroup{sink.GroupScheduled}})); !slices.Equal(order, []string{"scheduled", "later"}) {
		t.Errorf("scheduled: %v", order)
	}
	live := w.list(operator.CampaignQuery{Groups: []sink.PhaseGroup{sink.GroupLive}, Restaurant: "r1", Limit: 2})
	if _, order := phases(live); len(order) != 2 || live.Matching != 3 {
		t.Errorf("two of those of r1: %v, %d match", order, live.Matching)
	}
	if _, order := phases(w.list(operator.CampaignQuery{Groups: []sink.PhaseGroup{sink.GroupDone}})); len(order) != 6 {
		t.Errorf("done: %v", order)
	}

	var before FanOut
	follow := func(what string, least int64) {
		t.Helper()
		envtest.Until(t, patience, func() error {
			list := svc.FanOuts()
			if len(list) != 1 || list[0].Campaign != "live" || list[0].Audience != 30_000 || list[0].Passed < least || list[0].Passed > 30_000 || list[0].Rate <= 0 || list[0].Left() == 0 {
				return fmt.Errorf("%s: %+v", what, list)
			}
			before = list[0]
			return nil
		})
		if before.Passed != before.Notified {
			t.Errorf("%s: %d passed, %d notified", what, before.Passed, before.Notified)
		}
	}
	follow("at first", 50)
	stop()
	barrier.open()
	svc, _ = w.start()
	follow("after a restart", before.Passed)
}

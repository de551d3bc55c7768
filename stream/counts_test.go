package stream

import (
	"fmt"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
)

// storedCounts is what the campaign table counts of one campaign.
type storedCounts struct {
	State             string
	Audience          int64 // -1: not counted
	Notified, Already int64
	Started, Finished bool // the times are set
	CutOff            bool // finished at its end or later
}

func (w *deployment) storedCounts(id, restaurant string) (c storedCounts) {
	w.Helper()
	err := w.db.Pool.QueryRow(w.Context(), `SELECT state, coalesce(audience, -1), notified, already, started_at IS NOT NULL, finished_at IS NOT NULL,
 coalesce(finished_at >= to_timestamp(adv_campaign_datetime_end), false) FROM dinnerbell.campaign WHERE adv_campaign_id = $1 AND restaurant_id = $2`, id, restaurant).
		Scan(&c.State, &c.Audience, &c.Notified, &c.Already, &c.Started, &c.Finished, &c.CutOff)
	if err != nil {
		w.Fatalf("campaign %s of %s: %v", id, restaurant, err)
	}
	return c
}

func (w *deployment) wantCounts(id, restaurant string, want storedCounts) {
	w.Helper()
	if got := w.storedCounts(id, restaurant); got != want {
		w.Errorf("campaign %s of %s: %+v, want %+v", id, restaurant, got, want)
	}
}

// insertForeignRows inserts rows of campaigns as another job does.
func (w *deployment) insertForeignRows(restaurant string, clients []string, campaigns ...string) {
	w.Helper()
	w.db.Exec(`INSERT INTO subscribers_feedback (restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
 adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, client_id, trigger_datetime_created, feedback)
 SELECT $1, id, '', '', '', 1, 2, 1, c, 1, 'old' FROM unnest($2::text[]) c, unnest($3::text[]) id`, restaurant, clients, campaigns)
}

// The campaign table counts the clients whom each campaign notified and left out,
// whichever way its steps went.
func TestCampaignRowsCount(t *testing.T) {
	t.Parallel()
	all := clients("0000", 600)
	w := newDeployment(t, 2, map[string][]string{"r1": all, "small": all[:20], "none": nil, "left": all[:400], "right": all[200:]})
	w.cfg.StepClients = 100
	w.insertForeignRows("r1", all[:130], "known", "partly")
	w.start()
	expired, scheduled := w.campaign("expired", "r1"), w.campaign("scheduled", "r1")
	expired.End = time.Now().Unix() - 1
	scheduled.Start = time.Now().Unix() + 1800
	partly := w.campaign("partly", "small")
	edited := w.campaign("edited", "small")
	edit := edited
	edit.Content, edit.Created = "edited", edited.Created+1
	w.produce(0, encodeCampaign(w.campaign("small", "small")), encodeCampaign(w.campaign("large", "r1")), encodeCampaign(w.campaign("known", "r1")), encodeCampaign(partly),
		encodeCampaign(w.campaign("none", "none")), encodeCampaign(expired), encodeCampaign(scheduled), encodeCampaign(w.campaign("shared", "left")), encodeCampaign(edited))
	w.produce(1, encodeCampaign(w.campaign("shared", "right")))
	w.expect(map[string][]string{"small": all[:20], "large": all, "known": all[130:], "shared": all, "edited": all[:20]})
	w.produce(0, encodeCampaign(edit))
	envtest.Until(t, patience, func() error {
		if c := w.storedCounts("edited", "small"); c.State != "finished" || !c.Finished { // an edit sets the time
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
	w.checkCounts()

	// A campaign that one step delivered: its times are that of its acceptance, its
	// audience the sum of the others.
	w.wantCounts("small", "small", storedCounts{State: "finished", Audience: -1, Notified: 20})
	w.wantCounts("partly", "small", storedCounts{State: "finished", Audience: -1, Already: 20})
	w.wantCounts("none", "none", storedCounts{State: "finished", Audience: -1})
	w.wantCounts("large", "r1", storedCounts{State: "finished", Audience: 600, Notified: 600, Started: true, Finished: true})
	w.wantCounts("known", "r1", storedCounts{State: "finished", Audience: 600, Notified: 470, Already: 130, Started: true, Finished: true})
	w.wantCounts("expired", "r1", storedCounts{State: "expired", Audience: -1})
	w.wantCounts("scheduled", "r1", storedCounts{State: "pending", Audience: -1})
	w.wantCounts("edited", "small", storedCounts{State: "finished", Audience: 20, Notified: 20, Started: true, Finished: true})
	left, right := w.storedCounts("shared", "left"), w.storedCounts("shared", "right")
	if left.Notified+right.Notified != 600 || left.Notified+left.Already != 400 || right.Notified+right.Already != 400 {
		t.Errorf("the two restaurants of a campaign: %+v and %+v", left, right)
	}
}

// A fan-out that its end cuts off counts those whom it reached, and is finished at its
// end or later; a cancel keeps the counts of the fan-out that it ends.
func TestCutOffCampaignsCount(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"big": clients("0000", 20_000)})
	w.cfg.StepClients = 20
	w.slowSteps("0.02") // a thousand steps
	first, stop := w.start()
	w.awaitReady(first)
	cut, cancelled := w.campaign("cut", "big"), w.campaign("cancelled", "big")
	cut.End = time.Now().Unix() + 8
	w.produce(0, encodeCampaign(cancelled), encodeCampaign(cut))
	begun := func(id string) {
		envtest.Until(t, patience, func() error {
			if n := w.db.Int(`SELECT coalesce((SELECT notified FROM dinnerbell.campaign WHERE adv_campaign_id = $1), 0)`, id); n < 40 {
				return fmt.Errorf("%d notified", n)
			}
			return nil
		})
	}
	begun("cancelled")
	begun("cut")
	stop() // the next session goes on in the middle
	svc, _ := w.start()
	cancel := cancelled
	cancel.Start, cancel.End = 1000, 2000
	w.produce(0, encodeCampaign(cancel))
	envtest.Until(t, patience, func() error {
		if s := svc.Status(); time.Now().Unix() <= cut.End || s.Campaigns.Live > 0 || s.Campaigns.Expired != 1 || s.Notifications.Decided != s.Notifications.Shipped {
			return fmt.Errorf("still at it: %+v", s)
		}
		return nil
	})
	w.checkCounts()
	if c := w.storedCounts("cut", "big"); c.State != "finished" || !c.CutOff || !c.Started || c.Notified < 40 {
		t.Errorf("cut off: %+v", c)
	}
	if c := w.storedCounts("cancelled", "big"); c.State != "expired" || !c.Started || c.Notified < 40 {
		t.Errorf("cancelled: %+v", c)
	}
}

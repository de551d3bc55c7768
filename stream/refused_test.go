package stream

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/explain"
	"dinnerbell/stream/operator"
	"dinnerbell/stream/sink"
)

// A campaign of which the feedback table takes no row is listed as refused with the
// reason, in the sink, among the recent campaigns and by explain. It has one dead letter,
// however many late subscribers come; so has one that the table refuses since it was
// delivered. A replay delivers both to everybody once the table takes their rows.
func TestRefusedCampaignsAreListedAndNamedOnce(t *testing.T) {
	t.Parallel()
	first := clients("0000", 5)
	w := newLateDeployment(t, 1, map[string][]string{"r1": first})
	svc, stop := w.start()
	before := w.campaign("before", "r1")
	w.produce(0, encodeCampaign(before))
	w.finished("before")
	w.db.Exec(`ALTER TABLE subscribers_feedback ADD CONSTRAINT short CHECK (adv_campaign_id NOT IN ('before', 'never')) NOT VALID`)
	w.produce(0, encodeCampaign(w.campaign("never", "r1")))
	w.finished("never")
	var late []string
	for i := range 6 {
		if i == 3 { // the campaigns are known as refused over a restart
			stop()
			svc, stop = w.start()
		}
		late = append(late, fmt.Sprint("late", i))
		w.insert("r1", late[i])
		w.handled(svc)
	}
	letters := map[string]int{}
	for _, d := range w.deadLetters() {
		if d.Class != campaign.ClassTable || !strings.Contains(d.Reason, "short") {
			t.Errorf("letter %s: %s", d.Class, d.Reason)
		}
		c, refusal := campaign.Parse(d.Value)
		if refusal != nil {
			t.Fatalf("letter %s: %s", d.Value, refusal.Reason)
		}
		letters[c.ID]++
	}
	if len(letters) != 2 || letters["before"] != 1 || letters["never"] != 1 {
		t.Errorf("dead letters %v, want one of each campaign", letters)
	}
	for _, c := range w.list(operator.CampaignQuery{Groups: []sink.PhaseGroup{sink.GroupDone}}).Campaigns {
		if c.Phase != sink.PhaseRefused || !strings.Contains(c.Refusal, "constraint short") {
			t.Errorf("%s is listed as %s: %q", c.Key.Campaign, c.Phase, c.Refusal)
		}
	}
	verdict := explain.Explain(w.gather("never", first[0], operator.SearchLimits{}))
	if verdict.Verdict != explain.Refused || !strings.Contains(verdict.Why, "constraint short") || !strings.Contains(verdict.Next, "dead-letters retry") {
		t.Errorf("explain: %+v", verdict)
	}

	resumed, err := operator.Operate(t.Context(), w.cfg.Sink, operator.Resume, "never", "", "tester@here")
	if err == nil || len(resumed) != 1 || !strings.Contains(resumed[0].Note, "the feedback table refused it at ") || !strings.Contains(resumed[0].Note, "constraint short") {
		t.Errorf("resume: %v, %+v", err, resumed)
	}
	// As a daemon before layout 4 of the tables left the row.
	w.db.Exec(`UPDATE dinnerbell.campaign SET refusal = '' WHERE adv_campaign_id = 'never'`)
	verdict = explain.Explain(w.gather("never", first[0], operator.SearchLimits{}))
	if verdict.Verdict != explain.Refused || !strings.Contains(verdict.Why, "the feedback table refused the campaign at ") || !strings.Contains(verdict.Why, "constraint short") {
		t.Errorf("explain of an old row: %+v", verdict)
	}

	w.db.Exec(`ALTER TABLE subscribers_feedback DROP CONSTRAINT short`)
	w.replayAll(svc, ReplayRequest{})
	all := slices.Concat(late, first)
	w.expect(map[string][]string{"before": all, "never": all})
	for _, c := range w.list(operator.CampaignQuery{}).Campaigns {
		if c.Phase != sink.PhaseFinished || c.Refusal != "" {
			t.Errorf("after the replay %s is listed as %s: %q", c.Key.Campaign, c.Phase, c.Refusal)
		}
	}
	if verdict := explain.Explain(w.gather("never", "nobody", operator.SearchLimits{})); verdict.Verdict == explain.Refused {
		t.Errorf("after the replay explain says %+v", verdict)
	}
	w.checkLanes(svc)
}

// Among the recent campaigns a refused one takes the place of its acceptance.
func TestRefusedCampaignIsRecentOnce(t *testing.T) {
	t.Parallel()
	w := feedbackWorld(t, map[string][]string{"r1": clients("0000", 5)}, feedbackDDL(`, CONSTRAINT short CHECK (adv_campaign_id <> 'never')`))
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("never", "r1")))
	envtest.Until(t, patience, func() error {
		if list := svc.Status().Recent; len(list) != 1 || list[0].What != RecentRefused || list[0].Campaign != "never" || list[0].Restaurant != "r1" || strings.Contains(list[0].Reason, "short") {
			return fmt.Errorf("recent: %+v", list)
		}
		return nil
	})
}

// A campaign that was looked at more than once has no rate: its times are those of the
// last run, its counts those of all.
func TestRateOfACampaignJoinedAgain(t *testing.T) {
	t.Parallel()
	w := newLateDeployment(t, 1, map[string][]string{"r1": clients("0000", 5)})
	svc, stop := w.start()
	once := func(want map[string]bool) {
		t.Helper()
		for _, c := range w.list(operator.CampaignQuery{}).Campaigns {
			if c.Once != want[c.Key.Campaign] {
				t.Errorf("%s was looked at once: %t", c.Key.Campaign, c.Once)
			}
		}
	}
	for _, id := range []string{"plain", "resumed"} {
		w.produce(0, encodeCampaign(w.campaign(id, "r1")))
	}
	w.finished("plain", "resumed")
	once(map[string]bool{"plain": true, "resumed": true})
	w.operate(operator.Pause, "resumed", "", 1)
	w.operate(operator.Resume, "resumed", "", 1)
	w.finished("resumed")
	once(map[string]bool{"plain": true})
	w.handled(svc)
	stop()
	w.db.Exec(`UPDATE dinnerbell.lane SET source_id = 'another'`) // as if the local state were lost
	svc, _ = w.start()
	w.handled(svc)
	w.finished("plain", "resumed")
	once(nil)
}

package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/operator"
	"dinnerbell/stream/sink"
)

// campaigns runs the command and reads its JSON.
func (d *deployment) campaigns(args ...string) (list []campaignItem) {
	d.t.Helper()
	for line := range strings.Lines(d.must(append([]string{"campaigns", "--json"}, args...)...)) {
		var item campaignItem
		if err := json.Unmarshal([]byte(line), &item); err != nil {
			d.t.Fatalf("%s: %v", line, err)
		}
		list = append(list, item)
	}
	return list
}

// The listing beside a daemon in the middle of a fan-out, after it, and without a
// daemon; bounded and harmless for a terminal.
func TestCampaignsCommand(t *testing.T) {
	t.Parallel()
	s := newDeployment(t)
	s.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client ' || n, 'big' FROM generate_series(1, 50000) n`)
	s.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client ' || n, 'diner' FROM generate_series(1, 50) n`)
	s.must("setup")
	s.db.Exec(`CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END'`)
	s.db.Exec(`CREATE TRIGGER slow AFTER UPDATE OF seq ON dinnerbell.lane FOR EACH ROW EXECUTE FUNCTION slow()`)
	stop, ended, _ := s.daemon()
	envtest.Until(t, envtest.Patience, func() error { return s.ready() })
	s.produce("whale", "big")
	envtest.Until(t, envtest.Patience, func() error {
		list := s.campaigns("--live")
		if len(list) != 1 || list[0].Audience == nil || *list[0].Audience != 50_000 || list[0].Position == nil || *list[0].Position <= 0 || *list[0].Position >= 100 || list[0].Rate <= 0 || list[0].SecondsLeft <= 0 {
			return fmt.Errorf("%+v", list)
		}
		return nil
	})
	s.must("cancel", "whale")
	s.produce("lunch \x1b[31m", "diner")
	envtest.Until(t, envtest.Patience, func() error {
		if list := s.campaigns("--done"); len(list) != 2 || list[0].State != sink.PhaseFinished && list[1].State != sink.PhaseFinished {
			return fmt.Errorf("%+v", list)
		}
		return nil
	})
	envtest.Until(t, envtest.Patience, func() error {
		if out := s.must("status"); !strings.Contains(out, "finished, 50 of 50 in ") || strings.Contains(out, "\x1b") || !strings.Contains(out, "2 accepted, 1 finished") {
			return fmt.Errorf("status: %s", out)
		}
		return nil
	})
	stop()
	<-ended

	s.db.Exec(`UPDATE subscribers_feedback SET feedback = 'yum' WHERE restaurant_id = 'diner' AND id % 5 = 0`)
	list := s.campaigns("--restaurant", "diner")
	if len(list) != 1 || list[0].Feedback == nil || *list[0].Feedback != 10 || list[0].Notified != 50 || *list[0].Audience != 50 || *list[0].Position != 100 {
		t.Errorf("lunch: %+v", list)
	}
	if whale := s.campaigns("--restaurant", "big"); whale[0].State != sink.PhaseCancelled || !strings.HasPrefix(whale[0].Operator, "cancel by ") || whale[0].Notified == 0 {
		t.Errorf("the cancelled one: %+v", whale)
	}
	text := s.must("campaigns")
	if strings.Contains(text, "\x1b") || !strings.Contains(text, `lunch \u001b[31m`) || !strings.Contains(text, "cancel by ") {
		t.Errorf("as text:\n%s", text)
	}
	for line := range strings.Lines(text) {
		if len(line) > 81 && !strings.Contains(line, "cancel by ") {
			t.Errorf("%d columns: %s", len(line)-1, line)
		}
	}

	// Without an index that serves, feedback is not looked for.
	s.db.Exec(`DROP INDEX subscribers_feedback_adv_campaign_id_client_id_idx`)
	s.db.Exec(`CREATE UNIQUE INDEX ON subscribers_feedback (client_id, adv_campaign_id)`)
	if list := s.campaigns("--restaurant", "diner"); list[0].Feedback != nil || !strings.Contains(list[0].FeedbackNote, "begins with adv_campaign_id") {
		t.Errorf("without an index: %+v", list)
	}

	s.db.Exec(`INSERT INTO dinnerbell.campaign (adv_campaign_id, restaurant_id, lane, version, msg_lane, msg_offset, msg_time, fingerprint, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
 adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, state, cursor, contested)
SELECT 'c' || n, 'many', 0, 1, 0, n, 0, '\x00', '', '', '', 4000000000 - n, 4000000001, 0, 'pending', '', false FROM generate_series(1, 20000) n`)
	var stderr syncBuffer
	code, out := s.run(t.Context(), &stderr, "campaigns", "--scheduled", "--limit", "7", "--json")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); code != 0 || len(lines) != 7 || !strings.Contains(lines[0], `"c20000"`) || !strings.Contains(stderr.String(), "19,993 more") {
		t.Errorf("exit %d, %s%s", code, out, stderr.String())
	}
	s.db.Exec(`UPDATE dinnerbell.campaign SET notified = 1 WHERE restaurant_id = 'many'`)
	s.db.Exec(`CREATE INDEX ON subscribers_feedback (adv_campaign_id)`)
	all := s.campaigns("--restaurant", "many", "--limit", "0")
	if len(all) != 20_000 || all[0].Feedback == nil || all[19_999].Feedback == nil && !strings.Contains(all[19_999].FeedbackNote, "took all") {
		t.Errorf("%d of 20,000; the first %+v, the last %+v", len(all), all[0], all[len(all)-1])
	}
	if code, _ := s.run(t.Context(), &stderr, "campaigns", "--limit", "-1"); code != exitUsage {
		t.Errorf("a negative limit: exit %d", code)
	}
}

// A daemon's fan-out is told from one of another version of the row, and completes what
// the sink knows.
func TestCampaignItems(t *testing.T) {
	t.Parallel()
	half, minute := time.Unix(1000, 0), time.Unix(1060, 0)
	for name, tc := range map[string]struct {
		sink.ListedCampaign
		of   stream.FanOut
		want string // position, audience, rate, seconds left
	}{
		"followed":            {sink.ListedCampaign{Phase: sink.PhaseLive, Audience: -1, Version: 1, Notified: 10}, stream.FanOut{Campaign: "c", Audience: 1000, Passed: 259, Rate: 100}, "25.9 1000 100 7.4"},
		"not counted yet":     {sink.ListedCampaign{Phase: sink.PhaseLive, Audience: -1, Version: 1}, stream.FanOut{Campaign: "c", Audience: -1, Passed: -1, Rate: 100}, "- - 100 0"},
		"without a daemon":    {sink.ListedCampaign{Phase: sink.PhaseLive, Audience: 200, Version: 1, Notified: 30, Already: 20}, stream.FanOut{}, "25 200 0 0"},
		"edited":              {sink.ListedCampaign{Phase: sink.PhaseEnded, Audience: 200, Version: 2, Notified: 30, Already: 20}, stream.FanOut{}, "25 200 0 0"},
		"finished":            {sink.ListedCampaign{Phase: sink.PhaseFinished, Audience: 600, Version: 1, Notified: 600, Started: &half, Finished: &minute, Once: true}, stream.FanOut{}, "100 600 10 0"},
		"finished again":      {sink.ListedCampaign{Phase: sink.PhaseFinished, Audience: 600, Version: 2, Notified: 600, Started: &half, Finished: &minute}, stream.FanOut{}, "100 600 0 0"},
		"some cannot be sent": {sink.ListedCampaign{Phase: sink.PhaseFinished, Audience: 600, Version: 1, Notified: 590}, stream.FanOut{}, "100 600 0 0"},
		"nobody":              {sink.ListedCampaign{Phase: sink.PhaseFinished, Audience: 0, Version: 1}, stream.FanOut{}, "- 0 0 0"},
		"parked":              {sink.ListedCampaign{Phase: sink.PhaseParked, Audience: 5000, Version: 1}, stream.FanOut{}, "- 5000 0 0"},
		"refused":             {sink.ListedCampaign{Phase: sink.PhaseRefused, Audience: -1, Version: 1, Started: &half, Finished: &minute}, stream.FanOut{}, "- - 0 0"},
		"scheduled":           {sink.ListedCampaign{Phase: sink.PhaseScheduled, Audience: -1, Version: 1}, stream.FanOut{}, "- - 0 0"},
	} {
		tc.Key = campaign.Key{Campaign: "c"}
		item := newCampaignItem(&operator.ListedCampaign{ListedCampaign: tc.ListedCampaign, Feedback: -1}, tc.of, minute)
		position, audience := "-", "-"
		if item.Position != nil {
			position = fmt.Sprint(*item.Position)
		}
		if item.Audience != nil {
			audience = fmt.Sprint(*item.Audience)
		}
		if got := fmt.Sprintf("%s %s %v %v", position, audience, item.Rate, item.SecondsLeft); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

// The list gives the reason for which a campaign is held, and the command that releases it.
func TestCampaignNotes(t *testing.T) {
	t.Parallel()
	now := time.Unix(5000, 0)
	for name, tc := range map[string]struct {
		sink.ListedCampaign
		next, note string
	}{
		"parked":          {sink.ListedCampaign{Phase: sink.PhaseParked, Audience: 1234567, End: 6000}, "dinnerbell approve 'lunch time' --restaurant r", "its audience of 1,234,567 exceeds limits.max_audience: dinnerbell approve 'lunch time' --restaurant r"},
		"not counted":     {sink.ListedCampaign{Phase: sink.PhaseParked, Audience: -1, End: 6000}, "dinnerbell approve 'lunch time' --restaurant r", "its audience exceeds limits.max_audience: dinnerbell approve 'lunch time' --restaurant r"},
		"paused":          {sink.ListedCampaign{Phase: sink.PhasePaused, Audience: -1, End: 6000}, "dinnerbell resume 'lunch time' --restaurant r", "dinnerbell resume 'lunch time' --restaurant r"},
		"refused":         {sink.ListedCampaign{Phase: sink.PhaseRefused, Audience: -1, End: 6000, Refusal: "no", Sent: time.Unix(4000, 0)}, "dinnerbell replay --from 1970-01-01T01:06:40Z", "no; once the table takes its rows: dinnerbell replay --from 1970-01-01T01:06:40Z"},
		"refused, over":   {sink.ListedCampaign{Phase: sink.PhaseRefused, Audience: -1, End: 5000, Refusal: "no"}, "", "no"},
		"goes out itself": {sink.ListedCampaign{Phase: sink.PhaseLive, Audience: -1, End: 6000}, "", ""},
	} {
		tc.Key = campaign.Key{Campaign: "lunch time", Restaurant: "r"}
		item := newCampaignItem(&operator.ListedCampaign{ListedCampaign: tc.ListedCampaign, Feedback: -1}, stream.FanOut{}, now)
		if item.Next != tc.next || item.note() != tc.note {
			t.Errorf("%s: %q, %q", name, item.Next, item.note())
		}
	}
}

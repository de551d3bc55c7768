package stream

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/operator"
)

// shownCounts is what one place shows of a campaign.
type shownCounts struct{ Audience, Notified, LeftOut int64 } // Audience -1: not counted

// finishedCounts finds the counts in the line of a campaign that is over.
var finishedCounts = regexp.MustCompile(`msg="campaign (?:finished|ended[^"]*)" .*?(?:audience=(\d+) )?notified=(\d+) left_out=(\d+)`)

// loggedCounts returns the counts of a campaign's last line; ok is false where it has none.
func loggedCounts(t testing.TB, lines *logLines, id, restaurant string) (c shownCounts, ok bool) {
	t.Helper()
	c.Audience = -1
	for _, line := range lines.with("campaign="+id+" ", "restaurant="+restaurant+" ", "left_out=") {
		m := finishedCounts.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("no counts in %s", line)
		}
		c, ok = shownCounts{Audience: -1}, true
		for i, to := range []*int64{&c.Audience, &c.Notified, &c.LeftOut} {
			if m[i+1] == "" {
				continue
			}
			var err error
			if *to, err = strconv.ParseInt(m[i+1], 10, 64); err != nil {
				t.Fatal(err)
			}
		}
	}
	return c, ok
}

// compareCounts returns an error unless the campaign's row, the listing, explain, the
// service's list of recent campaigns and, unless lines is nil, the log's last line of the
// campaign show the same counts.
func (w *deployment) compareCounts(svc *Service, lines *logLines, id, restaurant string, want shownCounts) error {
	w.Helper()
	row := w.storedCounts(id, restaurant)
	stored := shownCounts{row.Audience, row.Notified, row.Already}
	if stored.Audience < 0 && row.State == "finished" && !row.CutOff { // as docs/campaigns.md has it
		stored.Audience = row.Notified + row.Already
	}
	shown := map[string]shownCounts{"row": stored}
	for _, c := range w.list(operator.CampaignQuery{Restaurant: restaurant}).Campaigns {
		if c.Key.Campaign == id {
			shown["listing"] = shownCounts{c.Audience, c.Notified, c.Already}
		}
	}
	for _, r := range w.gather(id, "nobody", operator.SearchLimits{}).Campaigns {
		if r.Restaurant == restaurant {
			c := shownCounts{want.Audience, r.Notified, want.LeftOut} // it shows no others
			if r.Audience != nil {
				c.Audience = *r.Audience
			}
			shown["explain"] = c
		}
	}
	for _, r := range svc.Status().Recent {
		if _, there := shown["status"]; !there && r.Campaign == id && r.Restaurant == restaurant {
			shown["status"] = shownCounts{r.Audience, r.Notified, r.Already}
		}
	}
	places := []string{"row", "listing", "explain", "status"}
	if lines != nil {
		places = append(places, "log")
		if c, ok := loggedCounts(w, lines, id, restaurant); ok {
			shown["log"] = c
		}
	}
	for _, place := range places {
		if c, ok := shown[place]; !ok || c != want {
			return fmt.Errorf("campaign %s of %s: %s has %+v (%t), want %+v; all: %+v", id, restaurant, place, c, ok, want, shown)
		}
	}
	return nil
}

// countedLife is what a campaign "c" of restaurant "r1" goes through before its counts are
// compared. The restaurant has twenty clients at first.
type countedLife struct {
	name  string
	late  bool // with late subscribers
	noLog bool // the line of the campaign's end is of an earlier moment, or there is none
	run   func(w *lateDeployment) *Service
	want  shownCounts // -2: what the row has
}

var twenty = clients("0000", 20)

var countedLives = []countedLife{
	{name: "one step", run: func(w *lateDeployment) *Service {
		svc, _ := w.start()
		w.produce(0, encodeCampaign(w.campaign("c", "r1")))
		return svc
	}, want: shownCounts{20, 20, 0}},
	{name: "rows of another job", run: func(w *lateDeployment) *Service {
		w.insertForeignRows("r1", twenty[:5], "c")
		svc, _ := w.start()
		w.produce(0, encodeCampaign(w.campaign("c", "r1")))
		return svc
	}, want: shownCounts{20, 15, 5}},
	{name: "replay that finds new clients", run: func(w *lateDeployment) *Service {
		svc, _ := w.start()
		w.produce(0, encodeCampaign(w.campaign("c", "r1")))
		w.awaitFinished("c", "r1", 20)
		w.subscribe(map[string][]string{"r1": clients("0000", 25)})
		w.replayAll(svc, ReplayRequest{})
		return svc
	}, want: shownCounts{25, 25, 0}},
	{name: "replay in many steps after a restart", run: func(w *lateDeployment) *Service {
		_, stop := w.start()
		w.produce(0, encodeCampaign(w.campaign("c", "r1")))
		w.awaitFinished("c", "r1", 20)
		stop()
		w.cfg.StepClients = 4
		svc, _ := w.start()
		w.awaitReady(svc)
		w.subscribe(map[string][]string{"r1": clients("0000", 50)})
		w.replayAll(svc, ReplayRequest{})
		w.replayAll(svc, ReplayRequest{})
		return svc
	}, want: shownCounts{50, 50, 0}},
	{name: "replay in the middle", run: func(w *lateDeployment) *Service {
		w.cfg.StepClients = 4
		w.slowSteps("0.05")
		svc, _ := w.start()
		w.produce(0, encodeCampaign(w.campaign("c", "r1")))
		w.decided(svc, 4)
		w.replayAll(svc, ReplayRequest{})
		return svc
	}, want: shownCounts{20, 20, 0}},
	{name: "restart in the middle", run: func(w *lateDeployment) *Service {
		w.cfg.StepClients = 4
		w.slowSteps("0.05")
		svc, stop := w.start()
		w.produce(0, encodeCampaign(w.campaign("c", "r1")))
		w.decided(svc, 4)
		stop()
		svc, _ = w.start()
		return svc
	}, want: shownCounts{-2, 20, 0}},
	{name: "takeover by another daemon", run: func(w *lateDeployment) *Service {
		w.cfg.StepClients = 4
		w.slowSteps("0.05")
		svc, stop := w.start()
		w.produce(0, encodeCampaign(w.campaign("c", "r1")))
		w.decided(svc, 4)
		stop()
		w.cfg.Kafka.InstanceID, w.store = "second", w.openStore()
		svc, _ = w.start()
		return svc
	}, want: shownCounts{-2, 20, 0}},
	{name: "edit that widens", run: func(w *lateDeployment) *Service {
		svc, _ := w.start()
		c := w.campaign("c", "r1")
		w.produce(0, encodeCampaign(c))
		w.awaitFinished("c", "r1", 20)
		w.subscribe(map[string][]string{"r1": clients("0000", 25)})
		c.Content = "edited"
		w.produce(0, encodeCampaign(c))
		return svc
	}, want: shownCounts{25, 25, 0}},
	{name: "late subscribers after the end", late: true, noLog: true, run: func(w *lateDeployment) *Service {
		svc, _ := w.start()
		w.produce(0, encodeCampaign(w.campaign("c", "r1")))
		w.awaitFinished("c", "r1", 20)
		w.insert("r1", "late 1", "late 2")
		w.handled(svc)
		return svc
	}, want: shownCounts{22, 22, 0}},
	{name: "late subscribers in the middle", late: true, run: func(w *lateDeployment) *Service {
		w.cfg.StepClients = 4
		w.slowSteps("0.2")
		svc, _ := w.start()
		w.produce(0, encodeCampaign(w.campaign("c", "r1")))
		w.decided(svc, 4)
		w.insert("r1", "000", "00000") // before the fan-out's cursor
		w.awaitFinished("c", "r1", 22)
		return svc
	}, want: shownCounts{22, 22, 0}},
	{name: "late subscribers whom the table refuses", late: true, noLog: true, run: func(w *lateDeployment) *Service {
		svc, _ := w.start()
		w.produce(0, encodeCampaign(w.campaign("c", "r1")))
		w.awaitFinished("c", "r1", 20)
		w.db.Exec(`ALTER TABLE subscribers_feedback ADD CONSTRAINT short CHECK (adv_campaign_id <> 'c') NOT VALID`)
		w.insert("r1", "late 1")
		w.handled(svc)
		return svc
	}, want: shownCounts{20, 20, 0}},
	{name: "joined again since the state was lost", late: true, noLog: true, run: func(w *lateDeployment) *Service {
		svc, stop := w.start()
		w.produce(0, encodeCampaign(w.campaign("c", "r1")))
		w.awaitFinished("c", "r1", 20)
		w.handled(svc)
		w.subs["r1"] = clients("0000", 25)
		w.db.Exec(`UPDATE dinnerbell.lane SET source_id = 'another'`) // as if the local state were lost
		stop()
		w.store = w.openStore()
		svc, _ = w.start()
		w.handled(svc)
		w.awaitFinished("c", "r1", 25)
		w.insert("r1", "late")
		c := w.campaign("c", "r1")
		c.Content = "edited"
		w.produce(0, encodeCampaign(c)) // so that this service lists it
		w.awaitFinished("c", "r1", 26)
		return svc
	}, want: shownCounts{26, 26, 0}},
	{name: "edit that cancels", noLog: true, run: func(w *lateDeployment) *Service {
		svc, _ := w.start()
		c := w.campaign("c", "r1")
		w.produce(0, encodeCampaign(c))
		w.awaitFinished("c", "r1", 20)
		c.Start, c.End = 1000, 2000
		w.produce(0, encodeCampaign(c))
		return svc
	}, want: shownCounts{-1, 20, 0}},
	{name: "operator's cancel in the middle", noLog: true, run: func(w *lateDeployment) *Service {
		w.insertForeignRows("r1", twenty[:2], "c")
		w.cfg.StepClients = 4
		w.slowSteps("0.2")
		svc, _ := w.start()
		w.produce(0, encodeCampaign(w.campaign("c", "r1")))
		w.decided(svc, 2)
		w.operate(operator.Cancel, "c", "r1", 1)
		return svc
	}, want: shownCounts{-2, -2, -2}},
	{name: "cut off by its end", run: func(w *lateDeployment) *Service {
		w.cfg.StepClients = 4
		w.slowSteps("1")
		svc, _ := w.start()
		w.awaitReady(svc)
		c := w.campaign("c", "r1")
		c.End = time.Now().Unix() + 4
		w.produce(0, encodeCampaign(c))
		return svc
	}, want: shownCounts{-2, -2, 0}},
	{name: "resumed", run: func(w *lateDeployment) *Service {
		svc, _ := w.start()
		w.produce(0, encodeCampaign(w.campaign("c", "r1")))
		w.awaitFinished("c", "r1", 20)
		w.subscribe(map[string][]string{"r1": clients("0000", 25)})
		w.operate(operator.Pause, "c", "r1", 1)
		w.operate(operator.Resume, "c", "r1", 1)
		return svc
	}, want: shownCounts{25, 25, 0}},
	{name: "a table that refuses some clients", run: func(w *lateDeployment) *Service {
		w.db.Exec(`ALTER TABLE subscribers_feedback ADD CONSTRAINT choosy CHECK (client_id <> $$` + twenty[3] + `$$)`)
		w.cfg.StepClients = 4
		svc, _ := w.start()
		w.produce(0, encodeCampaign(w.campaign("c", "r1")))
		w.awaitFinished("c", "r1", 19)
		w.replayAll(svc, ReplayRequest{})
		return svc
	}, want: shownCounts{20, 19, 0}},
}

// The counts of a campaign are the same in its row, in the listing, in explain, in the
// status and in the log, whatever the campaign has been through.
func TestCountsAgreeEverywhere(t *testing.T) {
	t.Parallel()
	for _, c := range countedLives {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			subs := map[string][]string{"r1": twenty}
			var w *lateDeployment
			if c.late {
				w = newLateDeployment(t, 1, subs)
			} else {
				w = &lateDeployment{deployment: newDeployment(t, 1, subs)}
			}
			lines := w.logLines()
			svc := c.run(w)
			compared := lines
			if c.noLog {
				compared = nil
			}
			envtest.Until(t, patience, func() error {
				if s := svc.Status(); s.Campaigns.Live > 0 || s.Campaigns.Scheduled > 0 || s.Notifications.Decided != s.Notifications.Shipped || len(s.Lanes) == 0 {
					return fmt.Errorf("still at it: %+v", s)
				}
				if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign`); n == 0 {
					return errors.New("it is not accepted")
				}
				want, row := c.want, w.storedCounts("c", "r1")
				if row.State == "pending" || row.State == "rejoin" {
					return fmt.Errorf("the row is %s", row.State)
				}
				for want, have := range map[*int64]int64{&want.Audience: row.Audience, &want.Notified: row.Notified, &want.LeftOut: row.Already} {
					if *want == -2 { // whatever the row has
						*want = have
					}
				}
				if want.Audience < 0 && row.State == "finished" && !row.CutOff {
					want.Audience = want.Notified + want.LeftOut
				}
				if err := w.compareCounts(svc, compared, "c", "r1", want); err != nil {
					return fmt.Errorf("%w; lines: %q", err, lines.with("campaign=c "))
				}
				return nil
			})
		})
	}
}

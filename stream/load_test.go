package stream

import (
	"fmt"
	"slices"
	"testing"

	"dinnerbell/internal/testenv/envtest"
)

// A burst of edits loads who has the campaign once or twice, not for each edit,
// and the next campaign of the lane does not wait for it.
func TestBurstOfEdits(t *testing.T) {
	t.Parallel()
	all := clients("0000", 5000)
	w := newDeployment(t, 1, map[string][]string{"r1": all, "r2": {"x"}})
	svc, _ := w.start()
	c := w.campaign("c", "r1")
	w.produce(0, encodeCampaign(c))
	w.expect(map[string][]string{"c": all})
	var burst [][]byte
	for i := range 100 {
		c.Content = fmt.Sprint("edit ", i)
		burst = append(burst, encodeCampaign(c))
	}
	w.produceAll(0, append(burst, encodeCampaign(w.campaign("other", "r2")))...)
	w.expect(map[string][]string{"c": all, "other": {"x"}})
	envtest.Until(t, patience, func() error {
		if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE state = 'finished'`); n != 2 {
			return fmt.Errorf("%d campaigns are finished", n)
		}
		return nil
	})
	if n := w.db.Int(`SELECT version FROM dinnerbell.campaign WHERE adv_campaign_id = 'c'`); n != 101 {
		t.Errorf("the campaign has version %d, want 101", n)
	}
	if n := svc.Status().Lanes[0].Decided; n > 40 {
		t.Errorf("%d steps", n)
	}
	w.firstEpoch()
}

// Many long campaigns share steps without a row update for every client or two.
func TestManyLongCampaignsTakeTurns(t *testing.T) {
	s, left := newSchedule(), map[string]int{}
	for i := range 1000 {
		id := fmt.Sprint(i)
		left[id] = 2000
		s.add(newLive(id))
	}
	served(t, s, left, 2_000_000) // all of them had a turn
	for id := range left {
		left[id] = 300
	}
	s.long = slices.DeleteFunc(s.long, func(l *liveCampaign) bool { return l.done })
	turns := 0
	for range 100 {
		turns += len(served(t, s, left, 2000))
	}
	if turns > 100*17 {
		t.Errorf("%d turns in 100 steps of 2,000 clients", turns)
	}
}

// More campaigns wait than startTimes lists, with little room: each gets its turn.
func TestCampaignsBeyondTheAgendaAreJoined(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 60)})
	w.cfg.StepClients, w.cfg.LiveCampaigns, w.startLimit = 50, 2, 3
	barrier := &shutter{}
	w.barrier = barrier
	svc, _ := w.start()
	w.awaitReady(svc)
	barrier.shut()
	want := map[string][]string{}
	var values [][]byte
	for i := range 60 {
		id := fmt.Sprint("c", i)
		want[id] = w.subs["r1"]
		values = append(values, encodeCampaign(w.campaign(id, "r1")))
	}
	w.produceAll(0, values...)
	w.awaitOffset(0, 60)
	barrier.open()
	w.expect(want)
	w.firstEpoch()
}

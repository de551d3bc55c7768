package stream

import (
	"strings"
	"testing"
	"time"

	"dinnerbell/stream/operator"
	"dinnerbell/stream/sink"
)

// loseTable drops one of the daemon's tables, checks that setup refuses to make an empty
// one, and follows the way out that setup names.
func (w *deployment) loseTable(name string) {
	w.Helper()
	w.db.Exec(`DROP TABLE dinnerbell.` + name)
	_, err := sink.Setup(w.Context(), w.cfg.Sink)
	if err == nil || !strings.Contains(err.Error(), "back from a backup") {
		w.Fatalf("setup without %s: %v", name, err)
	}
	_, rest, _ := strings.Cut(err.Error(), "create it empty (")
	for _, end := range []string{") and start", "), run"} {
		rest, _, _ = strings.Cut(rest, end)
	}
	w.db.Exec(rest)
	if _, err := sink.Setup(w.Context(), w.cfg.Sink); err != nil {
		w.Fatalf("setup with an empty %s: %v", name, err)
	}
}

// The ways out of a lost table end as docs/operations.md says: campaigns are read again
// and nobody is notified twice; a lane whose shipped steps the tables do not know halts.
func TestLostTablesOfTheDaemon(t *testing.T) {
	t.Parallel()
	few := clients("0000", 20)
	w := newDeployment(t, 1, map[string][]string{"r1": few})
	w.uncounted = true // the counts are lost with the rows
	_, stop := w.start()
	scheduled := w.campaign("scheduled", "r1")
	scheduled.Start = time.Now().Unix() + 1800
	want := map[string][]string{"c1": few}
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")), encodeCampaign(scheduled))
	w.expect(want)
	w.awaitOffset(0, 2)
	stop()

	w.loseTable("campaign")
	svc, stop := w.start()
	w.awaitReady(svc)
	w.replayTwice(svc, ReplayRequest{}, ReplayCounts{Messages: 2, Valid: 1, Scheduled: 1, Have: 20})
	if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE adv_campaign_id = 'scheduled' AND state = 'pending'`); n != 1 {
		t.Errorf("%d scheduled campaigns wait, want 1", n)
	}
	w.expect(want)
	stop()

	w.loseTable("lane")
	if halted := w.halted(); !strings.Contains(halted.Text(), "dinnerbell resolve") {
		t.Errorf("without the lanes' rows: %s", halted.Text())
	}
	w.resolve(operator.AcceptRepeats)
	_, stop = w.start()
	w.expect(want)
	stop()
}

package stream

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/operator"
	"dinnerbell/stream/sink"
)

// operate runs an operator's command that must change n rows.
func (w *deployment) operate(action operator.Action, campaign, restaurant string, n int) []operator.Operated {
	w.Helper()
	out, err := operator.Operate(w.Context(), w.cfg.Sink, action, campaign, restaurant, "tester@here")
	if err != nil {
		w.Fatalf("%s: %v: %+v", action, err, out)
	}
	changed := 0
	for _, o := range out {
		if o.Done {
			changed++
		}
	}
	if changed != n {
		w.Fatalf("%s changed %d rows, want %d: %+v", action, changed, n, out)
	}
	return out
}

// have counts the clients who have a campaign.
func (w *deployment) have(campaign string) int64 {
	w.Helper()
	return w.db.Int(`SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = $1`, campaign)
}

// A cancel in the middle of a large fan-out: no step is committed for it after the
// command, the other campaign goes on, no session ends, and the cancel stands against
// what was sent before, repeats, restarts and replays, on either lane. A message that is
// sent after it revives the campaign.
func TestOperatorCancelsALargeFanOut(t *testing.T) {
	t.Parallel()
	all := clients("0000", 4000)
	w := newDeployment(t, 2, map[string][]string{"r1": all})
	w.cfg.StepClients = 50
	w.slowSteps("0.02")
	lines := &logLines{}
	w.cfg.Logger = slog.New(slog.NewTextHandler(lines, nil))
	svc, stop := w.start()
	before := time.Now()
	c, other := w.campaign("c", "r1"), w.campaign("other", "r1")
	w.produceAt(0, before, encodeCampaign(c))
	w.produce(0, encodeCampaign(other))
	w.decided(svc, 400)
	w.operate(operator.Cancel, "c", "", 1)
	at := w.have("c")
	if at == 0 || at > 3000 {
		t.Fatalf("%d clients had the campaign when it was cancelled; that is not the middle", at)
	}
	envtest.Until(t, patience, func() error {
		if n := len(lines.with("an operator's command", "campaign=c", "state=cancelled", "cancel by tester@here (role ")); n != 1 {
			return fmt.Errorf("%d lines of the log tell of the cancel", n)
		}
		return nil
	})
	w.firstEpoch()
	stop() // what is queued comes in one batch: a repeat, then an edit
	edit := c
	edit.Content = "edited before the cancel"
	w.produceAt(0, before.Add(time.Millisecond), encodeCampaign(c))
	w.produceAt(0, before.Add(2*time.Millisecond), encodeCampaign(edit))
	w.produceAt(1, before.Add(3*time.Millisecond), encodeCampaign(edit))
	svc, stop = w.start()
	w.produce(0, encodeCampaign(c)) // a repeat, sent after the cancel
	w.produce(1, encodeCampaign(c))
	w.awaitOffset(0, 5)
	w.awaitOffset(1, 2)
	envtest.Until(t, patience, func() error {
		if n := w.have("other"); n != 4000 {
			return fmt.Errorf("%d have the other campaign", n)
		}
		return nil
	})
	cancelled := func() {
		t.Helper()
		if n := w.have("c"); n != at {
			t.Errorf("%d have the campaign, %d had it when it was cancelled", n, at)
		}
		if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE adv_campaign_id = 'c' AND state = 'cancelled'`); n != 1 {
			t.Error("the campaign is not cancelled")
		}
	}
	cancelled()
	got := w.replayAll(svc, ReplayRequest{})
	if got.Held != 1 || got.Notified != 0 {
		t.Errorf("replay: %+v; want the newest message held, nobody notified", got)
	}
	stop()
	svc, _ = w.start()
	w.awaitReady(svc)
	if got := w.replayAll(svc, ReplayRequest{}); got.Notified != 0 {
		t.Errorf("replay after a restart: %+v", got)
	}
	cancelled()
	w.expect(map[string][]string{"c": w.notified("c"), "other": all})

	edit.Content = "sent after the cancel"
	w.produce(1, encodeCampaign(edit))
	w.expect(map[string][]string{"c": all, "other": all})
	edited := 0
	for _, n := range w.rows() {
		if n.Content == edit.Content {
			edited++
		}
	}
	if int64(edited) != 4000-at {
		t.Errorf("%d have the later content, want %d", edited, 4000-at)
	}
	if n := len(lines.with("revives a campaign", "campaign=c")); n != 1 {
		t.Errorf("%d lines tell of the revival", n)
	}
}

// A paused campaign stays where it is, over a restart and an edit; a resumed one reaches
// everybody once, subscribers of the meantime too, whether a daemon runs or not.
func TestPauseAndResume(t *testing.T) {
	t.Parallel()
	all := clients("0000", 3000)
	w := newDeployment(t, 1, map[string][]string{"r1": all[:2900], "r2": all[:30]})
	w.cfg.StepClients = 50
	w.slowSteps("0.01")
	svc, stop := w.start()
	c, scheduled := w.campaign("c", "r1"), w.campaign("scheduled", "r2")
	scheduled.Start = time.Now().Unix() + 600
	w.produce(0, encodeCampaign(c), encodeCampaign(scheduled))
	w.decided(svc, 300)
	w.awaitOffset(0, 2)
	w.operate(operator.Pause, "c", "", 1)
	at := w.have("c")
	w.operate(operator.Pause, "scheduled", "r2", 1)
	w.operate(operator.Resume, "scheduled", "", 1) // listed in memory with its first version
	edit := c
	edit.Content = "edited meanwhile"
	w.produce(0, encodeCampaign(edit))
	w.awaitOffset(0, 3)
	stop()
	_, stop = w.start()
	w.produce(0, encodeCampaign(w.campaign("another", "r2")))
	envtest.Until(t, patience, func() error {
		if n := w.have("another"); n != 30 {
			return fmt.Errorf("%d have the other campaign", n)
		}
		return nil
	})
	if n := w.have("c"); n != at {
		t.Errorf("%d have the paused campaign, %d had it when it was paused", n, at)
	}
	w.subscribe(map[string][]string{"r1": all, "r2": all[:30]})
	w.operate(operator.Resume, "c", "", 1)
	envtest.Until(t, patience, func() error { // the running daemon learns of it
		if n := w.have("c"); n <= at {
			return errors.New("the resumed campaign does not go on")
		}
		return nil
	})
	w.operate(operator.Pause, "c", "", 1)
	stop()
	w.operate(operator.Resume, "c", "", 1) // without a daemon
	scheduled.Start = time.Now().Unix() + 1
	w.start()
	w.produce(0, encodeCampaign(scheduled))
	w.expect(map[string][]string{"c": all, "another": all[:30], "scheduled": all[:30]})
	w.operate(operator.Pause, "c", "", 1) // it is finished and valid: late subscribers may come
	w.operate(operator.Resume, "c", "", 1)
	envtest.Until(t, patience, func() error {
		if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE state = 'finished'`); n != 3 {
			return fmt.Errorf("%d campaigns are finished", n)
		}
		return nil
	})
	w.expect(map[string][]string{"c": all, "another": all[:30], "scheduled": all[:30]})
}

// A campaign that waits for its start in the daemon's memory is paused and resumed: the
// list must take its new version.
func TestResumedBeforeItsStart(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 5)})
	svc, _ := w.start()
	w.awaitReady(svc)
	c, stopped := w.campaign("c", "r1"), w.campaign("stopped", "r1")
	c.Start, stopped.Start = time.Now().Unix()+3, time.Now().Unix()+1000
	w.produce(0, encodeCampaign(c), encodeCampaign(stopped))
	w.awaitOffset(0, 2)
	w.operate(operator.Pause, "c", "", 1)
	w.operate(operator.Resume, "c", "", 1)
	w.operate(operator.Pause, "stopped", "", 1)
	w.expect(map[string][]string{"c": w.subs["r1"]})
	w.firstEpoch()
}

// A resume that waited for a lock bears a time before the takeover and commits after it:
// the takeover has not read it, so the daemon must learn of it as of any other.
func TestResumeThatCommitsAfterTheTakeover(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 5)})
	svc, stop := w.start()
	w.awaitReady(svc)
	c := w.campaign("c", "r1")
	c.Start = time.Now().Unix() + 2
	w.produce(0, encodeCampaign(c))
	w.awaitOffset(0, 1)
	w.operate(operator.Pause, "c", "", 1)
	stop()
	envtest.Until(t, patience, func() error {
		if left := time.Until(time.Unix(c.Start, 0)); left > 0 {
			return fmt.Errorf("it starts in %v", left)
		}
		return nil
	})
	before := time.Now().UnixMilli()
	w.start()
	other := w.campaign("other", "r1")
	other.Start = time.Now().Unix() + 1 // its session has read what is pending when this goes out
	w.produce(0, encodeCampaign(other))
	w.expect(map[string][]string{"other": w.subs["r1"]})
	w.db.Exec(`UPDATE dinnerbell.campaign SET version = version + 1, state = 'pending', operator = 'resume by a slow hand', operator_time = $1 WHERE adv_campaign_id = 'c'`, before)
	w.expect(map[string][]string{"c": w.subs["r1"], "other": w.subs["r1"]})
}

// A command leaves one line in the log of the daemon that has the lane, and is listed as
// what it was; a later takeover, of the same daemon or of the next one, repeats neither.
func TestCommandsAreNewsOnce(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 5)})
	lines := &logLines{}
	w.cfg.Logger = slog.New(slog.NewTextHandler(lines, nil))
	svc, stop := w.start()
	w.awaitReady(svc)
	c := w.campaign("c", "r1")
	c.Start = time.Now().Unix() + 1000
	w.produce(0, encodeCampaign(c))
	w.awaitOffset(0, 1)
	told := func(n int) {
		t.Helper()
		envtest.Until(t, patience, func() error {
			if got := len(lines.with("an operator's command")); got != n {
				return fmt.Errorf("%d lines tell of commands, want %d", got, n)
			}
			return nil
		})
	}
	w.operate(operator.Pause, "c", "", 1)
	told(1)
	w.operate(operator.Resume, "c", "", 1)
	told(2)
	if r := svc.Status().Recent; len(r) == 0 || r[0].What != RecentResumed {
		t.Errorf("listed as %+v", r)
	}
	w.db.Exec(`UPDATE dinnerbell.lane SET epoch = epoch + 1`) // as another owner would: this one takes over anew
	w.produce(0, encodeCampaign(w.campaign("d", "r1")))
	w.expect(map[string][]string{"d": w.subs["r1"]})
	w.operate(operator.Approve, "c", "", 1) // the look that finds it would repeat the others
	told(3)
	stop()
	svc, _ = w.start()
	w.awaitReady(svc)
	w.operate(operator.Pause, "c", "", 1)
	told(4)
	if n := len(lines.with("an operator's command", "approve by")); n != 1 {
		t.Errorf("%d lines tell of the approval", n)
	}
	for _, r := range svc.Status().Recent {
		if r.Campaign == "c" && r.What != RecentPaused {
			t.Errorf("the next daemon lists an old command: %+v", r)
		}
	}
}

// One campaign for several restaurants, on two lanes: a command acts on all of them or on
// one, names them, and says why it does nothing.
func TestCommandsNameTheRestaurants(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 2, map[string][]string{"r1": clients("0001", 5), "r2": clients("0002", 5), "r3": clients("0003", 5)})
	svc, _ := w.start()
	w.awaitReady(svc)
	ahead := time.Now().Unix() + 1000
	for lane, restaurant := range []string{"r1", "r2", "r3"} {
		c := w.campaign("c", restaurant)
		c.Start = ahead
		w.produce(int32(lane%2), encodeCampaign(c))
	}
	over := w.campaign("over", "r1")
	over.Start, over.End = 100, 200
	w.produce(0, encodeCampaign(over), encodeCampaign(w.campaign("done", "r1")))
	w.awaitOffset(0, 4)
	w.awaitOffset(1, 1)
	envtest.Until(t, patience, func() error { return sameSet(w.notified("done"), w.subs["r1"]) })

	refused := func(action operator.Action, campaign, restaurant, why string) {
		t.Helper()
		out, err := operator.Operate(t.Context(), w.cfg.Sink, action, campaign, restaurant, "tester@here")
		if text := fmt.Sprint(err, out); err == nil || !strings.Contains(text, why) {
			t.Errorf("%s %s %s: %s; want %q", action, campaign, restaurant, text, why)
		}
	}
	refused(operator.Cancel, "nobody", "", "no message of it was accepted")
	refused(operator.Cancel, "c", "R1", "it was accepted for r1, r2, r3")
	refused(operator.Cancel, "over", "", "it is over since 1970-01-01T00:03:20Z")
	refused(operator.Resume, "c", "", "it is not paused, it waits for its start at")
	refused(operator.Resume, "done", "", "it went out to everybody who subscribed")
	refused(operator.Approve, "done", "", "it is not parked")

	w.operate(operator.Pause, "c", "r2", 1)
	refused(operator.Pause, "c", "r2", "it is paused already (pause by tester@here (role ")
	for _, o := range w.operate(operator.Cancel, "c", "", 3) {
		if want := map[string]string{"r1": "pending", "r2": "paused", "r3": "pending"}[o.Restaurant]; o.Before != want || o.State != "cancelled" || !strings.HasPrefix(o.By, "cancel by tester@here (role ") {
			t.Errorf("%+v; before it was %s", o, want)
		}
	}
	refused(operator.Cancel, "c", "", "it was cancelled at ")
	refused(operator.Resume, "c", "r1", "a message with other content that is sent after that revives it")
	w.operate(operator.Cancel, "done", "", 1)
	w.db.Exec(`UPDATE dinnerbell.layout SET version = 2`)
	refused(operator.Cancel, "c", "", "run `dinnerbell setup`")
}

// A role that may only read is told so; nothing is changed.
func TestCommandsNeedTheDaemonsRights(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, nil)
	w.db.Exec(`INSERT INTO dinnerbell.campaign (adv_campaign_id, restaurant_id, lane, version, msg_lane, msg_offset, msg_time, fingerprint, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
 adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, state, cursor, contested) VALUES ('c', 'r', 0, 1, 0, 0, 1, '', '', '', '', 1, 9999999999, 1, 'pending', '', false)`)
	w.db.Exec(`CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE insufficient_privilege USING MESSAGE = 'permission denied for table campaign'; END$$;
CREATE TRIGGER refuse BEFORE UPDATE ON dinnerbell.campaign FOR EACH ROW EXECUTE FUNCTION public.refuse()`)
	_, err := operator.Operate(t.Context(), w.cfg.Sink, operator.Cancel, "c", "", "x")
	if err == nil || errors.Is(err, sink.ErrStaleRow) || !strings.Contains(err.Error(), "change campaign c: ") {
		t.Errorf("cancel: %v", err)
	}
}

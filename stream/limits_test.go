package stream

import (
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/operator"
)

// lanePlay is a lane in a play of the token bucket on virtual time: it asks again when it
// is told to, and takes as much as it may.
type lanePlay struct {
	id    int32
	next  time.Time
	want  int // clients that it has at each ask
	every time.Duration
	over  int // clients that its steps exceed their room by
	got   int
	waits time.Duration // the longest, from an ask to a turn
	asked time.Time
}

// playPace plays lanes on a bucket and returns what they got together in the last
// seconds, after one second of start.
func playPace(p *pace, lanes []*lanePlay, seconds int) int {
	now := time.Unix(1000, 0)
	end, from := now.Add(time.Duration(seconds+1)*time.Second), now.Add(time.Second)
	for _, l := range lanes {
		l.next = now
	}
	total := 0
	for ; now.Before(end); now = now.Add(time.Millisecond) {
		for _, l := range lanes {
			if l.next.After(now) {
				continue
			}
			if l.asked.IsZero() {
				l.asked = now
			}
			room, again := p.takeTokens(l.id, l.want, now)
			if room == 0 {
				l.next = now.Add(again)
				continue
			}
			used := min(room, l.want) + l.over
			p.returnTokens(room - used)
			l.next = now.Add(max(l.every, time.Millisecond))
			if !now.Before(from) {
				total += used
				l.got += used
				l.waits = max(l.waits, now.Sub(l.asked))
			}
			l.asked = time.Time{}
		}
	}
	return total
}

// The rate holds over seconds, for any number of lanes and steps that exceed their room;
// the lanes share it, and a lane with few clients waits for a turn of each other lane
// at most.
func TestPaceHoldsTheRate(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		rate  int64
		lanes int
		over  int
	}{{10, 1, 0}, {10, 3, 1}, {1000, 1, 0}, {1000, 4, 20}, {5000, 16, 0}, {20_000, 2, 500}, {300_000, 8, 0}} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			t.Parallel()
			p := &pace{}
			p.setRate(c.rate, time.Unix(1000, 0))
			var lanes []*lanePlay
			for i := range c.lanes {
				lanes = append(lanes, &lanePlay{id: int32(i), want: 2000, over: c.over})
			}
			const seconds = 20
			got := float64(playPace(p, lanes, seconds)) / seconds
			if math.Abs(got/float64(c.rate)-1) > 0.03 {
				t.Errorf("%.1f a second, want %d", got, c.rate)
			}
			for _, l := range lanes {
				if share := float64(l.got) / seconds / got * float64(c.lanes); share < 0.8 || share > 1.2 {
					t.Errorf("lane %d has %.2f of its share", l.id, share)
				}
			}
		})
	}
	t.Run("a small lane beside large ones", func(t *testing.T) {
		t.Parallel()
		p := &pace{}
		p.setRate(10_000, time.Unix(1000, 0))
		small := &lanePlay{id: 9, want: 100, every: 100 * time.Millisecond}
		lanes := []*lanePlay{small, {id: 0, want: 2000}, {id: 1, want: 2000}}
		if got := float64(playPace(p, lanes, 20)) / 20; got < 9700 || got > 10_300 {
			t.Errorf("%.1f a second", got)
		}
		if small.waits > 150*time.Millisecond {
			t.Errorf("the small lane waits up to %s", small.waits)
		}
	})
	t.Run("changed", func(t *testing.T) {
		t.Parallel()
		p := &pace{}
		at := time.Unix(1000, 0)
		if room, _ := p.takeTokens(0, 2000, at); room != 2000 {
			t.Errorf("without a limit there is room for %d", room)
		}
		p.setRate(100, at)
		if room, again := p.takeTokens(0, 2000, at); room != 0 || again <= 0 || again > paceAsk {
			t.Errorf("room for %d at once, again in %s", room, again)
		}
		p.returnTokens(-1_000_000) // a step that exceeds everything
		p.setRate(1000, at)
		if room, _ := p.takeTokens(0, 2000, at.Add(paceDebt*time.Second+paceAsk+time.Millisecond)); room == 0 {
			t.Error("a debt holds the lane up for longer than its bound")
		}
		p.setRate(0, at)
		if room, _ := p.takeTokens(0, 2000, at); room != 2000 {
			t.Errorf("without a limit again there is room for %d", room)
		}
	})
}

// limits.notifications_per_second over two lanes on real servers: the rate holds, small
// campaigns keep their turn, acceptance and cancels do not wait, a changed limit is in
// force at once, and the drain does not wait.
func TestNotificationsPerSecond(t *testing.T) {
	t.Parallel()
	all := clients("0000", 30_000)
	w := newDeployment(t, 2, map[string][]string{"r1": all, "few": all[:10]})
	w.cfg.Limits.NotificationsPerSecond = 1000
	svc, stop := w.start()
	w.awaitReady(svc)
	w.produce(0, encodeCampaign(w.campaign("large0", "r1")))
	w.produce(1, encodeCampaign(w.campaign("large1", "r1")))
	w.decided(svc, 1000)
	from, before := time.Now(), svc.Status().Notifications.Decided
	w.produce(0, encodeCampaign(w.campaign("small", "few")))
	envtest.Until(t, patience, func() error {
		if n := w.have("small"); n != 10 {
			return fmt.Errorf("%d have the small campaign", n)
		}
		return nil
	})
	if got := svc.Status().Notifications.Decided; got > 20_000 {
		t.Errorf("the small campaign came behind %d notifications", got)
	}
	var expired [][]byte
	for i := range 300 { // nobody waits for room to accept these
		c := w.campaign(fmt.Sprint("gone", i), "r1")
		c.Start, c.End = 100, 200
		expired = append(expired, encodeCampaign(c))
	}
	cancel := w.campaign("large1", "r1")
	cancel.Start, cancel.End = 100, 200
	w.produceAll(1, append(expired, encodeCampaign(cancel))...)
	w.awaitOffset(1, 302)
	envtest.Until(t, patience, func() error {
		if passed := time.Since(from); passed < 3*time.Second {
			return fmt.Errorf("%s have passed", passed)
		}
		return nil
	})
	got, passed := svc.Status().Notifications.Decided-before, time.Since(from).Seconds()
	if most := 1000*passed*1.05 + 250; float64(got) > most { // what a pause saves up comes on top
		t.Errorf("%d notifications in %.1f s, want %.0f at most", got, passed, most)
	}
	t.Logf("%.0f notifications a second", float64(got)/passed)
	if float64(got) < 1000*passed*0.5 && testing.Verbose() {
		t.Logf("that is far below the limit: the machine is busy")
	}
	at := w.have("large1")
	if at > 20_000 {
		t.Errorf("%d clients had the cancelled campaign: the cancel waited", at)
	}
	svc.SetLimits(Limits{NotificationsPerSecond: 1})
	stopped := time.Now()
	stop()
	if took := time.Since(stopped); took > 8*time.Second {
		t.Errorf("the drain took %s", took)
	}
	w.cfg.Limits.NotificationsPerSecond = 1
	svc, _ = w.start()
	w.awaitReady(svc)
	svc.SetLimits(Limits{})
	w.expect(map[string][]string{"large0": all, "large1": w.notified("large1"), "small": all[:10]})
	if s := svc.Status(); s.Limits.NotificationsPerSecond != 0 {
		t.Errorf("the status shows the limits %+v", s.Limits)
	}
}

// limits.max_audience: a campaign for too many clients is parked, before and after a
// restart, through a repeat and a replay, and again after an edit; the others go out. An
// approval holds for an edit and over a restart.
func TestMaxAudience(t *testing.T) {
	t.Parallel()
	all := clients("0000", 5000)
	w := newDeployment(t, 2, map[string][]string{"large": all, "exact": all[:1000], "over": all[:1001], "none": nil})
	w.cfg.Limits.MaxAudience = 1000
	w.cfg.StepClients = 300
	lines := &logLines{}
	w.cfg.Logger = slog.New(slog.NewTextHandler(lines, nil))
	svc, stop := w.start()
	c := w.campaign("c", "large")
	ahead, edited := w.campaign("ahead", "large"), w.campaign("edited", "exact")
	ahead.Start = time.Now().Unix() + 1000
	w.produce(0, encodeCampaign(c), encodeCampaign(w.campaign("e", "exact")), encodeCampaign(ahead))
	w.produce(1, encodeCampaign(w.campaign("o", "over")), encodeCampaign(edited), encodeCampaign(w.campaign("n", "none")))
	w.expect(map[string][]string{"e": all[:1000], "edited": all[:1000]})
	parked := func(n int64) {
		t.Helper()
		envtest.Until(t, patience, func() error {
			if s := svc.Status().Campaigns; s.Parked != n {
				return fmt.Errorf("%d are parked, want %d", s.Parked, n)
			}
			return nil
		})
	}
	parked(2)
	if s := svc.Status(); s.Parked != 2 {
		t.Errorf("%d were parked", s.Parked)
	}
	if n := len(lines.with("level=WARN", "campaign is parked", "campaign=c", `dinnerbell approve`)); n != 1 {
		t.Errorf("%d lines name the parked campaign", n)
	}
	if n := len(lines.with("level=WARN", "campaign is parked", "campaign=c", "audience=5000")); n != 1 {
		t.Errorf("%d lines have the audience of the parked campaign", n)
	}
	for id, audience := range map[string]int64{"c": 5000, "o": 1001} {
		w.wantCounts(id, map[string]string{"c": "large", "o": "over"}[id], storedCounts{State: "parked", Audience: audience})
		if i := slices.IndexFunc(svc.Status().Recent, func(r RecentCampaign) bool { return r.Campaign == id }); svc.Status().Recent[i].Audience != audience {
			t.Errorf("recent: %+v", svc.Status().Recent[i])
		}
	}
	w.produce(0, encodeCampaign(c))
	w.awaitOffset(0, 4)
	if got := w.replayAll(svc, ReplayRequest{}); got.Held != 2 || got.Notified != 0 {
		t.Errorf("replay: %+v, want 2 held", got)
	}
	stop()
	w.operate(operator.Approve, "ahead", "", 1) // before its start, without a daemon
	svc, stop = w.start()
	parked(2)
	c.Content = "edited"
	w.produce(0, encodeCampaign(c))
	w.awaitOffset(0, 5)
	envtest.Until(t, patience, func() error { // counted again
		if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE adv_campaign_id = 'c' AND state = 'parked' AND version = 2`); n != 1 {
			return fmt.Errorf("the edited campaign is not parked")
		}
		return nil
	})
	if out, err := operator.Operate(t.Context(), w.cfg.Sink, operator.Pause, "c", "", "x"); err == nil || !strings.Contains(fmt.Sprint(out), "it is parked") {
		t.Errorf("pause: %v, %v", out, err)
	}
	w.operate(operator.Approve, "c", "large", 1)
	ahead.Start, ahead.Content = time.Now().Unix()-1, "begins earlier" // an edit of an approved campaign
	w.produce(0, encodeCampaign(ahead))
	want := map[string][]string{"e": all[:1000], "edited": all[:1000], "c": all, "ahead": all}
	w.expect(want)
	parked(1)
	stop()
	svc, _ = w.start()
	w.operate(operator.Cancel, "o", "", 1)
	parked(0)
	w.expect(want)
}

// A cancel takes an approval back: other content that revives the campaign is counted and
// parked again, until it is approved itself.
func TestCancelTakesTheApprovalBack(t *testing.T) {
	t.Parallel()
	all := clients("0000", 20)
	w := newDeployment(t, 1, map[string][]string{"r1": all})
	w.cfg.Limits.MaxAudience = 10
	svc, _ := w.start()
	c := w.campaign("c", "r1")
	parked := func() {
		t.Helper()
		envtest.Until(t, patience, func() error {
			if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE adv_campaign_id = 'c' AND state = 'parked' AND audience = 20 AND NOT approved`); n != 1 {
				return fmt.Errorf("the campaign is not parked: %+v", svc.Status().Recent)
			}
			return nil
		})
	}
	w.produce(0, encodeCampaign(c))
	parked()
	w.operate(operator.Approve, "c", "", 1)
	w.expect(map[string][]string{"c": all})
	w.operate(operator.Cancel, "c", "", 1)
	w.db.Exec(`DELETE FROM subscribers_feedback`) // so that somebody is left to be notified
	w.db.Exec(`UPDATE dinnerbell.campaign SET notified = 0`)
	c.Content = "revived"
	w.produceAt(0, time.Now().Add(time.Second), encodeCampaign(c))
	parked()
	w.operate(operator.Approve, "c", "", 1)
	envtest.Until(t, patience, func() error {
		if n := w.have("c"); n != 20 {
			return fmt.Errorf("%d clients have it", n)
		}
		return nil
	})
}

package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state"
	"dinnerbell/state/id"
)

// The lane's position goes with it: another daemon reads on from there, whether its
// mirror is behind or ahead. While it is behind, nothing is joined, but a cancel is
// accepted. Where its log does not reach back, the campaigns are joined again.
func TestLateSubscribersAcrossATakeover(t *testing.T) {
	t.Parallel()
	first := clients("0000", 10)
	w := newLateDeployment(t, 1, map[string][]string{"r1": first})
	mine := w.store
	other := w.openStore()
	_, stop := w.start()
	c := w.campaign("c", "r1")
	w.produce(0, encodeCampaign(c))
	w.finished("c")
	w.insert("r1", "late 1")
	w.expect(map[string][]string{"c": with(first, "late 1")})
	stop()

	// The other mirror lacks the change that the lane has handled. The barrier says that
	// it is fresh all the same.
	w.store = other
	w.cfg.Committed = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	svc, stop := w.start()
	d, e := w.campaign("d", "r1"), w.campaign("e", "r1")
	w.produce(0, encodeCampaign(d), encodeCampaign(e))
	e.Start, e.End = 100, 200
	w.produce(0, encodeCampaign(e))
	w.awaitOffset(0, 4)
	if s := svc.Status(); s.Lanes[0].WaitsForLSN != w.log[0].End {
		t.Errorf("the status does not show what the lane waits for: %+v", s.Lanes[0])
	}
	if n := w.have("d"); n != 0 {
		t.Errorf("%d clients have a campaign that a mirror joined which is behind the lane", n)
	}
	w.catchUp(other, 0)
	w.expect(map[string][]string{"c": with(first, "late 1"), "d": with(first, "late 1")})
	stop()

	// While no daemon runs, somebody subscribes; the mirror that comes next is ahead.
	w.insert("r1", "late 2")
	w.catchUp(mine, 0)
	w.store = mine
	svc, stop = w.start()
	want := map[string][]string{"c": with(first, "late 1", "late 2"), "d": with(first, "late 1", "late 2")}
	w.expect(want)
	if n := svc.Status().LateNotified; n != 2 {
		t.Errorf("%d are notified late, want 2: the lane has read on", n)
	}
	stop()

	// A younger mirror has no log of what came before.
	w.insert("r1", "late 3")
	w.subs["r1"] = with(first, "late 1", "late 2", "late 3")
	w.store = w.openStoreAt(w.log[len(w.log)-1].End + 800)
	svc, _ = w.start()
	want["c"], want["d"] = w.subs["r1"], w.subs["r1"]
	w.expect(want)
	w.finished("c", "d")
	if n := svc.Status().LateNotified; n != 0 {
		t.Errorf("%d are notified late, want none: the campaigns are joined again", n)
	}
}

// openStoreAt gives a new store with the subscriptions of w.subs, as of a position.
func (w *lateDeployment) openStoreAt(end id.LSN) *state.Store {
	w.Helper()
	s := w.openStore()
	w.load(s, end)
	return s
}

// load loads the subscriptions of w.subs into a store, as a rebuild does.
func (w *lateDeployment) load(s *state.Store, end id.LSN) {
	w.Helper()
	loader, err := s.NewGeneration()
	if err != nil {
		w.Fatal(err)
	}
	for _, restaurant := range slices.Sorted(maps.Keys(w.subs)) {
		for _, client := range w.subs[restaurant] {
			w.row++
			if err := loader.Add(id.PackRow(fmt.Sprint(w.row)), packID(w, restaurant), packID(w, client)); err != nil {
				w.Fatal(err)
			}
		}
	}
	if err := loader.Finish(state.Source{SystemID: "test"}, end); err != nil {
		w.Fatal(err)
	}
}

// A rebuild brings subscriptions that no log tells of: the session ends, and the
// campaigns that are not over are joined again, also after another restart in the
// middle.
func TestLateSubscribersAfterARebuild(t *testing.T) {
	t.Parallel()
	first := clients("0000", 300)
	w := newLateDeployment(t, 2, map[string][]string{"r1": first, "r2": {"x"}})
	w.cfg.StepClients = 20
	w.clock = &testClock{}
	lines := &logLines{}
	w.cfg.Logger = slog.New(slog.NewTextHandler(lines, nil))
	_, stop := w.start()
	over := w.campaign("over", "r1")
	over.End = time.Now().Unix() + 600
	want := map[string][]string{"over": first, "n": {"x"}}
	w.produce(0, encodeCampaign(over))
	for i := range 10 {
		c := w.campaign(fmt.Sprint("c", i), "r1")
		want[c.ID] = first
		w.produce(int32(i%2), encodeCampaign(c))
	}
	w.produce(1, encodeCampaign(w.campaign("n", "r2")))
	w.expect(want)
	w.clock.set(601 * time.Second)
	w.slowSteps("0.01")
	more := clients("4000", 100)
	w.subs["r1"] = with(first, more...)
	w.load(w.store, 5000)
	for i := range 10 {
		want[fmt.Sprint("c", i)] = w.subs["r1"]
	}
	envtest.Until(t, patience, func() error {
		if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE state = 'rejoin'`); n == 0 {
			return fmt.Errorf("no campaign is joined again")
		}
		return nil
	})
	stop()
	for lane := range 2 { // an ordinary event: one line each, and no warning
		of := fmt.Sprint("lane=", lane)
		if n := len(lines.with("level=INFO", "lane is taken over anew", of)); n != 1 || len(lines.with("level=WARN", of)) > 0 {
			t.Errorf("lane %d: %d lines of the rebuild, warnings %q", lane, n, lines.with("level=WARN", of))
		}
	}
	svc, _ := w.start()
	w.expect(want)
	envtest.Until(t, patience, func() error {
		if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE state <> 'finished'`); n > 0 {
			return fmt.Errorf("%d campaigns are not finished", n)
		}
		return nil
	})
	if n := svc.Status().LateNotified; n != 0 {
		t.Errorf("%d are notified late", n)
	}
}

// A source that was set back, as by a copy of its disk from yesterday: the mirror loads
// older subscriptions, and positions that the lane has handled come again with other
// transactions. The campaigns are joined again at once, and every new change is served.
func TestLateSubscribersOfASourceSetBack(t *testing.T) {
	t.Parallel()
	first := clients("0000", 10)
	w := newLateDeployment(t, 1, map[string][]string{"r1": first})
	lines := w.logLines()
	w.cfg.Committed = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	svc, stop := w.start()
	w.produce(0, encodeCampaign(w.campaign("c", "r1")))
	w.finished("c")
	w.insert("r1", "late 1")
	w.insert("r1", "late 2")
	want := map[string][]string{"c": with(first, "late 1", "late 2")}
	w.expect(want)
	w.handled(svc)

	w.subs["r1"] = with(first, "of yesterday")
	w.load(w.store, w.log[0].End-8)
	w.log = nil // the positions of late 1 and late 2 are those of others now
	w.produce(0, encodeCampaign(w.campaign("d", "r1")))
	want["c"], want["d"] = with(want["c"], "of yesterday"), w.subs["r1"]
	w.expect(want)
	for _, client := range []string{"anew 1", "anew 2", "anew 3"} {
		w.insert("r1", client)
		want["c"], want["d"] = with(want["c"], client), with(want["d"], client)
		w.expect(want)
	}
	stop()
	w.insert("r1", "anew 4")
	svc, _ = w.start()
	want["c"], want["d"] = with(want["c"], "anew 4"), with(want["d"], "anew 4")
	w.expect(want)
	if n := svc.Status().LateNotified; n != 2 {
		t.Errorf("%d are notified late, want 2: the lane has read on", n)
	}
	if n := len(lines.with("campaigns that are not over are joined again", "set back")); n != 1 {
		t.Errorf("the campaigns were joined again %d times because the source was set back, want once", n)
	}
}

// Switched on late, the option reaches those who have subscribed since the campaign's
// fan-out.
func TestLateSubscribersSwitchedOnLate(t *testing.T) {
	t.Parallel()
	first := clients("0000", 10)
	w := &lateDeployment{deployment: newDeployment(t, 1, map[string][]string{"r1": first}), row: 1_000_000, rowOf: map[string]int64{}}
	_, stop := w.start()
	w.produce(0, encodeCampaign(w.campaign("c", "r1")))
	w.insert("r1", "late 1")
	w.finished("c")
	if n := w.db.Int(`SELECT count(*) FROM pg_indexes WHERE schemaname = 'dinnerbell' AND indexname LIKE 'campaign_re%'`); n != 0 {
		t.Errorf("%d indexes that only the option needs", n)
	}
	stop()
	w.switchOn()
	w.catchUp(w.store, 0)
	w.insert("r1", "late 2")
	_, stop = w.start()
	w.expect(map[string][]string{"c": with(first, "late 1", "late 2")})
	w.insert("r1", "late 3")
	w.expect(map[string][]string{"c": with(first, "late 1", "late 2", "late 3")})
	stop()
	w.cfg.Sink.LateSubscribers = false
	w.start()
	w.insert("r1", "late 4")
	w.produce(0, encodeCampaign(w.campaign("d", "r1")))
	w.expect(map[string][]string{"c": with(first, "late 1", "late 2", "late 3"), "d": with(first, "late 1", "late 2", "late 3", "late 4")})
}

// More changes than the log holds come while the lane cannot read them: it joins its
// campaigns again.
func TestLateSubscribersBeyondTheLog(t *testing.T) {
	t.Parallel()
	first := clients("0000", 10)
	w := newLateDeployment(t, 1, map[string][]string{"r1": first})
	w.stateOptions.Log.Bytes = 32 << 10
	w.store = w.openStore()
	lines := &logLines{}
	w.cfg.Logger = slog.New(slog.NewTextHandler(lines, nil))
	svc, _ := w.start()
	w.awaitReady(svc)
	w.produce(0, encodeCampaign(w.campaign("c", "r1")))
	w.finished("c")
	release := w.blockRows(`LOCK TABLE subscribers_feedback IN SHARE MODE`)
	w.insert("r1", "late 0")
	w.awaitBlocked()
	all := with(first, "late 0")
	for i := range 40 {
		more := clients(fmt.Sprintf("%04x", 100+i), 200)
		all = append(all, more...)
		w.insert("r1", more...)
	}
	release()
	w.expect(map[string][]string{"c": all})
	w.finished("c")
	envtest.Until(t, patience, func() error {
		if len(lines.with("campaigns that are not over are joined again", "does not reach back")) == 0 {
			return errors.New("the log was not too small: the test shows nothing")
		}
		return nil
	})
}

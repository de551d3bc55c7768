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
	"dinnerbell/stream/operator"
	"dinnerbell/stream/sink"
)

// lateDeployment is a deployment with late subscribers. Its tests make the changes of the
// subscriptions and apply them to the stores themselves, as package cdc would.
type lateDeployment struct {
	*deployment
	row   int64
	rowOf map[string]int64 // restaurant/client → row of the last subscription
	log   []*state.Batch   // all transactions so far
}

func newLateDeployment(t testing.TB, lanes int32, subs map[string][]string) *lateDeployment {
	t.Helper()
	w := &lateDeployment{deployment: newDeployment(t, lanes, subs), row: 1_000_000, rowOf: map[string]int64{}}
	w.switchOn()
	return w
}

// switchOn switches late subscribers on.
func (w *lateDeployment) switchOn() {
	w.Helper()
	w.cfg.Sink.LateSubscribers = true
	if _, err := sink.Setup(w.Context(), w.cfg.Sink); err != nil {
		w.Fatal(err)
	}
	w.stateOptions.Log.Bytes = 64 << 20
	w.store = w.openStore()
}

// catchUp applies to a store what it lacks, up to n transactions before the newest.
func (w *lateDeployment) catchUp(s *state.Store, n int) {
	w.Helper()
	for _, b := range w.log[:max(0, len(w.log)-n)] {
		if err := s.Apply(b); err != nil {
			w.Fatal(err)
		}
	}
}

// commit makes a transaction and applies it to the store.
func (w *lateDeployment) commit(changes ...id.Change) {
	w.Helper()
	w.log = append(w.log, &state.Batch{Changes: changes, End: id.LSN(1000 + 8*len(w.log))})
	w.catchUp(w.store, 0)
}

// insert has clients subscribe to a restaurant, in one transaction.
func (w *lateDeployment) insert(restaurant string, clients ...string) {
	w.Helper()
	w.commit(w.inserts(restaurant, clients...)...)
}

func (w *lateDeployment) inserts(restaurant string, clients ...string) (changes []id.Change) {
	w.Helper()
	for _, c := range clients {
		w.row++
		w.rowOf[restaurant+"/"+c] = w.row
		changes = append(changes, id.Change{Op: id.Insert, Row: id.PackRow(fmt.Sprint(w.row)), Restaurant: packID(w, restaurant), Client: packID(w, c)})
	}
	return changes
}

// remove removes the rows that insert has made last for these clients.
func (w *lateDeployment) remove(restaurant string, clients ...string) {
	w.Helper()
	var changes []id.Change
	for _, c := range clients {
		changes = append(changes, id.Change{Op: id.Delete, Row: id.PackRow(fmt.Sprint(w.rowOf[restaurant+"/"+c]))})
	}
	w.commit(changes...)
}

// finished waits until campaigns' rows are finished.
func (w *lateDeployment) finished(ids ...string) {
	w.Helper()
	envtest.Until(w, patience, func() error {
		if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE adv_campaign_id = ANY($1) AND state = 'finished'`, ids); n < int64(len(ids)) {
			return fmt.Errorf("%d of %d campaigns are finished", n, len(ids))
		}
		return nil
	})
}

// handled waits until every lane has handled all changes, and decided what follows.
func (w *lateDeployment) handled(svc *Service) {
	w.Helper()
	envtest.Until(w, patience, func() error {
		s := svc.Status()
		for _, l := range s.Lanes {
			if l.State != LaneRunning || l.SourceLSN < w.store.EndLSN() {
				return fmt.Errorf("lane %d is %s and has handled %s of %s", l.Partition, l.State, l.SourceLSN, w.store.EndLSN())
			}
		}
		if len(s.Lanes) == 0 || s.Notifications.Decided != s.Notifications.Shipped {
			return fmt.Errorf("not settled: %+v", s)
		}
		return nil
	})
}

func with(list []string, more ...string) []string { return append(slices.Clone(list), more...) }

// A client who subscribes after the fan-out gets the campaign, once: also one who
// unsubscribes and subscribes again, has two rows, or subscribes to two restaurants of
// one campaign. Nobody else is touched.
func TestLateSubscriberGetsTheCampaign(t *testing.T) {
	t.Parallel()
	first := clients("0000", 10)
	w := newLateDeployment(t, 1, map[string][]string{"r1": first, "r2": nil, "r3": {"x"}})
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("c", "r1")), encodeCampaign(w.campaign("shared", "r1")), encodeCampaign(w.campaign("shared", "r2")), encodeCampaign(w.campaign("other", "r3")))
	w.finished("c", "other")
	w.insert("r1", "late", first[3]) // a second row of a subscriber
	want := map[string][]string{"c": with(first, "late"), "shared": with(first, "late"), "other": {"x"}}
	w.expect(want)
	w.remove("r1", "late")
	w.insert("r1", "late")
	w.insert("r2", "late", "later") // the campaign of r1 has notified one of them
	w.insert("r4", "nobody")
	want["shared"] = with(want["shared"], "later")
	w.expect(want)
	w.handled(svc)
	w.expect(want)
	if s := svc.Status(); s.LateNotified != 3 || s.LateEntries < 6 {
		t.Errorf("%d late subscribers notified, %d new subscriptions seen", s.LateNotified, s.LateEntries)
	}
	w.firstEpoch()
}

// Clients who subscribe in the middle of a fan-out get the campaign from the fan-out
// itself where it has not come to them, and late where it has: no row is refused.
func TestLateSubscribersInTheMiddleOfAFanOut(t *testing.T) {
	t.Parallel()
	first := clients("5000", 2000)
	w := newLateDeployment(t, 1, map[string][]string{"r1": first})
	w.cfg.StepClients = 50
	w.slowSteps("0.01")
	svc, stop := w.start()
	w.produce(0, encodeCampaign(w.campaign("c", "r1")))
	w.decided(svc, 100)
	var all []string
	for i := range 10 {
		behind, before := clients(fmt.Sprintf("%04x", i), 3), clients(fmt.Sprintf("9%03x", i), 3)
		w.insert("r1", behind...)
		w.insert("r1", before...)
		all = append(append(all, behind...), before...)
		if i == 5 { // a restart in the middle
			stop()
			svc, stop = w.start()
		}
		w.decided(svc, int64(200+60*i))
	}
	w.expect(map[string][]string{"c": with(first, all...)})
	if s := svc.Status(); s.Conflicts != 0 {
		t.Errorf("%d steps were refused", s.Conflicts)
	}
	if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE contested`); n != 0 {
		t.Error("the campaign is contested: a late pick has overtaken its fan-out")
	}
}

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

// A rebuild whose snapshot is older than what the lane has handled: nothing is joined
// before the stream has come to the lane's position again.
func TestSetBackSubscriptionsAreNotJoined(t *testing.T) {
	t.Parallel()
	first := clients("0000", 10)
	w := newLateDeployment(t, 1, map[string][]string{"r1": first})
	svc, _ := w.start()
	w.insert("r1", "late 1")
	w.insert("r1", "late 2")
	w.handled(svc)
	w.produce(0, encodeCampaign(w.campaign("first", "r1"))) // moves the position
	all := with(first, "late 1", "late 2")
	w.expect(map[string][]string{"first": all})
	w.cfg.Committed = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	w.load(w.store, w.log[0].End-4)
	w.produce(0, encodeCampaign(w.campaign("c", "r1")))
	w.awaitOffset(0, 2) // it is accepted, and not joined
	if n := w.have("c"); n != 0 && n != int64(len(all)) {
		t.Errorf("%d clients have a campaign, from subscriptions that were set back", n)
	}
	w.catchUp(w.store, 0)
	w.expect(map[string][]string{"first": all, "c": all})
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

// Clients who subscribe before the start, while the campaign is paused, parked behind an
// end that an edit moves, or at its end.
func TestLateSubscribersAndTheLifeOfACampaign(t *testing.T) {
	t.Parallel()
	first := clients("0000", 10)
	w := newLateDeployment(t, 2, map[string][]string{"r1": first, "r2": first, "r3": first})
	w.clock = &testClock{}
	svc, _ := w.start()
	soon, paused, short := w.campaign("soon", "r1"), w.campaign("paused", "r2"), w.campaign("short", "r3")
	gone := w.campaign("gone", "r3")
	soon.Start = time.Now().Unix() + 600
	short.End, gone.End = soon.Start, soon.Start
	w.produce(0, encodeCampaign(soon), encodeCampaign(paused), encodeCampaign(short), encodeCampaign(gone), encodeCampaign(w.campaign("cancelled", "r2")))
	w.finished("paused", "short", "gone", "cancelled")
	w.insert("r1", "early")
	w.operate(operator.Pause, "paused", "", 1)
	w.operate(operator.Cancel, "cancelled", "", 1)
	w.insert("r2", "meanwhile")
	w.handled(svc)
	if n := w.have("paused") + w.have("soon"); n != int64(len(first)) {
		t.Errorf("%d have a campaign that is paused or has not begun", n)
	}
	w.operate(operator.Resume, "paused", "", 1)
	want := map[string][]string{"paused": with(first, "meanwhile"), "cancelled": first, "short": first, "gone": first}
	w.expect(want)
	w.clock.set(601 * time.Second)
	want["soon"] = with(first, "early")
	w.expect(want)
	w.insert("r1", "late")
	w.insert("r2", "after")
	want["soon"], want["paused"] = with(want["soon"], "late"), with(want["paused"], "after")
	w.expect(want)

	w.insert("r3", "too late")
	w.handled(svc)
	w.expect(want)
	short.End += 3600 // by the other lane
	w.produce(1, encodeCampaign(short))
	want["short"] = with(first, "too late")
	w.expect(want)
	w.insert("r3", "in time")
	want["short"] = with(want["short"], "in time")
	w.expect(want)
	w.firstEpoch()
}

// One transaction of many subscriptions comes in parts, to a restaurant with many
// campaigns.
func TestManyLateSubscribersAtOnce(t *testing.T) {
	t.Parallel()
	w := newLateDeployment(t, 1, map[string][]string{"r1": {"a"}, "r2": {"a"}})
	svc, _ := w.start()
	const many = 300
	want := map[string][]string{"large": {"a"}}
	values := [][]byte{encodeCampaign(w.campaign("large", "r2"))}
	for i := range many {
		c := w.campaign(fmt.Sprintf("c%03d", i), "r1")
		want[c.ID] = []string{"a"}
		values = append(values, encodeCampaign(c))
	}
	w.produceAll(0, values...)
	w.expect(want)
	late := clients("0000", 10_000)
	end := id.LSN(100_000)
	for part := range slices.Chunk(late, 1000) {
		if err := w.store.Apply(&state.Batch{Changes: w.inserts("r2", part...)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.store.Apply(&state.Batch{Changes: w.inserts("r1", "b"), End: end}); err != nil {
		t.Fatal(err)
	}
	want["large"] = with(late, "a")
	for id := range want {
		if id != "large" {
			want[id] = []string{"a", "b"}
		}
	}
	w.expect(want)
	w.handled(svc)
	if n := w.db.Int(`SELECT source_lsn FROM dinnerbell.lane`); n != int64(end) {
		t.Errorf("the lane is at %d, want %d", n, end)
	}
	w.firstEpoch()
}

// awaitBlocked waits until a step waits for a lock.
func (w *lateDeployment) awaitBlocked() {
	w.Helper()
	envtest.Until(w, patience, func() error {
		if n := w.db.Int(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`); n == 0 {
			return errors.New("no step waits")
		}
		return nil
	})
}

// A client who subscribes while a step is under way that joins a campaign with the
// subscriptions of before: Postgres does not show the campaign yet.
func TestLateSubscriberMeetsAStepUnderWay(t *testing.T) {
	t.Parallel()
	first := clients("0000", 10)
	w := newLateDeployment(t, 1, map[string][]string{"r1": first})
	svc, _ := w.start()
	w.awaitReady(svc)
	w.handled(svc)
	release := w.blockRows(`LOCK TABLE subscribers_feedback IN SHARE MODE`)
	w.produce(0, encodeCampaign(w.campaign("c", "r1")))
	w.awaitBlocked()
	w.insert("r1", "late")
	for deadline := time.Now().Add(400 * time.Millisecond); time.Now().Before(deadline) && svc.Status().Lanes[0].SourceLSN < w.store.EndLSN(); {
		<-time.After(10 * time.Millisecond) // time to pass the change by, which would be wrong
	}
	release()
	w.expect(map[string][]string{"c": with(first, "late")})
	w.firstEpoch()
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

// A clock that was an hour ahead has ended no campaign for late subscribers.
func TestLateSubscribersAfterTheClockWasAhead(t *testing.T) {
	t.Parallel()
	first := clients("0000", 10)
	w := newLateDeployment(t, 1, map[string][]string{"r1": first, "r2": first})
	w.clock = &testClock{}
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("c", "r1")))
	w.finished("c")
	w.clock.set(2 * time.Hour)
	w.insert("r1", "while ahead")
	w.handled(svc)
	w.produce(0, encodeCampaign(w.campaign("other", "r2"))) // over by that clock
	w.awaitOffset(0, 2)
	w.clock.set(0)
	w.insert("r1", "late")
	envtest.Until(t, patience, func() error {
		if n := w.db.Int(`SELECT count(*) FROM subscribers_feedback WHERE client_id = 'late'`); n != 1 {
			return errors.New("the late subscriber does not have the campaign")
		}
		return nil
	})
}

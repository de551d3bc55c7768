package stream

import (
	"errors"
	"fmt"
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

// A clock that was two hours ahead has ended no campaign for late subscribers. A replay
// brings the campaigns to those who were passed by meanwhile.
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
	if _, err := svc.Replay(t.Context(), ReplayRequest{}, nil); err != nil {
		t.Fatal(err)
	}
	w.expect(map[string][]string{"c": with(first, "while ahead", "late"), "other": first})
}

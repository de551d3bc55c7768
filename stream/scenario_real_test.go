package stream

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state"
	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/operator"
)

// TestScenariosOnRealServers plays the scripts of testdata/scenarios, one after the
// other, on one deployment, and those with late subscribers on another. The daemon's
// clock stands still at the script's second.
func TestScenariosOnRealServers(t *testing.T) {
	t.Parallel()
	for _, late := range []bool{false, true} {
		t.Run(fmt.Sprintf("late=%v", late), func(t *testing.T) {
			t.Parallel()
			d := newDeployment(t, scenarioLanes, nil)
			if late {
				(&lateDeployment{deployment: d}).switchOn()
			}
			playOnRealServers(t, d)
		})
	}
}

// playOnRealServers plays the scripts that the deployment fits, one after the other.
func playOnRealServers(t *testing.T, d *deployment) {
	t.Helper()
	d.clock, d.clockWatch = &testClock{}, 10*time.Millisecond
	d.uncounted = true // a scenario may end in the middle of a fan-out
	barrier := &shutter{}
	d.barrier = barrier
	w := &realWorld{whole: t, deployment: d, shutter: barrier, end: 1, rowKeys: map[[2]string]id.RowID{}}
	for number, s := range allScenarios(t) {
		if s.forVirtualTime() || s.servesLate() != d.cfg.Sink.LateSubscribers {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			w.begin(t, number)
			s.play(t, w)
			w.settle()
		})
	}
	w.TB = t
	w.stopService()
	w.checkNotes()
}

const (
	// scenarioSecond is how many seconds of the clock one second of a script is: the
	// clock of Postgres, which goes on, must not reach the end of a campaign first.
	scenarioSecond = 100
	// scenarioLength is the distance between the beginnings of two scripts, in seconds
	// of the clock. The first one begins today, since operators' commands go by
	// Postgres' clock; the feedback table's type ends in 2038.
	scenarioLength = 2_000_000
)

// realWorld is a deployment on real servers. The ids of a scenario begin with its number.
type realWorld struct {
	whole testing.TB
	*deployment
	*shutter

	prefix   string
	base     int64 // the clock at second 0
	second   int64
	stamps   map[int64]time.Time // when a second began
	operated time.Time           // when the last operator's command had returned
	svc      *Service
	stopped  func() // nil while the daemon is stopped
	shutNow  bool
	end      id.LSN
	rowKeys  map[[2]string]id.RowID
	sent     [scenarioLanes]int64 // messages ever
}

func (w *realWorld) begin(t *testing.T, number int) {
	t.Helper()
	w.TB = t
	w.prefix, w.base, w.stamps = fmt.Sprintf("s%d.", number), time.Now().Unix()+int64(number)*scenarioLength, map[int64]time.Time{}
	if w.shutNow {
		w.barrier(true)
	}
	w.at(0)
	if w.stopped == nil {
		w.start()
	}
}

func (w *realWorld) at(second int64) {
	w.second, w.stamps[second] = second, time.Now()
	w.clock.stand(w.clockAt(second))
}

// clockAt returns the Unix second of a script's second.
func (w *realWorld) clockAt(second int64) time.Time {
	return time.Unix(w.base+scenarioSecond*second, 0)
}

func (w *realWorld) subscribe(client, restaurant string) {
	k := [2]string{client, w.prefix + restaurant}
	w.rowKeys[k] = id.PackRow(strings.Join(k[:], "/"))
	w.apply(id.Change{Op: id.Insert, Row: w.rowKeys[k], Restaurant: packID(w, k[1]), Client: packID(w, client)})
}

func (w *realWorld) unsubscribe(client, restaurant string) {
	w.apply(id.Change{Op: id.Delete, Row: w.rowKeys[[2]string{client, w.prefix + restaurant}]})
}

func (w *realWorld) apply(c id.Change) {
	w.Helper()
	w.end += 8
	if err := w.store.Apply(&state.Batch{Changes: []id.Change{c}, End: w.end}); err != nil {
		w.Fatal(err)
	}
}

func (w *realWorld) send(m *scenarioMessage) {
	w.Helper()
	c := m.Campaign
	c.ID, c.RestaurantID = w.prefix+c.ID, w.prefix+c.RestaurantID
	c.Start, c.End = w.clockAt(m.Start).Unix(), w.clockAt(m.End).Unix()
	stamp := time.Now()
	if next := w.operated.Add(time.Millisecond); stamp.Before(next) { // stamps are milliseconds
		stamp = next
	}
	if m.stamped >= 0 {
		stamp = w.stamps[m.stamped]
	}
	w.produceAt(m.lane, stamp, encodeCampaign(c))
	w.sent[m.lane]++
}

func (w *realWorld) operate(action, name, restaurant string) {
	w.Helper()
	if restaurant != "" {
		restaurant = w.prefix + restaurant
	}
	out, err := operator.Operate(w.Context(), w.cfg.Sink, operator.Action(action), w.prefix+name, restaurant, "scenario")
	if err != nil {
		w.Fatalf("%s: %v: %+v", action, err, out)
	}
	w.operated = time.Now()
}

func (w *realWorld) barrier(open bool) {
	if w.shutNow = !open; open {
		w.open()
	} else {
		w.shut()
	}
}

func (w *realWorld) start() {
	w.Helper()
	this := w.TB
	w.TB = w.whole // the service outlives the scenario
	w.svc, w.stopped = w.deployment.start()
	w.TB = this
	if !w.shutNow {
		w.awaitReady(w.svc)
	}
}

func (w *realWorld) stop() { w.stopService() }

func (w *realWorld) stopService() {
	if w.stopped != nil {
		w.stopped()
		w.stopped = nil
	}
}

// settle waits until every message is accepted, and every campaign of the scenario that
// has started is delivered.
func (w *realWorld) settle() {
	w.Helper()
	if w.stopped == nil {
		return
	}
	envtest.Until(w, patience, func() error {
		for lane, n := range w.sent {
			if got := w.db.Int(`SELECT next_offset FROM dinnerbell.lane WHERE lane = $1`, lane); got < n {
				return fmt.Errorf("lane %d is at offset %d of %d", lane, got, n)
			}
		}
		for _, l := range w.svc.Status().Lanes {
			if w.cfg.Sink.LateSubscribers && (l.State != LaneRunning || l.SourceLSN < w.store.EndLSN()) {
				return fmt.Errorf("lane %d is %s and has handled %s of %s", l.Partition, l.State, l.SourceLSN, w.store.EndLSN())
			}
		}
		left := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE state IN ('pending', 'rejoin') AND adv_campaign_datetime_start <= $1 AND starts_with(adv_campaign_id, $2)`, w.clockAt(w.second).Unix(), w.prefix)
		if left > 0 && !w.shutNow {
			return fmt.Errorf("%d campaigns have started and are not delivered", left)
		}
		return nil
	})
}

func (w *realWorld) clientsOf(name string) (clients []string) {
	w.Helper()
	for _, n := range w.rows() {
		if n.ID == w.prefix+name {
			clients = append(clients, n.client)
		}
	}
	return clients
}

func (w *realWorld) stateOf(k campaign.Key) (state string) {
	w.Helper()
	if err := w.db.Pool.QueryRow(w.Context(), `SELECT coalesce((SELECT state FROM dinnerbell.campaign WHERE adv_campaign_id = $1 AND restaurant_id = $2), '')`, w.prefix+k.Campaign, w.prefix+k.Restaurant).Scan(&state); err != nil {
		w.Fatal(err)
	}
	return state
}

// checkNotes compares both sinks at the end, and the times of all decisions.
func (w *realWorld) checkNotes() {
	w.Helper()
	rows := w.rows()
	envtest.Until(w, patience, func() error { return sameNotes(slices.Clone(rows), w.records()) })
	for _, n := range rows {
		if n.trigger < n.Start || n.trigger >= n.End {
			w.Errorf("campaign %s was decided at %d, and is valid from %d until %d", n.ID, n.trigger, n.Start, n.End)
		}
	}
}

package stream

import (
	"context"
	"slices"
	"testing"
	"time"

	"dinnerbell/state"
	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
	"dinnerbell/stream/topic"
)

func TestScenarios(t *testing.T) {
	t.Parallel()
	for _, s := range allScenarios(t) {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.play(t, newVirtualWorld(t, s.servesLate()))
		})
	}
}

// scenarioLanes is the number of lanes that a scenario can send to.
const scenarioLanes = 2

// virtualWorld runs a daemon's deciders on virtual time, one step after the other. In
// place of Postgres and Kafka it has maps.
type virtualWorld struct {
	t       *testing.T
	second  int64
	stamp   int64           // milliseconds of the next message
	stamps  map[int64]int64 // stamp at which a second began
	svc     *Service
	store   *state.Store
	end     id.LSN
	rowKeys map[[2]string]id.RowID // of subscriptions, by client and restaurant

	lanes  [scenarioLanes]*virtualLane // nil while the daemon is stopped
	unread [scenarioLanes][]message
	next   [scenarioLanes]int64 // offsets
	shut   bool
	budget int // steps that may be taken; negative: without limit

	late    bool                  // late subscribers are served
	handled [scenarioLanes]id.LSN // how far each lane has handled the log of new subscriptions

	campaigns map[campaign.Key]*virtualRow
	notified  map[string][]string // clients by campaign
}

type virtualLane struct {
	decider *decider
	starts  *startTimes
	reader  *lateReader // nil: late subscribers are not served
}

// virtualRow is a row of the campaign table.
type virtualRow struct {
	*campaign.Campaign
	newest    campaign.Version
	state     string
	cursor    id.ID
	contested bool
}

func newVirtualWorld(t *testing.T, late bool) *virtualWorld {
	t.Helper()
	o := state.Options{}
	if late {
		o.Log.Bytes = 1 << 20
	}
	store, err := state.Open(t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	loader, err := store.NewGeneration()
	if err == nil {
		err = loader.Finish(state.Source{SystemID: "test"}, 1)
	}
	if err != nil {
		t.Fatal(err)
	}
	w := &virtualWorld{t: t, store: store, end: 1, late: late, stamps: map[int64]int64{0: 0}, rowKeys: map[[2]string]id.RowID{}, budget: -1,
		campaigns: map[campaign.Key]*virtualRow{}, notified: map[string][]string{}}
	w.svc = New(Config{}, store, noBarrier{})
	w.svc.now = func() time.Time { return time.Unix(w.second, 0) }
	for i := range w.handled {
		w.handled[i], _ = store.LogFloor()
	}
	w.start()
	return w
}

func (w *virtualWorld) at(second int64) { w.second, w.stamps[second] = second, w.stamp }

func (w *virtualWorld) subscribe(client, restaurant string) {
	k := [2]string{client, restaurant}
	w.rowKeys[k] = id.PackRow(client + "/" + restaurant)
	w.apply(id.Change{Op: id.Insert, Row: w.rowKeys[k], Restaurant: packID(w.t, restaurant), Client: packID(w.t, client)})
}

func (w *virtualWorld) unsubscribe(client, restaurant string) {
	w.apply(id.Change{Op: id.Delete, Row: w.rowKeys[[2]string{client, restaurant}]})
}

func (w *virtualWorld) apply(c id.Change) {
	w.end += 8
	if err := w.store.Apply(&state.Batch{Changes: []id.Change{c}, End: w.end}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *virtualWorld) send(m *scenarioMessage) {
	w.stamp += 1000
	stamp := w.stamp
	if m.stamped >= 0 {
		stamp = w.stamps[m.stamped]
	}
	w.unread[m.lane] = append(w.unread[m.lane], message{offset: w.next[m.lane], time: stamp, campaign: &m.Campaign, fingerprint: m.Fingerprint()})
	w.next[m.lane]++
}

// operate does what the owner of a campaign does once it sees an operator's command.
func (w *virtualWorld) operate(action, name, restaurant string) {
	w.stamp += 1000
	for k, r := range w.campaigns {
		if k.Campaign != name || restaurant != "" && restaurant != k.Restaurant {
			continue
		}
		r.newest.RowVersion++
		r.newest.HeldAt = w.stamp
		r.newest.Hold, r.state = campaign.NotHeld, sink.StatePending
		switch action {
		case "cancel":
			r.newest.Hold, r.state = campaign.Cancelled, sink.StateCancelled
		case "pause":
			r.newest.Hold, r.state = campaign.Paused, sink.StatePaused
		case "approve":
			r.newest.Approved, r.cursor, r.contested = true, "", true
		default:
			r.cursor, r.contested = "", true
		}
		w.dropStale()
		if l := w.lanes[r.newest.Owner]; l != nil && r.state == sink.StatePending {
			l.starts.addLoaded(w.svc.now(), []startTime{r.startTime()})
		}
	}
}

func (w *virtualWorld) barrier(open bool) { w.shut = !open }

func (w *virtualWorld) stop() { w.lanes = [scenarioLanes]*virtualLane{} }

func (w *virtualWorld) start() {
	for i := range w.lanes {
		d := newDecider(&lane{svc: w.svc, id: int32(i)}, w.svc.cfg)
		d.claim = &takeover.Claim{Feedback: sink.ContractTable(), Limits: topic.Limits{Notification: topic.DefaultMaxMessage}}
		w.lanes[i] = &virtualLane{decider: d, starts: newStartTimes(maxWaitingStarts)}
		if w.late {
			w.lanes[i].reader = w.newLateReader(d)
		}
	}
}

// newLateReader makes the lane's reader of new subscriptions, which reads the campaigns
// from the world's map.
func (w *virtualWorld) newLateReader(d *decider) *lateReader {
	d.late = newLateWork()
	d.late.batches = make(chan lateBatch, 1000) // the reader and the decider take turns
	d.claim.Config = w.svc.cfg.Config
	d.late.passed.Store(uint64(w.handled[d.lane.id]))
	for _, r := range w.campaigns {
		if r.newest.Owner == d.lane.id {
			d.noteRestaurant(packID(w.t, r.RestaurantID), r.End)
		}
	}
	src, _ := w.store.Source()
	return &lateReader{lane: d.lane, claim: d.claim, store: w.store, late: d.late, source: src, at: state.LogCursor{End: w.handled[d.lane.id]},
		served: func(_ context.Context, ask []sink.LateRestaurant) (list []sink.ServedCampaign, rest []sink.LateRestaurant, err error) {
			return w.servedOf(d.lane.id, ask), nil, nil
		}}
}

// servedOf does what [sink.Tables.ReadServed] does.
func (w *virtualWorld) servedOf(n int32, ask []sink.LateRestaurant) (list []sink.ServedCampaign) {
	for i, a := range ask {
		for k, r := range w.campaigns {
			joined := r.state == sink.StateFinished || r.state == sink.StatePending && r.cursor >= a.Least
			if k.Restaurant != a.Restaurant || r.newest.Owner != n || r.End < a.AfterEnd || !joined {
				continue
			}
			s := sink.ServedCampaign{Campaign: r.Campaign, Of: i, Version: r.newest.RowVersion, From: r.newest.Position}
			if r.state == sink.StatePending {
				s.Cursor = r.cursor
			}
			list = append(list, s)
		}
	}
	return list
}

func (w *virtualWorld) stepOf(clients int) {
	w.svc.cfg.StepClients, w.budget = clients, 0
	w.start()
}

func (w *virtualWorld) steps(n int) { w.budget = n }

func (w *virtualWorld) clientsOf(name string) []string { return slices.Clone(w.notified[name]) }

func (w *virtualWorld) stateOf(k campaign.Key) string {
	if r := w.campaigns[k]; r != nil {
		return r.state
	}
	return ""
}

// settle takes steps until there is nothing to do.
func (w *virtualWorld) settle() {
	for busy := true; busy; {
		busy = false
		for i, l := range w.lanes {
			if l != nil && w.budget != 0 {
				busy = w.work(int32(i), l) || busy
			}
		}
	}
}

// work takes one step of a lane, and reports whether there was something to do.
func (w *virtualWorld) work(n int32, l *virtualLane) bool {
	list := w.takeUnread(n)
	l.decider.enqueueMessages(messageBatch{messages: list})
	due := w.takeDue(n, l)
	l.decider.enqueueDue(due)
	picked := w.takeLate(l)
	st := newStep(l.decider.claim.Feedback)
	if err := l.decider.fillStep(st); err != nil {
		w.t.Fatal(err)
	}
	if st.isEmpty() {
		l.decider.late.settleView(st.view)
		return picked || len(list)+len(due) > 0
	}
	st.sealStep(w.second)
	w.commit(n, st)
	l.decider.late.applyStep(st)
	l.starts.applyStep(w.svc.now(), st)
	w.dropStale()
	w.budget--
	return true
}

// takeLate has the lane's reader read what is new, and hands the decider one batch of
// late picks.
func (w *virtualWorld) takeLate(l *virtualLane) (some bool) {
	if l.reader == nil {
		return false
	}
	for more := true; more; {
		var err error
		if more, err = l.reader.readOnce(w.t.Context()); err != nil {
			w.t.Fatal(err)
		}
	}
	batches, _ := l.decider.lateInput()
	select {
	case b := <-batches: // nil, so never, while the decider has picks
		l.decider.enqueueLate(b)
		return true
	default:
		return false
	}
}

func (w *virtualWorld) takeUnread(n int32) []message {
	list := w.unread[n]
	w.unread[n] = nil
	for i := range list {
		m := &list[i]
		m.received = w.svc.now()
		if !w.shut {
			m.fresh = m.received
		}
		for k, r := range w.campaigns {
			if k == m.campaign.Key() {
				newest := r.newest
				m.accepted = &newest
			}
			m.shared = m.shared || k.Campaign == m.campaign.ID && k.Restaurant != m.campaign.RestaurantID
		}
	}
	return list
}

// takeDue does what campaignStarter does.
func (w *virtualWorld) takeDue(n int32, l *virtualLane) (due []*liveCampaign) {
	if w.shut {
		return nil
	}
	now := w.svc.now()
	load := func(after, until int64) {
		var list []startTime
		for _, r := range w.campaigns {
			if r.newest.Owner == n && r.state == sink.StatePending && r.Start > after && r.Start <= until {
				list = append(list, r.startTime())
			}
		}
		l.starts.addLoaded(now, list)
	}
	if after, until, _, ok := l.starts.takeReload(now); ok {
		load(after, until)
	}
	if _, some := l.starts.takeUnlisted(now.Unix()); some {
		load(-1, now.Unix())
	}
	for _, p := range l.starts.takeDue(now.Unix()) {
		r := w.campaigns[p.key]
		if r == nil || r.newest.RowVersion != p.version || r.state != sink.StatePending {
			continue
		}
		c := &liveCampaign{Campaign: r.Campaign, owner: n, started: true, version: p.version, cursor: r.cursor, from: r.newest.Position, approved: r.newest.Approved}
		c.contested.Store(r.contested)
		if err := c.packRestaurant(); err != nil {
			w.t.Fatal(err)
		}
		due = append(due, c)
	}
	return due
}

func (r *virtualRow) startTime() startTime {
	return startTime{start: r.Start, key: r.Key(), version: r.newest.RowVersion}
}

// commit does what the step's transaction does.
func (w *virtualWorld) commit(n int32, st *step) {
	for _, c := range st.sortedRows() {
		r := w.campaigns[c.Key()]
		switch {
		case c.accept:
			if (c.replaces == nil) != (r == nil) || r != nil && c.replaces.RowVersion != r.newest.RowVersion {
				w.t.Fatalf("a step of lane %d replaces %+v, and the row is %+v", n, c.replaces, r)
			}
			r = &virtualRow{Campaign: c.Campaign, newest: c.acceptedVersion(), contested: c.contested.Load()}
			w.campaigns[c.Key()] = r
		case c.repeats:
			r.newest.Position, r.newest.Time = c.at, c.messageTime
		}
		if c.state != "" {
			r.state, r.cursor = c.state, c.cursor
		}
	}
	w.handled[n] = max(w.handled[n], st.sourceLSN)
	for _, p := range st.picks {
		c := p.live
		if r := w.campaigns[c.Key()]; p.late && (r.newest.RowVersion != c.version || r.newest.Owner != n || r.newest.Hold != campaign.NotHeld || r.state == sink.StateExpired) {
			continue // it is joined again, or not at all
		}
		if st.trigger < c.Start || st.trigger >= c.End {
			w.t.Fatalf("campaign %s was decided at %d", c.ID, st.trigger)
		}
		for i := range p.clients.Len() {
			client := p.clients.At(i).Text()
			if !slices.Contains(w.notified[c.ID], client) {
				w.notified[c.ID] = append(w.notified[c.ID], client)
			} else if !p.contested {
				w.t.Fatalf("client %s gets campaign %s again", client, c.ID)
			}
		}
	}
}

// dropStale drops the live campaigns whose row was changed by another lane or by an
// operator, as the reconciliation of a step that misses does.
func (w *virtualWorld) dropStale() {
	for n, l := range w.lanes {
		if l == nil {
			continue
		}
		for k, c := range l.decider.sched.byKey {
			if r := w.campaigns[k]; r != nil && (r.newest.RowVersion != c.version || r.newest.Owner != int32(n)) {
				l.decider.sched.removeCampaign(c)
				l.decider.recent.removeVersion(k)
			}
		}
	}
}

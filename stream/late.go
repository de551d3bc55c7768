package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"dinnerbell/state"
	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
)

// With join.late_subscribers, a client whose subscription is committed while a campaign
// of that restaurant is live gets the campaign. The store logs which subscriptions have
// appeared. The lane's reader goes through that log, finds the campaigns that a new
// subscriber has missed, and hands them to decide as LATE PICKS. The lane's row holds the
// position in the source up to which the log is handled; it moves in the transaction of
// the step that notifies. docs/design/delivery.md gives the order of all this and the
// reasons.

// errSetBack ends a session whose subscriptions were replaced by older ones, as a
// snapshot that began earlier does. The next session waits until they have come as far
// as the lane again.
var errSetBack = errors.New("the local subscriptions were set back behind the position that the lane has handled")

// errLateChanged ends a session whose late pick met a campaign that goes on under another
// version. The next session looks it up again.
var errLateChanged = errors.New("a campaign has another version and goes on where it was")

// lateWork connects the goroutines of a session that serve late subscribers. It is nil
// where join.late_subscribers is off.
type lateWork struct {
	views       viewOrder          // decide, commit → reader
	restaurants *restaurantSet     // decide → reader
	batches     chan lateBatch     // reader → decide
	rejoins     chan *liveCampaign // rejoiner → decide
	rejoining   rejoinList         // commit → rejoiner

	// passed: everything up to here needs no notification beyond the batches that were
	// handed to decide before. It is X when the gate opens.
	passed atomic.Uint64
}

func newLateWork() *lateWork {
	return &lateWork{restaurants: newRestaurantSet(), batches: make(chan lateBatch), rejoins: make(chan *liveCampaign), rejoining: rejoinList{wake: make(chan struct{}, 1)}}
}

// settleView notes that a view's step is given up, since it changes nothing.
func (w *lateWork) settleView(view int64) {
	if w != nil {
		w.views.settleView(view)
	}
}

// applyStep publishes a committed step to the reader and to the rejoiner.
func (w *lateWork) applyStep(st *step) {
	if w != nil {
		w.rejoining.applyStep(st)
		w.views.settleView(st.view)
	}
}

// lateBatch is handed to decide: late picks that fit into one step.
type lateBatch struct {
	picks []*latePick
	upTo  id.LSN // handled once the picks are in a step; 0: more picks of the same position follow
}

// latePick is a campaign and the clients who subscribed after its join had passed them.
type latePick struct {
	live    *liveCampaign // of its own: not the one in the schedule
	clients []id.ID       // sorted; shared by the picks of one restaurant
}

// Bounds of a late batch. A pick costs the commit a round trip, so that many picks in
// one step would delay all others of the lane.
const (
	latePicks = 100
	// lateShare of a step's clients and bytes are late subscribers at most.
	lateShare = 4
)

// reachGate keeps a session from joining anything before the subscriptions have come to
// the position that the lane has handled: such a join would pass over clients whose
// changes are counted as handled.
type reachGate struct {
	opened chan struct{}
	at     atomic.Uint64 // what the session waits for; 0: not known yet
}

func newReachGate(at id.LSN) *reachGate {
	g := &reachGate{opened: make(chan struct{})}
	g.at.Store(uint64(at))
	return g
}

// awaitReached waits until the gate is open. A nil gate is open.
func (g *reachGate) awaitReached(ctx context.Context) error {
	if g == nil {
		return nil
	}
	select {
	case <-g.opened:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// waitsFor returns the position that an unopened gate waits for, else 0.
func (g *reachGate) waitsFor() id.LSN {
	if g == nil {
		return 0
	}
	select {
	case <-g.opened:
		return 0
	default:
		return id.LSN(g.at.Load())
	}
}

// hasReached reports whether subscriptions that end at end hold every change up to lsn.
// The floor of a new log is one behind the end of the rows, and each mend at the same
// position raises it by one. No transaction ends there: ends are multiples of eight.
func hasReached(end, lsn id.LSN) bool { return end|7 >= lsn }

// isLate reports whether late subscribers are served.
func (d *decider) isLate() bool { return d.late != nil }

// lateInput returns the channels from which decide receives late batches and campaigns
// to join again now; nil where there is no room for them.
func (d *decider) lateInput() (batches <-chan lateBatch, rejoins <-chan *liveCampaign) {
	if !d.isLate() {
		return nil, nil
	}
	if len(d.latePicks) == 0 && d.lateUpTo == 0 {
		batches = d.late.batches
	}
	if d.sched.rejoining < maxRejoinLive {
		rejoins = d.late.rejoins
	}
	return batches, rejoins
}

func (d *decider) enqueueLate(b lateBatch) { d.latePicks, d.lateUpTo = b.picks, b.upTo }

// noteRestaurant puts a campaign's restaurant into the set. It is called before a view is
// opened that the campaign may be joined with.
func (d *decider) noteRestaurant(restaurant id.ID, end int64) {
	if d.isLate() {
		d.late.restaurants.add(restaurant, end, d.lane.svc.now().Unix())
	}
}

// noteRestaurants is noteRestaurant for messages.
func (d *decider) noteRestaurants(list []message) {
	if !d.isLate() {
		return
	}
	for i := range list {
		c := list[i].campaign
		if c == nil {
			continue
		}
		if restaurant, err := id.Pack(c.RestaurantID); err == nil { // see acceptCampaign for the error
			d.noteRestaurant(restaurant, c.End)
		}
	}
}

// openView numbers the step's view and opens it. The position that counts as handled is
// read first: the view must have reached it.
func (d *decider) openView(st *step) (*state.Scan, error) {
	if d.isLate() {
		if len(d.latePicks) == 0 {
			d.handled = max(d.handled, id.LSN(d.late.passed.Load()))
		}
		st.view = d.late.views.beginView()
	}
	scan, err := d.lane.svc.store.NewScan()
	if err != nil {
		return nil, fmt.Errorf("read subscriptions: %w", err)
	}
	return scan, nil
}

// checkReached returns an error if a view has not reached the position that the lane has
// handled. Nobody may be picked from such a view.
func (d *decider) checkReached(scan *state.Scan) error {
	if d.isLate() && !hasReached(scan.End(), d.handled) {
		return errSetBack
	}
	return nil
}

// pickLate adds the late picks at hand to the step. It returns the clients and the bytes
// that they take.
func (d *decider) pickLate(st *step, scan *state.Scan) (clients, bytes int, err error) {
	for len(d.latePicks) > 0 {
		p := d.latePicks[0]
		if !st.canPickLate(p.live) {
			return clients, bytes, nil // the next step takes it
		}
		d.latePicks = d.latePicks[1:]
		if st.isReplaced(p.live) {
			continue
		}
		if err := d.checkReached(scan); err != nil {
			return clients, bytes, err
		}
		there := &id.List{}
		if err := scan.Subscribed(there, p.live.restaurant, p.clients); err != nil {
			return clients, bytes, err
		}
		if there = d.dropUnservable(st, there, p.live); there.Len() > 0 {
			st.picks = append(st.picks, &clientPick{live: p.live, clients: there, late: true})
			clients, bytes = clients+there.Len(), bytes+there.Len()*p.live.Size()
		}
	}
	return clients, bytes, nil
}

// isReplaced reports whether the step has accepted a message in the place of a late
// pick's version: that one is joined from its first client.
func (st *step) isReplaced(l *liveCampaign) bool {
	r := st.rows[l.Key()]
	return r != nil && r.accept && r.version > l.version
}

// noteHandled moves the step's position in the source: to that of the late batch whose
// last pick the step has taken, and with any other change of the lane as far as the
// reader has come.
func (d *decider) noteHandled(st *step) {
	if !d.isLate() || len(d.latePicks) > 0 {
		return
	}
	moves := d.lateUpTo > 0 || !st.isEmpty()
	d.handled, d.lateUpTo = max(d.handled, d.lateUpTo), 0
	if moves && d.handled > d.committing {
		st.sourceLSN, d.committing = d.handled, d.handled
	}
}

// latePick returns the step's late pick of a campaign, or nil.
func (st *step) latePick(k campaign.Key) *clientPick {
	for _, p := range st.picks {
		if p.late && p.live.Key() == k {
			return p
		}
	}
	return nil
}

// canPickLate reports whether the step can take a late pick: of a campaign it takes those
// of one version.
func (st *step) canPickLate(l *liveCampaign) bool {
	p := st.latePick(l.Key())
	return p == nil || p.live.version == l.version
}

// lateRows lists the campaigns of the step's late picks with the number of clients whose
// row is new. Those without a new row compare nothing.
func (st *step) lateRows() (rows []sink.LateRow) {
	for _, p := range st.picks {
		if !p.changesLate() {
			continue
		}
		if n := len(rows); n > 0 && rows[n-1].Key == p.live.Key() { // seal has sorted them
			rows[n-1].Clients += p.notified
			rows[n-1].Refusal = cmp.Or(rows[n-1].Refusal, p.refusal)
			continue
		}
		rows = append(rows, sink.LateRow{Key: p.live.Key(), Version: p.live.version, Clients: p.notified, Refusal: p.refusal})
	}
	return rows
}

// changesLate reports whether the pick is one of late subscribers that changes the row of
// its campaign.
func (p *clientPick) changesLate() bool { return p.late && (p.notified > 0 || p.refusal != "") }

// lateNotified counts the step's late subscribers.
func (st *step) lateNotified() (n int64) {
	for _, p := range st.picks {
		if p.late {
			n += p.notified
		}
	}
	return n
}

// dropStaleLate removes the late picks whose campaign is not as it was when it was looked
// up: it is another lane's, an operator holds it, or it is joined from its first client
// now. In each case somebody joins it later with subscriptions that have the pick.
func (c *committer) dropStaleLate(ctx context.Context, st *step) error {
	rows := st.lateRows()
	if len(rows) == 0 {
		return nil
	}
	states, err := c.claim.Tables.ReadLateStates(ctx, c.claim.Conn, c.lane.id, rows)
	if err != nil {
		return err
	}
	st.picks = slices.DeleteFunc(st.picks, func(p *clientPick) bool {
		state := states[p.live.Key()]
		if p.changesLate() && state == sink.LateChanged {
			err = errLateChanged
		}
		return p.changesLate() && state == sink.LateLost
	})
	return err
}

// handledLSN returns how far the lane has handled the source: as far as its reader has
// come, but no further than the lane's row while late picks are not committed.
func (l *lane) handledLSN() id.LSN {
	passed := l.passedLSN.Load() // before handedLSN, which the reader sets before it
	if committed := l.committedLSN.Load(); committed < l.handedLSN.Load() {
		return id.LSN(committed)
	}
	return id.LSN(passed)
}

// noteLate counts the late subscribers of a committed step.
func (l *lane) noteLate(st *step) {
	if st.sourceLSN > 0 {
		l.committedLSN.Store(uint64(st.sourceLSN))
	}
	if n := st.lateNotified(); n > 0 {
		l.svc.counters.lateNotified.Add(n)
	}
}

// trimEvery is how often the log of new subscriptions is trimmed behind the lanes.
const trimEvery = 5 * time.Second

// trimLog drops what every lane of the deployment has handled from the log of new
// subscriptions, until ctx ends: the other lanes may come to this daemon.
func (s *Service) trimLog(ctx context.Context) error {
	readers := s.readers.Open()
	defer readers.Close()
	tick := time.NewTicker(s.trimEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := s.trimLogOnce(ctx, readers); err != nil && ctx.Err() == nil {
			s.cfg.Logger.Debug("the log of new subscriptions is not trimmed", "error", err)
		}
	}
}

func (s *Service) trimLogOnce(ctx context.Context, readers sink.Querier) error {
	src, ok := s.store.Source()
	start, on := s.store.LogStart()
	if !ok || !on {
		return nil
	}
	upTo, err := bounded(ctx, s.cfg.SinkTimeout, func(ctx context.Context) (id.LSN, error) {
		return s.cfg.Sink.Tables().ReadHandled(ctx, readers, sourceID(&src, start.History))
	})
	if err != nil || upTo == 0 {
		return err
	}
	return s.store.TrimLog(upTo)
}

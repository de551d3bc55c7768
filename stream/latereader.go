package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"dinnerbell/internal/failpoint"
	"dinnerbell/state"
	"dinnerbell/state/id"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
)

const (
	// lateEntries is how many entries of the log are read at once.
	lateEntries = 4096
	// lateRestaurants and lateCampaigns bound one look-up.
	lateRestaurants, lateCampaigns = 64, 128
	// idleMove is how often a lane that decides nothing moves its position over changes
	// that concern none of its campaigns, and idleBytes how far the source's log may come
	// before it moves over no changes at all.
	idleMove  = 5 * time.Second
	idleBytes = 64 << 20
)

// servedReader reads a page of the campaigns that the lane has joined, of some
// restaurants; see [sink.Tables.ReadServed].
type servedReader func(ctx context.Context, ask []sink.LateRestaurant) (list []sink.ServedCampaign, rest []sink.LateRestaurant, err error)

// errSourceChanged ends a session whose mirror has begun to follow another source, or
// another history of it.
var errSourceChanged = errors.New("the subscriptions were rebuilt, or come from another source or another history of it")

// lateReader reads the log of new subscriptions and hands decide the campaigns that
// these have missed.
//
// A join's view is opened after its restaurant is in the set. So where the reader meets
// an entry that a view lacks, that restaurant is in the set. The reader then waits for the
// steps of all views that are open, and finds their campaigns in Postgres. A client
// behind the cursor that it finds there is a late subscriber. A client before the cursor
// is none: the join goes on there with a view that has the entry.
type lateReader struct {
	lane      *lane
	claim     *takeover.Claim
	store     *state.Store
	reader    sink.Querier
	served    servedReader
	late      *lateWork
	gate      *reachGate
	committed func(context.Context) error // waits until the subscriptions hold what was committed before the call
	timeout   time.Duration
	log       *slog.Logger

	source  state.Source
	history uint64          // of the log
	at      state.LogCursor // read up to here
	settled id.LSN          // the views that lack changes before it are settled
	sent    id.LSN          // the position that was handed to decide last
	sentAt  time.Time
	passed  bool // entries lie between sent and at

	pending lateBatch
	clients int // in pending
	bytes   int // of contents in pending
}

// run works until ctx ends.
func (r *lateReader) run(ctx context.Context) error {
	applied, stop := r.store.WatchApplied()
	defer stop()
	if err := r.beginReading(ctx, applied); err != nil {
		return err
	}
	tick := time.NewTicker(idleMove)
	defer tick.Stop()
	for {
		more, err := r.readOnce(ctx)
		if err != nil {
			return err
		}
		if more {
			continue
		}
		if err := r.moveIdle(ctx); err != nil {
			return err
		}
		select {
		case <-applied:
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// beginReading decides from where the lane reads the log, and opens the gate once a mirror may
// join: it has reached the position that the lane has handled. Where the log does not
// reach back to that position, the lane's campaigns are joined again.
func (r *lateReader) beginReading(ctx context.Context, applied <-chan struct{}) error {
	if err := r.awaitSource(ctx, applied); err != nil {
		return err
	}
	start, on := r.store.LogStart()
	if !on {
		return errors.New("join.late_subscribers is true, and the local state keeps no log of new subscriptions")
	}
	r.history = start.History
	x := r.claim.SourceLSN
	why := ""
	switch {
	case x == 0:
		why = "late subscribers were not served so far"
	case r.claim.SourceID != r.sourceID():
		why = "the source is another one, on another timeline, or was set back"
	case x < start.Floor:
		why = "the log of new subscriptions does not reach back to the lane's position"
	default:
		reached, err := r.awaitReached(ctx, applied, x)
		if err != nil {
			return err
		}
		if !reached {
			why = "the source was set back behind the lane's position"
		}
	}
	if why != "" {
		x = max(start.Floor, r.store.EndLSN())
		if err := r.rejoinAll(ctx, x, why); err != nil {
			return err
		}
		r.gate.at.Store(uint64(x))
		if err := r.awaitFloor(ctx, applied, x); err != nil {
			return err
		}
	}
	now := r.lane.svc.now().Unix()
	if _, err := bounded(ctx, 10*r.timeout, func(ctx context.Context) (any, error) {
		return nil, r.claim.Tables.EachRestaurant(ctx, r.reader, r.lane.id, now-keepRestaurant, func(restaurant string, end int64) {
			if packed, err := id.Pack(restaurant); err == nil { // else no subscription has it
				r.late.restaurants.add(packed, end, now)
			}
		})
	}); err != nil {
		return err
	}
	r.at, r.sent, r.sentAt = state.LogCursor{End: x}, x, time.Now()
	r.late.passed.Store(uint64(x))
	r.lane.committedLSN.Store(uint64(x))
	r.lane.handedLSN.Store(uint64(x))
	r.lane.passedLSN.Store(uint64(x))
	close(r.gate.opened)
	return nil
}

// awaitSource waits until the store has subscriptions.
func (r *lateReader) awaitSource(ctx context.Context, applied <-chan struct{}) error {
	for {
		src, ok := r.store.Source()
		if ok {
			r.source = src
			return nil
		}
		select {
		case <-applied:
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// awaitFloor waits until the mirror is at x, where its log begins: a transaction that the
// log could not hold is not visible yet, or the source was set back in this moment. Until
// then nothing is joined; messages are accepted.
func (r *lateReader) awaitFloor(ctx context.Context, applied <-chan struct{}, x id.LSN) error {
	for {
		if reached, err := r.awaitReached(ctx, applied, x); reached || err != nil {
			return err
		}
		if !r.isSameHistory() {
			return errSourceChanged
		}
		select {
		case <-applied:
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// isSameHistory reports whether positions of the log still mean to the store what they
// meant when the session began.
func (r *lateReader) isSameHistory() bool {
	src, _ := r.store.Source()
	start, _ := r.store.LogStart()
	return src == r.source && start.History == r.history
}

// awaitReached waits until the subscriptions have come to the position x. It returns
// false if they never will: the source itself is not that far.
func (r *lateReader) awaitReached(ctx context.Context, applied <-chan struct{}, x id.LSN) (bool, error) {
	if hasReached(r.store.EndLSN(), x) {
		return true, nil
	}
	r.log.Info("joins wait until the local subscriptions have come as far as the lane", "lane", r.lane.id, "lsn", r.store.EndLSN(), "lane_lsn", x)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fresh := make(chan error, 1)
	go func() { fresh <- r.committed(ctx) }()
	for {
		select {
		case <-applied:
		case err := <-fresh:
			if err != nil {
				return false, fmt.Errorf("wait for fresh subscriptions: %w", err)
			}
			return hasReached(r.store.EndLSN(), x), nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
		if hasReached(r.store.EndLSN(), x) {
			return true, nil
		}
	}
}

// rejoinAll has the lane's campaigns that are not over joined again, with subscriptions
// that have reached x.
func (r *lateReader) rejoinAll(ctx context.Context, x id.LSN, why string) error {
	campaigns, err := bounded(ctx, 10*r.timeout, func(ctx context.Context) (int64, error) {
		return r.claim.Tables.Rejoin(ctx, r.reader, r.lane.id, r.claim.Epoch, r.sourceID(), x, r.lane.svc.now().Unix())
	})
	if err != nil {
		return err
	}
	failpoint.Hit("late/rejoin-marked")
	if campaigns > 0 || r.claim.SourceLSN > 0 {
		r.log.Info("campaigns that are not over are joined again for late subscribers", "lane", r.lane.id, "campaigns", campaigns, "reason", why)
	}
	return nil
}

// readOnce reads and handles the next entries. It returns false if there are no more.
func (r *lateReader) readOnce(ctx context.Context) (more bool, err error) {
	read := newEntries{in: r.late.restaurants}
	next, done, err := r.store.ReadLog(r.at, lateEntries, read.add)
	if errors.Is(err, state.ErrLogGap) {
		return false, fmt.Errorf("read the log of new subscriptions: %w", err)
	}
	if err != nil {
		return false, err
	}
	if !r.isSameHistory() { // the entries may be of another one
		return false, errSourceChanged
	}
	if err := r.handleEntries(ctx, &read, next); err != nil {
		return false, err
	}
	r.lane.svc.counters.lateEntries.Add(int64(read.count))
	r.at, r.passed = next, r.passed || read.count > 0
	return !done, nil
}

// handleEntries hands decide what some entries give, and moves the position to next where
// that is the end of a transaction.
func (r *lateReader) handleEntries(ctx context.Context, read *newEntries, next state.LogCursor) error {
	if found := read.sorted(); len(found) > 0 {
		failpoint.Hit("late/entries-read")
		if err := r.settleViews(ctx, read.last); err != nil {
			return err
		}
		for chunk := range slices.Chunk(found, lateRestaurants) {
			if err := r.handleRestaurants(ctx, chunk); err != nil {
				return err
			}
		}
	}
	if next.InTransaction() {
		return r.handBatchOver(ctx, 0)
	}
	if len(r.pending.picks) > 0 {
		return r.handBatchOver(ctx, next.End)
	}
	r.late.passed.Store(max(r.late.passed.Load(), uint64(next.End)))
	r.lane.passedLSN.Store(uint64(next.End))
	return nil
}

// newEntries are entries of the log, grouped by restaurant, without restaurants that have
// no campaign.
type newEntries struct {
	in           *restaurantSet
	count        int    // new subscriptions, those of other restaurants too
	last         id.LSN // end of the last transaction with an entry that is kept
	found        []newSubscribers
	byRestaurant map[id.ID]int // index in found
}

// newSubscribers are the clients who have appeared among the subscribers of a
// restaurant.
type newSubscribers struct {
	restaurant id.ID
	clients    []id.ID // sorted, each once
}

// add adds an entry.
func (n *newEntries) add(e *state.LogEntry) error {
	if e.Kind != state.LogAppeared {
		return nil
	}
	n.count++
	if !n.in.has(e.Restaurant) {
		return nil
	}
	n.last = e.End
	at, ok := n.byRestaurant[e.Restaurant]
	if !ok {
		if n.byRestaurant == nil {
			n.byRestaurant = map[id.ID]int{}
		}
		restaurant := id.ID(strings.Clone(string(e.Restaurant)))
		at = len(n.found)
		n.byRestaurant[restaurant] = at
		n.found = append(n.found, newSubscribers{restaurant: restaurant})
	}
	n.found[at].clients = append(n.found[at].clients, id.ID(strings.Clone(string(e.Client))))
	return nil
}

// sorted returns the groups with sorted clients.
func (n *newEntries) sorted() []newSubscribers {
	for i := range n.found {
		slices.Sort(n.found[i].clients)
		n.found[i].clients = slices.Compact(n.found[i].clients)
	}
	return n.found
}

// settleViews waits until no step is under way whose view lacks the transaction that ends
// at last, or one before.
func (r *lateReader) settleViews(ctx context.Context, last id.LSN) error {
	if last <= r.settled {
		return nil
	}
	visible := r.store.EndLSN()
	if err := r.late.views.awaitSettled(ctx); err != nil {
		return err
	}
	r.settled = max(last, visible)
	return nil
}

// handleRestaurants looks up the campaigns of some restaurants and hands late picks to
// decide.
func (r *lateReader) handleRestaurants(ctx context.Context, found []newSubscribers) error {
	now := r.lane.svc.now().Unix()
	rest := make([]sink.LateRestaurant, len(found))
	for i, f := range found {
		rest[i] = sink.LateRestaurant{Restaurant: f.restaurant.Text(), Least: f.clients[0], AfterEnd: now + 1}
	}
	for len(rest) > 0 {
		found = found[len(found)-len(rest):] // rest is a tail of what was asked
		asked := rest
		var list []sink.ServedCampaign
		var err error
		list, rest, err = r.served(ctx, asked)
		if err != nil {
			return err
		}
		for _, c := range list {
			if err := r.pickClients(ctx, c, &found[c.Of]); err != nil {
				return err
			}
		}
	}
	return nil
}

// readServed is the servedReader of the campaign table.
func (r *lateReader) readServed(ctx context.Context, ask []sink.LateRestaurant) (list []sink.ServedCampaign, rest []sink.LateRestaurant, err error) {
	list, err = bounded(ctx, r.timeout, func(ctx context.Context) (list []sink.ServedCampaign, err error) {
		list, rest, err = r.claim.Tables.ReadServed(ctx, r.reader, r.lane.id, ask, lateCampaigns, r.claim.Config.StepBytes)
		return list, err
	})
	return list, rest, err
}

// pickClients adds late picks of a campaign to the batch at hand. The batch goes to decide when
// it is full.
func (r *lateReader) pickClients(ctx context.Context, c sink.ServedCampaign, of *newSubscribers) error {
	clients := of.clients
	if c.Cursor != "" { // a client behind it in the order of the join is no late one
		n, at := slices.BinarySearch(clients, c.Cursor)
		if at {
			n++
		}
		clients = clients[:n]
	}
	most := max(1, r.lane.stepClients()/lateShare)
	for len(clients) > 0 {
		n := min(len(clients), most-r.clients)
		l := &liveCampaign{Campaign: c.Campaign, from: c.From, owner: r.lane.id, version: c.Version, restaurant: of.restaurant}
		l.contested.Store(true)
		r.pending.picks = append(r.pending.picks, &latePick{live: l, clients: clients[:n]})
		r.clients, r.bytes, clients = r.clients+n, r.bytes+n*c.Size(), clients[n:]
		if r.clients < most && len(r.pending.picks) < latePicks && r.bytes < r.claim.Config.StepBytes/lateShare {
			continue
		}
		if err := r.handBatchOver(ctx, 0); err != nil {
			return err
		}
	}
	return nil
}

// handBatchOver hands the batch at hand to decide. With its picks everything up to upTo is
// handled, unless that is 0.
func (r *lateReader) handBatchOver(ctx context.Context, upTo id.LSN) error {
	if len(r.pending.picks) == 0 && upTo == 0 {
		return nil
	}
	r.pending.upTo = upTo
	failpoint.Hit("late/picked")
	if upTo > 0 {
		r.lane.handedLSN.Store(uint64(upTo))
	}
	select {
	case r.late.batches <- r.pending:
	case <-ctx.Done():
		return ctx.Err()
	}
	r.pending, r.clients, r.bytes = lateBatch{}, 0, 0
	if upTo > 0 {
		r.sent, r.sentAt, r.passed = upTo, time.Now(), false
		r.lane.passedLSN.Store(uint64(upTo))
	}
	return nil
}

// moveIdle moves the lane's position if no step has done so for some time.
func (r *lateReader) moveIdle(ctx context.Context) error {
	passed := id.LSN(r.late.passed.Load())
	if at := id.LSN(r.lane.committedLSN.Load()); at > r.sent {
		r.sent = at
	}
	if passed <= r.sent || time.Since(r.sentAt) < idleMove || !r.passed && passed-r.sent < idleBytes {
		return nil
	}
	return r.handBatchOver(ctx, passed)
}

// sourceID names what the reader's positions count in.
func (r *lateReader) sourceID() string { return sourceID(&r.source, r.history) }

// sourceID names the source in which positions of the log of new subscriptions count:
// the stream and its history, the database and the table.
func sourceID(src *state.Source, history uint64) string {
	name := fmt.Sprintf("%s/%s/%d/%d", src.TimelineID(), src.Database, src.TableOID, src.PublicationOID)
	if history != 0 {
		name += fmt.Sprintf("/%016x", history)
	}
	return name
}

package stream

import (
	"context"
	"fmt"
	"time"

	"dinnerbell/internal/failpoint"
	"dinnerbell/state"
)

// recentKeys is how many accepted keys decide remembers. It must exceed the
// messages that can be in flight between a look-up in the campaign table and
// the commit of what was accepted before: an arrival or two in the backlog, one
// in intake's hands, a step in decide and two in flight.
const recentKeys = 16 * intakeMessages

// decider owns the lane's schedule: it accepts messages, joins campaigns with
// the subscriptions, and builds steps. It runs one step ahead of the commit.
//
// A message is accepted by the step that serves it first, not earlier: most
// campaigns are then inserted as finished, once, and never updated.
type decider struct {
	s        *session
	sched    *schedule
	backlog  []message     // arrived and not accepted yet, in the order of their offsets
	replayed []message     // the same of a replay, which comes after them
	recent   map[key]known // what was accepted lately, newer than any look-up
	order    []key         // of recent, oldest first
	ended    int64         // the second for which ended campaigns were taken out
}

func newDecider(s *session) *decider {
	return &decider{s: s, sched: newSchedule(), recent: map[key]known{}}
}

func (d *decider) run(ctx context.Context) error {
	for {
		if err := d.gather(ctx); err != nil {
			return err
		}
		st := newStep(d.s.table)
		if err := d.join(st); err != nil {
			return err
		}
		d.s.lane.setLive(d.sched.len())
		if len(d.sched.gone) > 0 {
			d.s.forget(d.sched.gone...)
			d.sched.gone = d.sched.gone[:0]
		}
		if st.empty() {
			continue
		}
		if err := d.send(ctx, st); err != nil {
			return err
		}
	}
}

// gather takes what has arrived. It waits only when there is nothing to do, and
// takes nothing while there is a backlog or too many campaigns are live already.
func (d *decider) gather(ctx context.Context) error {
	for d.roomForMore() && len(d.backlog) < intakeMessages {
		if d.idle() {
			select {
			case a := <-d.s.arrivals:
				d.take(a)
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		select {
		case a := <-d.s.arrivals:
			d.take(a)
		default:
			return nil
		}
	}
	return ctx.Err()
}

func (d *decider) idle() bool {
	return d.sched.len() == 0 && len(d.backlog) == 0 && len(d.replayed) == 0
}

func (d *decider) roomForMore() bool {
	return d.sched.len() < d.s.cfg.LiveCampaigns && d.sched.bytes < d.s.cfg.LiveBytes
}

func (d *decider) take(a arrival) {
	for _, l := range a.due {
		// A message accepted since it was loaded has taken its place.
		r, ok := d.recent[l.key()]
		if ok && r.version != l.version {
			continue
		}
		// A replay has begun its fan-out anew: the cursor that was loaded is not its.
		if there := d.sched.byKey[l.key()]; there == nil || there.version != l.version {
			d.sched.add(l)
		}
	}
	d.backlog = append(d.backlog, a.messages...)
	d.replayed = append(d.replayed, a.replayed...)
}

// acceptNext accepts the next message of the backlog. It returns false where
// there is none, or none that this step can take.
func (d *decider) acceptNext(st *step) bool {
	if !d.roomForMore() || len(st.rows)+len(st.dead) >= intakeMessages || st.size >= d.s.cfg.StepBytes {
		return false
	}
	if len(d.backlog) == 0 {
		return d.acceptReplayed(st)
	}
	m := &d.backlog[0]
	if m.campaign != nil && !st.takes(m) {
		return false
	}
	d.backlog = d.backlog[1:]
	st.nextOffset = m.offset + 1
	if m.dead != nil {
		d.s.fitDeadLetter(m.dead)
		st.dead = append(st.dead, *m.dead)
		st.outcomes = append(st.outcomes, outcome{kind: outcomeDead, offset: m.offset, reason: m.dead.reason})
		st.size += len(m.dead.value)
		return true
	}
	st.size += m.campaign.size()
	d.accept(st, m)
	return true
}

// accept applies "the newest message of one key wins".
func (d *decider) accept(st *step, m *message) {
	k := m.campaign.key()
	before := d.newest(m)
	now := known{version: version{d.s.lane.id, m.offset}, time: m.time, fingerprint: m.fingerprint}
	if before != nil && !newer(now, *before) {
		d.unused(m)
		return
	}
	d.remember(k, now)
	if before != nil && before.fingerprint == now.fingerprint {
		d.unused(m)
		d.repeat(st, m, before, now)
		return
	}
	d.install(st, m, before, now)
}

// newest is the newest message of m's key that was accepted so far; nil if none.
// What this lane accepted lately may not be committed yet; but another lane may
// have accepted something newer since.
func (d *decider) newest(m *message) *known {
	if r, ok := d.recent[m.campaign.key()]; ok && (m.known == nil || m.known.version == r.version || !newer(*m.known, r)) {
		return &r
	}
	return m.known
}

// unused drops the delivered cache of a message that is not joined.
func (d *decider) unused(m *message) {
	if m.delivered != "" {
		d.s.forget(m.delivered)
	}
}

// install puts the message in the place of what its campaign was before.
func (d *decider) install(st *step, m *message, before *known, now known) {
	k := m.campaign.key()
	if old := d.sched.byKey[k]; old != nil {
		d.sched.remove(old)
	}
	l := &live{Campaign: m.campaign, version: now.version, delivered: m.delivered, replayed: m.feed != nil}
	l.contested.Store(before != nil || m.shared || m.have > 0)
	if err := l.pack(); err != nil { // cannot happen: ParseCampaign refused what cannot be packed
		d.s.cfg.Logger.Error("campaign cannot be packed", "campaign", k.campaign, "restaurant", k.restaurant, "error", err)
		return
	}
	r := &row{live: l, msgTime: m.time, fingerprint: now.fingerprint, replaces: before, feed: m.feed, state: statePending}
	switch {
	case l.End <= time.Now().Unix():
		r.state = stateExpired
		st.expired++
		st.noteExpired(l, before)
	case l.Start <= m.fresh.Unix(): // otherwise it meets the subscriptions of its start
		l.started = true
		d.sched.add(l)
	}
	st.accept(r)
}

// repeat is an identical message: it does nothing to the campaign, but it is
// the newest now, and what is older than it must not take its place. A live
// campaign leaves the schedule and comes back through the agenda, with its
// cursor, once the row bears the new version.
func (d *decider) repeat(st *step, m *message, before *known, now known) {
	if r := st.rows[m.campaign.key()]; r != nil { // accepted by this same step
		r.version, r.msgTime = now.version, now.time
		return
	}
	if l := d.sched.byKey[m.campaign.key()]; l != nil {
		d.sched.remove(l)
	}
	st.repeat(&row{live: &live{Campaign: m.campaign, version: now.version}, msgTime: now.time, replaces: before})
}

// newer tells whether message a comes after message b of the same key: by
// offset on one partition, by the record's time across partitions, where
// nothing else orders them.
func newer(a, b known) bool {
	if a.version.lane == b.version.lane {
		return a.version.offset > b.version.offset
	}
	return a.time >= b.time
}

func (d *decider) remember(k key, n known) {
	if _, ok := d.recent[k]; !ok {
		d.order = append(d.order, k)
	}
	d.recent[k] = n
	for len(d.order) > recentKeys {
		delete(d.recent, d.order[0])
		d.order = d.order[1:]
	}
}

// join fills the step with clients, from one consistent view of the state. The
// view is younger than everything in the backlog: it is made after gather.
func (d *decider) join(st *step) error {
	if now := time.Now().Unix(); now > d.ended {
		d.ended = now
		for _, l := range d.sched.takeEnded(now) {
			st.progress(l, stateFinished)
		}
	}
	if d.idle() {
		return nil
	}
	scan, err := d.s.lane.svc.store.NewScan()
	if err != nil {
		return fmt.Errorf("read subscriptions: %w", err)
	}
	bytes := d.s.cfg.StepBytes
	more := func() bool { return bytes > 0 && d.acceptNext(st) }
	err = d.sched.serve(d.s.cfg.StepClients, more, func(l *live, room int) (int, bool, error) {
		if bytes <= 0 {
			return room, false, nil
		}
		per := l.size()
		used, exhausted, err := d.pick(st, scan, l, max(1, min(room, bytes/per)))
		bytes -= used * per
		return used + 1, exhausted, err
	})
	if closeErr := scan.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("read subscriptions: %w", err)
	}
	return nil
}

// pick takes up to room clients of one campaign and moves its cursor.
func (d *decider) pick(st *step, scan *state.Scan, l *live, room int) (used int, exhausted bool, err error) {
	if l.refused.Load() {
		st.progress(l, stateFinished)
		return 0, true, nil
	}
	clients := &state.IDList{}
	if l.fresh {
		clients.Grow(min(room, 16)) // most audiences are small
	} else {
		clients.Grow(room)
	}
	last, done, err := scan.Undelivered(clients, l.delivered, l.restaurant, l.cursor, room)
	if err != nil {
		return 0, false, err
	}
	used = clients.Len()
	if last != "" {
		l.cursor = last
	}
	clients = d.servable(st, clients, l)
	if clients.Len() > 0 {
		st.picks = append(st.picks, &pick{live: l, clients: clients})
	}
	if done {
		if l.cursor == "" { // no client of the restaurant was ever looked at
			st.outcomes = append(st.outcomes, outcome{kind: outcomeWithoutAudience, campaign: l.Campaign, offset: l.version.offset})
		}
		st.progress(l, stateFinished)
	} else {
		st.progress(l, statePending)
	}
	return used, done, nil
}

// servable leaves out clients whose id fits neither the feedback table nor a
// record. The step's dead letters name them: they cannot be notified.
func (d *decider) servable(st *step, clients *state.IDList, l *live) *state.IDList {
	// A record's size grows by nine bytes at most for each byte of the id; size
	// is no less than what the campaign's own part takes where nothing in it is
	// escaped, and render says it exactly where that is not enough.
	unfit := func(id state.ID) string {
		n := id.TextLen()
		switch {
		case n > maxIDBytes:
			return fmt.Sprintf("client ids of more than %d bytes cannot be indexed", maxIDBytes)
		case 6*l.size()+9*n+headroom > d.s.recordLimit && render(l.Campaign, 0).recordSize(n)+headroom > d.s.recordLimit:
			return fmt.Sprintf("the notification is larger than the %d bytes that topic %s accepts", d.s.recordLimit, d.s.cfg.Kafka.Notifications)
		}
		return d.s.table.refusesClient(id)
	}
	for i := range clients.Len() {
		if unfit(clients.At(i)) == "" {
			continue
		}
		kept := &state.IDList{}
		for j := range clients.Len() {
			if id := clients.At(j); unfit(id) == "" {
				kept.Append(id)
			} else {
				st.leaveOut(l, unfit(id), id)
			}
		}
		return kept
	}
	return clients
}

// send seals the step and hands it to the commit. While the commit is not
// ready for it, it is sealed anew each second, so that what is stamped and what
// has ended stay true.
func (d *decider) send(ctx context.Context, st *step) error {
	select {
	case st.copyData = <-d.s.buffers:
	default:
	}
	st.seal(time.Now().Unix())
	failpoint.Hit("decide/sealed")
	for {
		left := time.Until(time.Unix(st.trigger+1, 0))
		again := time.NewTimer(max(left, 0))
		select {
		case d.s.steps <- st:
			again.Stop()
			return nil
		case <-again.C:
			st.seal(time.Now().Unix())
		case <-ctx.Done():
			again.Stop()
			return ctx.Err()
		}
	}
}

package stream

import (
	"context"
	"slices"
	"time"

	"dinnerbell/internal/failpoint"
	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
)

// recentLimit is how many accepted messages the decider remembers. It must exceed the
// messages that can be in flight between a look-up in the campaign table and the
// commit of the messages accepted before it: one or two batches in the backlog, one
// in the intake, a step in the decider and two in flight.
const recentLimit = 16 * intakeMessages

// backlogShare: the decider receives no messages while its backlog has this part of
// StepBytes. One batch of large messages fills it, one of ordinary messages does not.
const backlogShare = 8

// decider owns the lane's schedule: it accepts messages, joins campaigns with
// the subscriptions, and builds a step when the committer asks for it.
//
// Messages are accepted strictly in the order of their offsets. Most are first
// messages of small campaigns, accepted by the step that serves them: their
// rows are inserted as finished, once, and never updated. A campaign that cannot be
// joined at once (the freshness barrier is shut, there is no room among the live
// ones, the message is an edit, the start lies ahead) is accepted as a pending row
// and comes back through the start times, so that a cancel behind it takes effect
// with the next step.
type decider struct {
	lane      *lane
	cfg       Config
	claim     *takeover.Claim
	delivered *deliveredCache
	corrected *correctedKeys
	guarded   *guardedCampaigns
	late      *lateWork // nil: late subscribers are not served
	arrivals  <-chan messageBatch
	due       <-chan []*liveCampaign
	demand    <-chan struct{} // from the committer: it can send a step
	steps     chan<- *step
	buffers   <-chan []byte // for COPY data

	sched    *schedule
	backlog  []message       // arrived and not accepted yet, in the order of their offsets
	weight   int             // of the backlog, in bytes
	replayed []message       // messages of a replay, which are accepted behind the backlog
	recent   *recentMessages // accepted lately: newer than any look-up
	asked    bool            // the committer waits for the next step
	ended    int64           // the second in which ended campaigns were last removed
	hold     time.Duration   // how long nobody can be notified, because of limits.notifications_per_second
	counted  id.List         // memory of countAudience

	latePicks  []*latePick // of one late batch, not in a step yet
	lateUpTo   id.LSN      // handled once they are; 0: their batch does not say so
	handled    id.LSN      // changes of the subscriptions up to here are handled with the steps that are built
	committing id.LSN      // the position that the last of these steps has moved the lane to
}

func newDecider(l *lane, cfg Config) *decider {
	return &decider{lane: l, cfg: cfg, corrected: &correctedKeys{}, guarded: newGuardedCampaigns(), sched: newSchedule(), recent: newRecentMessages(l.svc.recentLimit)}
}

func (d *decider) run(ctx context.Context) error {
	for {
		if err := d.receiveInput(ctx); err != nil {
			return err
		}
		st := newStep(d.claim.Feedback)
		if err := d.fillStep(st); err != nil {
			return err
		}
		d.noteSchedule()
		if len(d.sched.removedCaches) > 0 {
			d.delivered.deleteCaches(d.sched.removedCaches...)
			d.sched.removedCaches = d.sched.removedCaches[:0]
		}
		if st.isEmpty() {
			d.late.settleView(st.view)
			continue
		}
		d.hold = 0 // there may be more to accept
		if err := d.sealAndSubmit(ctx, st); err != nil {
			return err
		}
	}
}

// receiveInput receives messages and due campaigns until the committer asks for a step.
// So a step is built as late as possible, and a small campaign does not wait behind a
// step of a large one that nobody needs yet. receiveInput also waits when the decider has
// no work, or may notify nobody yet. It receives no messages while the backlog is full,
// and no campaigns while there is no room for them.
func (d *decider) receiveInput(ctx context.Context) error {
	for {
		arrivals, due := d.arrivals, d.due
		late, rejoins := d.lateInput()
		if len(d.backlog) >= intakeMessages || d.weight >= d.cfg.StepBytes/backlogShare {
			arrivals = nil
		}
		if !d.hasRoom() {
			due = nil
		}
		var demand <-chan struct{}
		var paced <-chan time.Time
		switch {
		case d.isIdle():
		case d.hold > 0:
			paced = time.After(d.hold)
		case !d.asked:
			demand = d.demand
			d.noteSchedule() // the wait may be long: nobody asks while Kafka is down
		default: // what waits by now goes into the step
			select {
			case a := <-arrivals:
				d.enqueueMessages(a)
			case list := <-due:
				d.enqueueDue(list)
			case b := <-late:
				d.enqueueLate(b)
			case l := <-rejoins:
				d.enqueueDue([]*liveCampaign{l})
			default:
				return ctx.Err()
			}
			continue
		}
		began := time.Now()
		select {
		case a := <-arrivals:
			d.enqueueMessages(a)
		case list := <-due:
			d.enqueueDue(list)
		case b := <-late:
			d.enqueueLate(b)
		case l := <-rejoins:
			d.enqueueDue([]*liveCampaign{l})
		case <-demand:
			d.asked = true
		case <-paced:
		case <-ctx.Done():
			return ctx.Err()
		}
		if paced != nil {
			d.lane.svc.pace.held.Add(int64(time.Since(began)))
		}
		d.hold = 0
	}
}

// noteSchedule shows the live campaigns in the status.
func (d *decider) noteSchedule() {
	d.lane.setLiveCount(d.sched.len())
	d.lane.noteFresh(d.sched.oldestFresh())
}

func (d *decider) isIdle() bool {
	return d.sched.len() == 0 && len(d.backlog) == 0 && len(d.replayed) == 0 && len(d.latePicks) == 0 && d.lateUpTo == 0
}

func (d *decider) hasRoom() bool {
	return d.sched.len()-d.sched.rejoining < d.cfg.LiveCampaigns && d.sched.bytes < d.cfg.LiveBytes
}

func (d *decider) enqueueMessages(a messageBatch) {
	d.backlog = append(d.backlog, a.messages...)
	for i := range a.messages {
		d.weight += a.messages[i].memorySize()
	}
	d.replayed = append(d.replayed, a.replayed...)
	d.noteRestaurants(a.messages)
	d.noteRestaurants(a.replayed)
}

// enqueueDue puts due campaigns into the schedule.
func (d *decider) enqueueDue(list []*liveCampaign) {
	d.forgetCorrected() // before the campaigns are compared with the remembered messages
	for _, l := range list {
		r, there := d.recent.versionOf(l.Key()), d.sched.byKey[l.Key()]
		if r != nil && r.RowVersion > l.version || there != nil && there.version >= l.version && !there.lost.Load() {
			// Since the row was loaded, a message was accepted in its place, or a replay
			// has restarted the fan-out: the loaded cursor is not that of this version.
			if l.delivered != "" {
				d.delivered.deleteCaches(l.delivered)
			}
			if l.rejoins {
				d.late.rejoining.dropCampaign(l.Key())
			}
			continue
		}
		d.noteRestaurant(l.restaurant, l.End)
		d.guarded.restoreGuard(l)
		d.sched.add(l)
	}
}

// forgetCorrected forgets the messages of campaigns that a step was wrong about.
func (d *decider) forgetCorrected() {
	for _, k := range d.corrected.takeAll() {
		d.recent.removeVersion(k)
	}
}

// countToLastCancel returns how many messages of the backlog must be accepted before
// any campaign is served: up to the last cancel of a live campaign.
func (d *decider) countToLastCancel() int {
	now := d.lane.svc.now().Unix()
	for i, m := range slices.Backward(d.backlog) {
		if c := m.campaign; c != nil && c.End <= now && d.sched.byKey[c.Key()] != nil {
			return i + 1
		}
	}
	return 0
}

// acceptNext accepts the next message of the backlog, or of a replay. It returns false
// if there is none that this step can accept.
func (d *decider) acceptNext(st *step) bool {
	if len(st.rows)+len(st.dead) >= intakeMessages || st.size >= d.cfg.StepBytes {
		return false
	}
	if len(d.backlog) == 0 {
		return d.acceptReplayed(st)
	}
	m := &d.backlog[0]
	if m.campaign != nil && !st.canAccept(m) {
		return false
	}
	d.backlog, d.weight = d.backlog[1:], d.weight-m.memorySize()
	st.nextOffset = m.offset + 1
	if m.holdsNothing() {
		return true
	}
	if m.dead != nil {
		st.dead = append(st.dead, *m.dead)
		st.skipped = append(st.skipped, skippedMessage{kind: skipRefused, offset: m.offset, reason: m.dead.Reason})
		st.size += m.dead.Size()
		return true
	}
	st.size += m.campaign.Size()
	d.acceptMessage(st, m)
	return true
}

// acceptMessage judges a message and notes in the step what follows.
func (d *decider) acceptMessage(st *step, m *message) {
	before := d.newestAccepted(st, m)
	judged := m.forJudge(d.lane.id)
	// Where it repeats another lane's message, and the step holds an older one that
	// the lanes will find out about at the commit, that one's row must not lend this
	// message its content.
	judged.Distinct = judged.Distinct || st.holdsOther(m)
	switch outcome := campaign.Judge(judged, before, d.lane.svc.now().Unix()); outcome {
	case campaign.Older:
		st.noteOlder(m.campaign, judged.Version(), *before)
	case campaign.Stands:
		st.noteStands(m.campaign, judged.Version(), *before)
	case campaign.Repeat:
		d.acceptRepeat(st, m, before)
	default:
		d.acceptCampaign(st, m, before, outcome)
	}
}

// newestAccepted returns the newest accepted version of m's campaign; nil if there is
// none. A message that this lane accepted lately may not be committed yet, and
// another lane may have accepted a newer one since.
func (d *decider) newestAccepted(st *step, m *message) *campaign.Version {
	k, n := m.campaign.Key(), m.accepted
	if r := d.recent.versionOf(k); r != nil && (n == nil || r.After(*n)) {
		n = r
	}
	if r := st.rows[k]; r != nil && (r.accept || r.repeats) {
		if this := r.acceptedVersion(); n == nil || this.After(*n) {
			n = &this
		}
	}
	return n
}

// acceptCampaign accepts a message in place of the version before, nil if there was
// none. The campaign is joined at once or becomes a pending row.
func (d *decider) acceptCampaign(st *step, m *message, before *campaign.Version, outcome campaign.Outcome) {
	k := m.campaign.Key()
	if old := d.sched.byKey[k]; old != nil {
		d.sched.removeCampaign(old)
	}
	l := &liveCampaign{Campaign: m.campaign, from: campaign.Position{Lane: d.lane.id, Offset: m.offset}, owner: d.lane.id, version: 1, delivered: m.delivered, replayed: m.window != nil, began: m.received, sent: m.time}
	if before != nil {
		l.version, l.approved = before.RowVersion+1, before.Approved && outcome != campaign.Revive
	}
	if l.due = dueAt(l.Start, m.time); l.replayed {
		l.due = laterTime(l.due, m.received)
	}
	l.contested.Store(before != nil || m.shared || m.have > 0)
	if err := l.packRestaurant(); err != nil { // cannot happen: Parse refuses ids that cannot be packed
		d.cfg.Logger.Error("campaign cannot be packed", "campaign", k.Campaign, "restaurant", k.Restaurant, "error", err)
		return
	}
	r := &campaignRow{liveCampaign: l, at: l.from, messageTime: m.time, fingerprint: m.fingerprint, replaces: before, window: m.window, state: sink.StatePending}
	if outcome == campaign.Revive {
		r.revives, st.revives = before.HeldAt, true
	}
	switch {
	case outcome == campaign.Expired, outcome == campaign.Cancel:
		r.state = sink.StateExpired
		st.expired++
		st.noteExpired(l, before)
	case outcome == campaign.Held:
		r.state, r.hold = sink.StatePaused, campaign.Paused
	case d.joinsAtOnce(m, before):
		l.started = true
		d.sched.add(l)
	}
	st.acceptRow(r)
	if r.state == sink.StatePending {
		d.lane.svc.traces.beginTrace(m, d.lane.id)
	}
	d.recent.putVersion(k, r.acceptedVersion())
}

// joinsAtOnce reports whether a message's campaign is joined at once. Otherwise its
// row is pending and comes back through the start times. So does every edit: the
// clients who have the campaign must be read first, and of many edits only the last
// one matters.
func (d *decider) joinsAtOnce(m *message, before *campaign.Version) bool {
	return m.campaign.Start <= m.fresh.Unix() && (m.window != nil || before == nil && d.hasRoom())
}

// acceptRepeat accepts an identical message: the campaign stays as it is, but this
// message is its newest now, and an older one must not take its place.
func (d *decider) acceptRepeat(st *step, m *message, before *campaign.Version) {
	if old := d.sched.byKey[m.campaign.Key()]; old != nil && *old.Campaign != *m.campaign {
		d.sched.removeCampaign(old) // another lane's message has replaced it
	}
	now := *before
	now.Position, now.Time = campaign.Position{Lane: d.lane.id, Offset: m.offset}, m.time
	st.noteRepeat(&liveCampaign{Campaign: m.campaign, owner: before.Owner, version: before.RowVersion, approved: before.Approved}, now, before)
	d.recent.putVersion(m.campaign.Key(), now)
}

// acceptAll accepts as much of the backlog as the step can hold.
func (d *decider) acceptAll(st *step) {
	for len(d.backlog) > 0 && d.acceptNext(st) {
	}
}

// sealAndSubmit seals the step and hands it to the committer. While the committer is
// not ready, the step is sealed again each second, so that its stamp is the present
// second and ended campaigns leave it.
func (d *decider) sealAndSubmit(ctx context.Context, st *step) error {
	select {
	case st.copyData = <-d.buffers:
	default:
	}
	st.sealStep(d.lane.svc.now().Unix())
	d.lane.noteBuilt(st)
	failpoint.Hit("decide/sealed")
	for {
		left := time.Unix(st.trigger+1, 0).Sub(d.lane.svc.now())
		again := time.NewTimer(min(max(left, 0), clockWatch)) // the clock may have been set back
		select {
		case d.steps <- st:
			d.asked = false
			again.Stop()
			return nil
		case <-again.C:
			st.sealStep(d.lane.svc.now().Unix())
		case <-ctx.Done():
			again.Stop()
			return ctx.Err()
		}
	}
}

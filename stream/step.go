package stream

import (
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/record"
	"dinnerbell/stream/sink"
)

// campaignRow is one row of the campaign table as a step changes it: the step inserts
// the row, replaces its message, records a repeat of that message, moves its cursor,
// or does the last two.
type campaignRow struct {
	*liveCampaign
	at          campaign.Position // of the message; set with accept or repeats
	messageTime int64
	fingerprint campaign.Fingerprint
	accept      bool              // a new message
	repeats     bool              // an identical message: only position and time change
	served      bool              // this step has moved its cursor
	replaces    *campaign.Version // with accept or repeats: the version that the row must still have; nil: no row
	window      *replayWindow     // the replay that brought it
	postponed   bool              // the step has accepted its message, and given its clients up
	revives     int64             // milliseconds: the operator's cancel that the message ends; 0: none
	hold        campaign.Hold     // with accept or repeats: what keeps the campaign from being delivered
	heldAt      int64             // the same: when an operator cancelled it
	state       string            // "": state and cursor stay
	cursor      id.ID             // as of this step; live.cursor is ahead once the next step is built

	audience    *int64 // subscribers of the restaurant, where they are counted by now
	looked      int64  // clients at whom the step has looked
	skipped     int64  // whom the delivered cache has left out of this step, since they have the campaign from another restaurant or another job
	cutOff      bool   // finished by the campaign's end, before everybody was looked at
	refusal     string // why the feedback table takes no row of the campaign; "": it does
	stateBefore string // state before the present try of the step met the refusal; "": it has met none

	// Clients whom the step notifies, and whom it leaves out because they have the
	// campaign from elsewhere. Set by storeRow.
	notified, already int64
	stored            sink.RowCounts // as the row counts after the step; set by noteCounts
}

// acceptedVersion returns the version of the campaign that the row holds after the
// step.
func (r *campaignRow) acceptedVersion() campaign.Version {
	v := campaign.Version{Position: r.at, Time: r.messageTime, Fingerprint: r.fingerprint, RowVersion: r.version, Owner: r.owner, Approved: r.approved}
	v.Hold, v.HeldAt = r.hold, r.heldAt
	return v
}

// clientPick is one campaign's share of a step.
type clientPick struct {
	live      *liveCampaign
	clients   *id.List
	wire      *record.Template
	contested bool // goes by ON CONFLICT instead of COPY
	guarded   bool // was picked within the room for guarded campaigns
	late      bool // clients who subscribed after the campaign was joined; the step's rows have no row of it

	// Of the last try of the step's transaction: how many of the clients it notifies,
	// and how many have a row already, of which the campaign itself has written own.
	notified, already, own int64
	refusal                string // why the table takes no row of the campaign; "": it does
	refuses                bool   // the table refuses some of the clients, or all
}

// step is one DECIDE: everything that its Postgres transaction changes. The decider
// builds a step while the committer commits the ones before.
type step struct {
	began      time.Time // when its first row or message came
	nextOffset int64     // 0: does not move
	rows       map[campaign.Key]*campaignRow
	picks      []*clientPick
	dead       []record.DeadLetter
	expired    int64
	skipped    []skippedMessage // messages that notify nobody
	windows    []*replayWindow  // one for each message of a replay
	lost       []campaign.Key   // campaigns whose row another message has taken
	postponed  []postponedCampaign
	parked     []*liveCampaign // campaigns whose audience exceeds the limit
	maxima     []int64         // the limits that they exceed
	paced      int             // clients that the step took from limits.notifications_per_second
	revives    bool            // a row of the step revives a campaign that an operator cancelled

	view      int64  // number of the view that its clients are from; 0: none, or late subscribers are off
	sourceLSN id.LSN // changes of the subscriptions up to here are handled with this step; 0: does not move

	leftOut map[leftOut][]string // clients whose id fits neither the table nor a record
	refused []*liveCampaign      // campaigns whose rows the feedback table refuses; set while the rows are written

	table *sink.FeedbackTable // as the claim has read it

	counts *sink.StepCounts // of the rows that the step changes; there once it is committed

	// suspect: the table has refused a row of the step, and it is not known of which
	// campaign. All rows go behind savepoints, which shows the campaign.
	suspect bool

	size int // bytes of the messages and dead letters that the step accepts

	// Set by sealStep.
	trigger  int64  // Unix second of the decision
	earliest int64  // earliest end among the picks: the step must be committed before it
	copyData []byte // CopyData messages; empty if nothing goes by COPY
	copied   int    // rows in copyData
}

func newStep(t *sink.FeedbackTable) *step {
	return &step{began: time.Now(), rows: map[campaign.Key]*campaignRow{}, table: t}
}

// isEmpty reports whether the step changes nothing.
func (st *step) isEmpty() bool {
	return st.nextOffset == 0 && len(st.rows) == 0 && len(st.picks) == 0 && st.sourceLSN == 0
}

// acceptRow adds a new message for the step to store. Of several messages of one key
// the last one is stored; it replaces the version that the first one replaced.
func (st *step) acceptRow(r *campaignRow) {
	if before := st.rows[r.Key()]; before != nil && (before.accept || before.repeats) {
		r.replaces = before.replaces
	}
	r.accept = true
	st.rows[r.Key()] = r
}

// noteExpired records a message whose end has passed: it cancels the campaign.
func (st *step) noteExpired(l *liveCampaign, before *campaign.Version) {
	o := skippedMessage{kind: skipExpired, campaign: l.Campaign, offset: l.from.Offset}
	if before != nil {
		o.kind = skipCancel
	}
	st.skipped = append(st.skipped, o)
}

// noteOlder records a message that does nothing: a newer one of its campaign was
// accepted.
func (st *step) noteOlder(c *campaign.Campaign, m, newest campaign.Version) {
	st.skipped = append(st.skipped, skippedMessage{kind: skipOlder, campaign: c, offset: m.Offset, message: m, newest: newest})
}

// noteStands records a message that does nothing because of what an operator did.
func (st *step) noteStands(c *campaign.Campaign, m, accepted campaign.Version) {
	st.skipped = append(st.skipped, skippedMessage{kind: skipStands, campaign: c, offset: m.Offset, message: m, newest: accepted})
}

// noteRepeat adds an identical message, whose position and time the step stores.
func (st *step) noteRepeat(l *liveCampaign, now campaign.Version, before *campaign.Version) {
	r := st.rows[l.Key()]
	if r == nil {
		r = &campaignRow{liveCampaign: l}
		st.rows[l.Key()] = r
	}
	if !r.accept && !r.repeats {
		r.repeats, r.replaces, r.fingerprint, r.hold, r.heldAt = true, before, now.Fingerprint, now.Hold, now.HeldAt
	}
	r.at, r.messageTime = now.Position, now.Time
}

// noteProgress records a campaign's cursor and state, and returns its row.
func (st *step) noteProgress(l *liveCampaign, to string) *campaignRow {
	r := st.rows[l.Key()]
	if r == nil {
		r = &campaignRow{liveCampaign: l}
		st.rows[l.Key()] = r
	}
	r.liveCampaign, r.state, r.cursor, r.served = l, to, l.cursor, true
	return r
}

// noteParked records that a campaign waits for an operator, and returns its row.
func (st *step) noteParked(l *liveCampaign, limit int64) *campaignRow {
	st.parked, st.maxima = append(st.parked, l), append(st.maxima, limit)
	return st.noteProgress(l, sink.StateParked)
}

// canAccept reports whether the step can accept the message. A step that serves a
// campaign cannot also edit it: the step holds clients and content of the version
// before. It can accept a repeat.
func (st *step) canAccept(m *message) bool {
	r := st.rows[m.campaign.Key()]
	if r != nil && r.served {
		return m.window == nil && *r.Campaign == *m.campaign
	}
	l := st.latePick(m.campaign.Key())
	return l == nil || m.window == nil && *l.live.Campaign == *m.campaign
}

// holdsOther reports whether the step's row holds a message with other content than
// m.
func (st *step) holdsOther(m *message) bool {
	r := st.rows[m.campaign.Key()]
	return r != nil && (r.accept || r.repeats) && r.fingerprint != m.fingerprint
}

// dropCampaign removes a campaign's clients from the step.
func (st *step) dropCampaign(l *liveCampaign) {
	st.picks = slices.DeleteFunc(st.picks, func(p *clientPick) bool { return p.live == l })
	maps.DeleteFunc(st.leftOut, func(k leftOut, _ []string) bool { return k.live == l })
	if !l.postponed.Load() {
		st.lost = append(st.lost, l.Key())
	}
}

// dropLostCampaigns removes the campaigns that other steps have found lost, and
// reports whether there was one.
func (st *step) dropLostCampaigns() (dropped bool) {
	for k, r := range st.rows {
		if !r.lost.Load() {
			continue
		}
		dropped = true
		st.dropCampaign(r.liveCampaign)
		if r.state, r.served = "", false; !r.repeats {
			delete(st.rows, k)
		}
	}
	return dropped
}

// sealStep makes the decision: it stamps the step with this second and encodes the data
// of the COPY. Clients of campaigns that have ended by now, or that the feedback
// table has refused, leave the step. A step that waited is sealed again.
func (st *step) sealStep(now int64) {
	st.trigger, st.earliest = now, campaign.MaxUnix+1
	st.picks = slices.DeleteFunc(st.picks, func(p *clientPick) bool {
		if p.live.End > now && !p.live.refused.Load() {
			return false
		}
		if !p.late {
			r := st.rows[p.live.Key()] // the row is there: see decider.pickClients
			if r.state, r.cutOff = sink.StateFinished, p.live.End <= now; r.cutOff {
				p.live.droppedAtEnd.Store(true)
			}
		}
		return true
	})
	for _, r := range st.rows { // with clients or without: the step may have met nobody who lacks the campaign
		switch {
		case !r.served:
		case r.refused.Load():
			r.state, r.cutOff, r.refusal = sink.StateFinished, false, r.whyRefused()
		case r.droppedAtEnd.Load():
			r.state, r.cutOff = sink.StateFinished, true
		}
	}
	// In the order of the unique index: two lanes with the same campaign ids lock
	// rows in the same order.
	slices.SortFunc(st.picks, func(a, b *clientPick) int { return campaign.CompareKeys(a.live.Key(), b.live.Key()) })
	size := 0
	for _, p := range st.picks {
		p.wire = st.table.Kinds.NewTemplate(p.live.Campaign, now)
		size += p.wire.CopySize(p.clients)
	}
	var frames record.CopyStream
	frames.Begin(st.copyData, size)
	st.copied = 0
	for _, p := range st.picks {
		st.earliest = min(st.earliest, p.live.End)
		p.notified, p.already, p.own, p.refusal, p.refuses = int64(p.clients.Len()), 0, 0, "", false
		if p.contested = st.suspect || p.live.contested.Load() || p.live.guarded.Load() || len(st.table.Triggers) > 0; !p.contested {
			frames.Add(p.wire, p.clients)
			st.copied += p.clients.Len()
		}
	}
	st.copyData = frames.End()
}

// buildPayload returns the payload that the step ships if all its clients are new.
func (st *step) buildPayload() *record.Payload {
	p := &record.Payload{Dead: st.dead}
	for _, k := range st.picks {
		if k.clients.Len() > 0 {
			p.Segments = append(p.Segments, record.Segment{Campaign: k.live.Campaign, Trigger: st.trigger, Clients: k.clients, Template: k.wire})
		}
	}
	return p
}

// memoryHeld estimates the bytes that the step holds until it is shipped: it has a
// campaign's content three times, as received, as a record and as a row.
func (st *step) memoryHeld() (n int) {
	for _, k := range st.picks {
		n += 3*k.live.Size() + len(k.clients.Bytes())
	}
	for i := range st.dead {
		n += st.dead[i].Size()
	}
	return n
}

// markContested prepares a step for another try after the feedback table has refused
// its rows. Where the reason is a row that exists, the next try writes the campaigns by
// ON CONFLICT. Where it is another one, or the refusal is the second one, the step is
// suspect: the next try also looks for the rows that the table refuses. Where both was
// tried before, markContested returns the error.
func (st *step) markContested(refused error) error {
	e, _ := errors.AsType[*pgconn.PgError](refused)
	changed := false
	if copied := st.copied > 0; copied && e != nil && e.Code == sink.UniqueViolation {
		for _, k := range st.picks {
			changed = !k.live.contested.Swap(true) || !k.contested || changed // another step may have set it since this one was sealed
		}
	} else {
		changed, st.suspect = !st.suspect, true
	}
	if !changed {
		return refused
	}
	return nil
}

// resealIfChanged seals the step again if one of its campaigns was lost, refused or cut
// off since.
func (st *step) resealIfChanged(now time.Time) {
	if lost := st.dropLostCampaigns(); lost || st.hasRefused() || st.hasCutOff() {
		st.sealStep(now.Unix())
	}
}

// hasRefused reports whether the table has refused a campaign of the step since the
// step was sealed: one with clients, or with a row alone.
func (st *step) hasRefused() bool {
	if slices.ContainsFunc(st.picks, func(k *clientPick) bool { return k.live.refused.Load() }) {
		return true
	}
	for _, r := range st.rows {
		if r.served && r.refusal == "" && r.refused.Load() {
			return true
		}
	}
	return false
}

// hasCutOff reports whether a step before has left out clients of a campaign whose end has
// come, since the step was sealed.
func (st *step) hasCutOff() bool {
	for _, r := range st.rows {
		if r.served && !r.cutOff && !r.refused.Load() && r.droppedAtEnd.Load() {
			return true
		}
	}
	return false
}

// waitingStarts lists the step's campaigns that wait for their start, for fresh
// subscriptions or for room.
func (st *step) waitingStarts() []startTime {
	var out []startTime
	for _, r := range st.rows {
		if r.accept && r.state == sink.StatePending && !r.started {
			out = append(out, startTime{start: r.Start, key: r.Key(), version: r.version, since: r.messageTime})
		}
	}
	return out
}

// sortedRows lists the rows in key order, so that two lanes that lock the same
// campaigns lock them in the same order.
func (st *step) sortedRows() []*campaignRow {
	out := make([]*campaignRow, 0, len(st.rows))
	for _, r := range st.rows {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *campaignRow) int { return campaign.CompareKeys(a.Key(), b.Key()) })
	return out
}

// campaignRows lists what the step does to the campaign table, in the order of the
// keys.
func (st *step) campaignRows() *sink.CampaignRows {
	rows := &sink.CampaignRows{}
	picks := st.picks // in the order of the keys, too: see seal
	for _, r := range st.sortedRows() {
		for len(picks) > 0 && campaign.CompareKeys(picks[0].live.Key(), r.Key()) < 0 {
			picks = picks[1:]
		}
		stored := r.storeRow(picks)
		switch {
		case r.accept && r.replaces == nil:
			rows.Insert(stored)
		case r.accept:
			rows.Edit(stored)
		default:
			if r.repeats {
				rows.Repeat(stored)
			}
			if r.state != "" {
				rows.Move(stored)
			}
		}
	}
	return rows
}

// storeRow returns the row as the campaign table holds it after the step, and counts the
// clients whom the step notifies and leaves out. The row's pick is among the first of
// picks, if there is one.
func (r *campaignRow) storeRow(picks []*clientPick) sink.CampaignRow {
	r.notified, r.already = 0, r.skipped
	for _, p := range picks {
		if p.live == r.liveCampaign {
			r.notified, r.already = p.notified, r.already+p.already-p.own
			break
		}
		if p.live.Key() != r.Key() {
			break
		}
	}
	return sink.CampaignRow{Campaign: r.Campaign, Accepted: r.acceptedVersion(), Contested: r.contested.Load(), State: r.state, Cursor: r.cursor, Replaces: r.replaces,
		Audience: r.audience, Notified: r.notified, Already: r.already, CutOff: r.cutOff, Refusal: r.refusal}
}

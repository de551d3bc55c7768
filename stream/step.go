package stream

import (
	"slices"

	"dinnerbell/state"
)

// The states of a campaign row.
const (
	statePending  = "pending"  // scheduled, or live with a cursor
	stateFinished = "finished" // everybody was looked at, or its end came before
	stateExpired  = "expired"  // its end had passed when it was received
)

// row is what a step does to one campaign row: insert it, replace the message
// it holds, or move its cursor.
type row struct {
	*live
	msgTime     int64
	fingerprint fingerprint
	accept      bool        // a new message
	served      bool        // this step has moved its cursor
	repeats     bool        // an identical message: version and time move, nothing else
	replaces    *known      // with either: the version that must still be there; nil: none
	feed        *replayFeed // the replay that brought it
	state       string
	cursor      state.ID // as of this step; live.cursor is ahead once the next step is built
}

// pick is one campaign's share of a step.
type pick struct {
	live      *live
	clients   *state.IDList
	wire      *wire
	contested bool // goes by ON CONFLICT instead of COPY
}

// step is one DECIDE: everything that its Postgres transaction changes. It is
// built by the decide goroutine while the one before it commits.
type step struct {
	nextOffset int64 // 0: does not move
	rows       map[key]*row
	picks      []*pick
	dead       []deadLetter
	expired    int64
	outcomes   []outcome     // messages that notify nobody
	feeds      []*replayFeed // one for each message of a replay

	// set by seal
	trigger  int64  // Unix second of the decision
	earliest int64  // the earliest end among the picks: not committed at or after it
	copyData []byte // CopyData messages; empty if nothing goes by COPY
	size     int
}

func newStep() *step { return &step{rows: map[key]*row{}} }

// empty tells that committing it would change nothing.
func (st *step) empty() bool {
	return st.nextOffset == 0 && len(st.rows) == 0 && len(st.picks) == 0
}

// accept notes a new message for the step to store. Of several for one key the
// last stands, in place of what the first one replaces.
func (st *step) accept(r *row) {
	if before := st.rows[r.key()]; before != nil {
		r.replaces = before.replaces
	}
	r.accept = true
	st.rows[r.key()] = r
}

// noteExpired notes a message whose end has passed: it cancels what was there.
func (st *step) noteExpired(l *live, before *known) {
	o := outcome{kind: outcomeExpired, campaign: l.Campaign, offset: l.version.offset}
	if before != nil {
		o.kind = outcomeCancelled
	}
	st.outcomes = append(st.outcomes, o)
}

// repeat notes an identical message for the step to store.
func (st *step) repeat(r *row) {
	r.repeats = true
	st.rows[r.key()] = r
}

// progress notes how far a campaign has come.
func (st *step) progress(l *live, to string) {
	r := st.rows[l.key()]
	if r == nil {
		r = &row{live: l}
		st.rows[l.key()] = r
	}
	r.state, r.cursor, r.served = to, l.cursor, true
}

// takes tells whether the step can accept the message. A campaign that was
// served in it is not edited by it as well: the step has its former clients and
// content. A repeat of what it has accepted is welcome.
func (st *step) takes(m *message) bool {
	r := st.rows[m.campaign.key()]
	return r == nil || !r.served || r.accept && r.fingerprint == m.fingerprint
}

// seal makes the decision: it stamps the step with this second and encodes
// what COPY sends. Campaigns whose end has come by now leave without their
// clients. A step that waited is sealed again.
func (st *step) seal(now int64) {
	st.trigger, st.earliest = now, maxUnix+1
	st.picks = slices.DeleteFunc(st.picks, func(p *pick) bool {
		if p.live.End > now {
			return false
		}
		st.rows[p.live.key()].state = stateFinished // the row is there: see decider.pick
		return true
	})
	// In the order of the unique index: two lanes with the same campaign ids lock
	// rows in the same order.
	slices.SortFunc(st.picks, func(a, b *pick) int { return compareKeys(a.live.key(), b.live.key()) })
	size := 0
	for _, p := range st.picks {
		p.wire = render(p.live.Campaign, now)
		size += p.clients.Len()*(len(p.wire.copyHead)+4) + 3*len(p.clients.Bytes())
	}
	var frames copyFrames
	frames.begin(st.copyData, size)
	for _, p := range st.picks {
		st.earliest = min(st.earliest, p.live.End)
		if p.contested = p.live.contested.Load(); !p.contested {
			frames.add(p.wire, p.clients)
		}
	}
	st.copyData = frames.end()
}

// payload is what the step ships if every client of it was new.
func (st *step) payload() *payload {
	p := &payload{dead: st.dead}
	for _, k := range st.picks {
		if k.clients.Len() > 0 {
			p.segments = append(p.segments, segment{campaign: k.live.Campaign, trigger: st.trigger, clients: k.clients, wire: k.wire})
		}
	}
	return p
}

// appointments lists the step's campaigns that wait for their start, and those
// that come back under a new version.
func (st *step) appointments() []appointment {
	var out []appointment
	for _, r := range st.rows {
		if r.repeats || r.accept && r.state == statePending && !r.started {
			out = append(out, appointment{start: r.Start, key: r.key(), version: r.version})
		}
	}
	return out
}

// withdrawn are the campaigns that the step's messages took off the agenda:
// cancelled before their start, or moved forward so that they are live now.
func (st *step) withdrawn() []key {
	var out []key
	for _, r := range st.rows {
		if r.accept && (r.state != statePending || r.started) {
			out = append(out, r.key())
		}
	}
	return out
}

// sortedRows lists the rows in key order, so that two lanes that lock the same
// campaigns lock them in the same order.
func (st *step) sortedRows() []*row {
	out := make([]*row, 0, len(st.rows))
	for _, r := range st.rows {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *row) int { return compareKeys(a.key(), b.key()) })
	return out
}

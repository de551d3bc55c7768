package stream

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
)

// Where the feedback table refuses the rows of a step, the step is SUSPECT: each of its
// campaigns is tried at once behind a savepoint, which shows the campaigns with refused
// clients. These are GUARDED from then on: their rows are tried behind savepoints, which
// takes far longer than a COPY. So a step takes few of their clients, and gives up the
// campaigns that are too large for it: they are POSTPONED, which means that their rows
// stay as they were, and the start times bring them back as guarded ones. The other
// campaigns of the lane keep their turns.
//
// A guarded campaign goes back to ordinary steps once the table has taken some of its
// clients in a row. Each ordinary step that the table refuses then costs a roll-back, so
// the campaign must have earned it. THE INVARIANT: before each refused ordinary step but
// the first, the campaign has had either twice as many taken clients in a row behind
// savepoints as before the refused one before, or ordinaryPays clients by ordinary steps.
// So of n clients at most (1 + n/ordinaryPays) * (2 + log2(n/maxGuarded)) ordinary steps
// are refused, whatever the table refuses.

const (
	// maxGuarded and minGuarded bound the clients of guarded campaigns in one step.
	maxGuarded, minGuarded = 512, 64
	// guardedTime is what the rows of a step's guarded campaigns may take. Each step that
	// takes twice the time halves the clients of the next ones, each that takes half of it
	// doubles them.
	guardedTime = 100 * time.Millisecond
	// ordinaryPays is how many clients by ordinary steps make up for a refused step.
	ordinaryPays = 32_000
	// maxRefused bounds the refused campaigns that are remembered: one that is forgotten
	// costs another dead letter at most.
	maxRefused = 1024
)

// guardedCampaigns is what a session knows about the campaigns that the feedback table has
// refused rows of.
type guardedCampaigns struct {
	room atomic.Int64 // clients of guarded campaigns in the next step

	mu      sync.Mutex
	marks   map[campaign.Key]*guardMark
	refused map[campaign.Key]int64 // of those that the table has refused lately, as late picks that were made before may still come
}

// guardMark is what is known about a version of a campaign with refused clients, until the
// campaign is served to its end or loses the version.
type guardMark struct {
	version  int64
	guarded  bool
	need     int // clients whom the table must take in a row before the campaign goes back to ordinary steps
	taken    int // in a row, behind savepoints
	ordinary int // by ordinary steps, since it went back
}

func newGuardedCampaigns() *guardedCampaigns {
	g := &guardedCampaigns{marks: map[campaign.Key]*guardMark{}}
	g.room.Store(maxGuarded / 4)
	return g
}

// noteTime adapts the room to what the rows of a step's guarded campaigns took.
func (g *guardedCampaigns) noteTime(clients int, took time.Duration) {
	room := g.room.Load()
	switch {
	case took > 2*guardedTime:
		g.room.Store(max(room/2, minGuarded))
	case took < guardedTime/2 && int64(clients) >= room/2: // a few clients tell little
		g.room.Store(min(2*room, maxGuarded))
	}
}

// markGuarded makes a pick's campaign a guarded one, as the table refuses some of the clients.
// A pick of late subscribers leaves no mark: its campaign was served before.
func (g *guardedCampaigns) markGuarded(k *clientPick) {
	k.live.guarded.Store(true)
	if k.late {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	least := max(k.clients.Len(), maxGuarded) // so that it meets the refused client again before it goes back
	m := g.marks[k.live.Key()]
	switch {
	case m == nil || m.version != k.live.version:
		m = &guardMark{version: k.live.version, need: least}
		g.marks[k.live.Key()] = m
	case m.ordinary >= ordinaryPays:
		m.need = least
	default:
		m.need = max(2*m.need, least)
	}
	m.guarded, m.taken = true, 0
}

// noteCommittedLocked counts the clients of a committed step's pick. The caller holds mu.
func (g *guardedCampaigns) noteCommittedLocked(k *clientPick) {
	m := g.marks[k.live.Key()]
	switch n := k.clients.Len(); {
	case m == nil || k.late || m.version != k.live.version:
	case k.refuses:
		m.taken = 0
	case !m.guarded:
		m.ordinary += n
	default:
		if m.taken += n; m.taken >= m.need {
			m.guarded, m.ordinary = false, 0
			k.live.guarded.Store(false)
		}
	}
}

// noteStep notes what a committed step has shown of the campaigns that the table refuses
// clients of.
func (g *guardedCampaigns) noteStep(st *step) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, k := range st.picks {
		g.noteCommittedLocked(k)
		if k.notified > 0 { // it takes rows of the campaign again
			delete(g.refused, k.live.Key())
		}
	}
	for _, l := range st.refused {
		if g.refused == nil || len(g.refused) == maxRefused {
			g.refused = map[campaign.Key]int64{}
		}
		g.refused[l.Key()] = l.version
	}
	if len(g.marks) == 0 {
		return
	}
	for k, r := range st.rows {
		if r.state != "" && r.state != sink.StatePending && r.state != sink.StateRejoin {
			delete(g.marks, k)
		}
	}
	for _, k := range st.lost {
		delete(g.marks, k)
	}
}

// restoreGuard makes a campaign that comes back a guarded one if it was when it was postponed.
func (g *guardedCampaigns) restoreGuard(l *liveCampaign) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if m := g.marks[l.Key()]; m != nil && m.version == l.version && m.guarded {
		l.guarded.Store(true)
	}
}

// isRefused reports whether a committed step has found that the table takes no row of the
// campaign.
func (g *guardedCampaigns) isRefused(l *liveCampaign) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	v, ok := g.refused[l.Key()]
	return ok && v == l.version
}

// postponedCampaign is a campaign that a step has given up.
type postponedCampaign struct {
	key     campaign.Key
	version int64
	start   int64
	since   int64 // milliseconds: when it was due; 0: not known
	rejoins bool  // comes back through the rejoiner
}

func dueMillis(due time.Time) int64 {
	if due.IsZero() {
		return 0
	}
	return due.UnixMilli()
}

// guardedClients counts the step's clients of guarded campaigns.
func (st *step) guardedClients() (n int) {
	for _, p := range st.picks {
		if p.live.guarded.Load() {
			n += p.clients.Len()
		}
	}
	return n
}

// postponeGuarded gives up campaigns until the step has at most maxGuarded clients of
// guarded ones, the largest first. It keeps late picks, which are few, and the picks that
// were made within the room for guarded campaigns, so that each of them gets on. It
// reports whether it has given up any.
func (st *step) postponeGuarded() (postponed bool) {
	left := st.guardedClients() - maxGuarded
	if left <= 0 {
		return false
	}
	bySize := slices.SortedFunc(slices.Values(st.picks), func(a, b *clientPick) int { return cmp.Compare(b.clients.Len(), a.clients.Len()) })
	for _, p := range bySize {
		if left <= 0 || p.late || p.guarded || !p.live.guarded.Load() {
			continue
		}
		left -= p.clients.Len()
		st.postponeCampaign(st.rows[p.live.Key()]) // the row is there: see decider.pickClients
		postponed = true
	}
	return postponed
}

// postponeCampaign takes a campaign out of the step, to be joined again from where the last
// committed step has left it. Steps behind this one drop it, and decide leaves it alone.
func (st *step) postponeCampaign(r *campaignRow) {
	l := r.liveCampaign
	l.postponed.Store(true)
	l.lost.Store(true)
	st.dropCampaign(l)
	st.postponed = append(st.postponed, postponedCampaign{l.Key(), l.version, l.Start, dueMillis(l.due), l.rejoins})
	r.audience, r.looked, r.skipped, r.cutOff = nil, 0, 0, false
	switch {
	case r.accept:
		r.liveCampaign = &liveCampaign{Campaign: l.Campaign, from: l.from, owner: l.owner, version: l.version, approved: l.approved, replayed: l.replayed, began: l.began, sent: l.sent, due: l.due}
		r.contested.Store(l.contested.Load())
		r.served, r.state, r.cursor, r.postponed = false, sink.StatePending, "", true
	case r.repeats:
		r.served, r.state = false, ""
	default:
		delete(st.rows, l.Key())
	}
}

// applyPostponed lists the campaigns that a committed step has postponed. Those whose
// message the step has accepted are listed already.
func (a *startTimes) applyPostponed(now time.Time, st *step) {
	if len(st.postponed) == 0 {
		return
	}
	var keys []campaign.Key
	var list []startTime
	for _, p := range st.postponed {
		if r := st.rows[p.key]; !p.rejoins && (r == nil || !r.accept) {
			keys, list = append(keys, p.key), append(list, startTime{start: p.start, key: p.key, version: p.version, since: p.since})
		}
	}
	a.allowReload(keys)
	a.addLoaded(now, list)
}

// guardedRoom returns how many clients of guarded campaigns the step may still have.
func (d *decider) guardedRoom(st *step) int {
	room := int(d.guarded.room.Load())
	for _, p := range st.picks {
		if p.guarded {
			room -= p.clients.Len()
		}
	}
	return room
}

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

// A campaign is GUARDED once the feedback table has refused a row of a step that it is in:
// from then on its rows are tried behind savepoints, which takes far longer than a COPY.
// So a step takes few of its clients, and a step that was built before the refusal gives
// up the campaigns that are too large for it: they are POSTPONED, which means that their
// rows stay as they were, and the start times bring them back as guarded ones. The other
// campaigns of the lane keep their turns.

const (
	// maxGuarded and minGuarded bound the clients of guarded campaigns in one step.
	maxGuarded, minGuarded = 512, 64
	// guardedTime is what the rows of a step's guarded campaigns may take. Each step that
	// takes twice the time halves the clients of the next ones, each that takes half of it
	// doubles them.
	guardedTime = 100 * time.Millisecond
	// maxRefused bounds the refused campaigns that are remembered: one that is forgotten
	// costs another dead letter at most.
	maxRefused = 1024
)

// guardedCampaigns is what a session knows about the campaigns that the feedback table has
// refused rows of.
type guardedCampaigns struct {
	room atomic.Int64 // clients of guarded campaigns in the next step

	mu       sync.Mutex
	versions map[campaign.Key]int64 // of the campaigns that were postponed
	refused  map[campaign.Key]int64 // of those that the table has refused lately, as late picks that were made before may still come
}

func newGuardedCampaigns() *guardedCampaigns {
	g := &guardedCampaigns{versions: map[campaign.Key]int64{}}
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

// noteStep remembers the campaigns that a committed step has postponed, until they are
// served to their end or lose their version.
func (g *guardedCampaigns) noteStep(st *step) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range st.postponed {
		g.versions[p.key] = p.version
	}
	for _, k := range st.picks {
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
	if len(g.versions) == 0 {
		return
	}
	for k, r := range st.rows {
		if r.state != "" && r.state != sink.StatePending && r.state != sink.StateRejoin {
			delete(g.versions, k)
		}
	}
	for _, k := range st.lost {
		delete(g.versions, k)
	}
}

// guard marks a campaign that comes back as guarded if an earlier step has postponed it.
func (g *guardedCampaigns) guard(l *liveCampaign) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if v, ok := g.versions[l.Key()]; ok && v == l.version {
		l.guarded.Store(true)
		l.contested.Store(true)
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
		st.postpone(st.rows[p.live.Key()]) // the row is there: see decider.pickClients
		postponed = true
	}
	return postponed
}

// postpone takes a campaign out of the step, to be joined again from where the last
// committed step has left it. Steps behind this one drop it, and decide leaves it alone.
func (st *step) postpone(r *campaignRow) {
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

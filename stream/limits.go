package stream

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"dinnerbell/state"
	"dinnerbell/stream/sink"
)

// Limits bound what campaigns may do. They may change while the service runs.
type Limits struct {
	// MaxAudience parks a campaign whose restaurant has more subscribers, until an
	// operator approves it. 0: none.
	MaxAudience int64
	// NotificationsPerSecond bounds what all lanes of the service decide together.
	// 0: none.
	NotificationsPerSecond int64
}

// SetLimits changes the limits. A campaign that is parked stays so until it is approved.
func (s *Service) SetLimits(l Limits) {
	s.maxAudience.Store(l.MaxAudience)
	s.pace.setRate(l.NotificationsPerSecond, time.Now())
}

const (
	// paceTurns is how many turns the lanes take together in a second, where the rate
	// and the size of a step allow it: fewer turns are larger steps, and more turns let
	// a small campaign wait less behind a large one of another lane.
	paceTurns = 20
	// paceBurst is the share of a second's notifications that a pause saves up.
	paceBurst = 0.2
	// paceDebt bounds, in seconds, how long one step that exceeds its room holds the
	// next ones up.
	paceDebt = 2
	// paceStale is how long a lane that has asked and not asked again counts as waiting.
	paceStale = 250 * time.Millisecond
	// paceAsk is how often a waiting lane asks, at least.
	paceAsk = 50 * time.Millisecond
)

// pace is the token bucket of limits.notifications_per_second, over all lanes of the
// service. It bounds the room of a step before the step takes its clients; nothing
// behind that waits for it. The lane that was served longest ago goes first.
type pace struct {
	rate atomic.Int64 // notifications a second; 0: no limit
	held atomic.Int64 // nanoseconds that lanes waited, over all lanes

	mu     sync.Mutex // guards the fields below
	tokens float64    // below zero: a step has exceeded its room
	at     time.Time  // when tokens was brought up
	lanes  map[int32]*paceTurn
}

// paceTurn is what the bucket remembers of a lane.
type paceTurn struct{ asked, served time.Time }

func (p *pace) isOn() bool { return p.rate.Load() > 0 }

func (p *pace) setRate(rate int64, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if rate == p.rate.Load() {
		return
	}
	p.refillTokens(now)
	if p.rate.Swap(rate) == 0 {
		p.tokens, p.at = 0, now
	}
	p.boundTokens()
}

func (p *pace) refillTokens(now time.Time) {
	if passed := now.Sub(p.at); passed > 0 {
		p.tokens += passed.Seconds() * float64(p.rate.Load())
	}
	p.at = now
	p.boundTokens()
}

// boundTokens keeps tokens between the debt and the burst.
func (p *pace) boundTokens() {
	rate := float64(p.rate.Load())
	p.tokens = min(max(p.tokens, -paceDebt*rate), max(1, paceBurst*rate))
}

// takeTokens returns how many clients the lane's next step may have, want at most. If there is
// no room now, it returns 0 and when the lane should ask again.
func (p *pace) takeTokens(lane int32, want int, now time.Time) (room int, again time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	rate := float64(p.rate.Load())
	if rate == 0 {
		return want, 0
	}
	p.refillTokens(now)
	if p.lanes == nil {
		p.lanes = map[int32]*paceTurn{}
	}
	me := p.lanes[lane]
	if me == nil {
		me = &paceTurn{}
		p.lanes[lane] = me
	}
	turn := min(max(1, float64(int(rate/paceTurns))), float64(want))
	ahead := 0.0
	for _, o := range p.lanes {
		if o != me && o.served.Before(me.served) && now.Sub(o.asked) < paceStale && o.asked.After(o.served) {
			ahead++
		}
	}
	if need := (ahead + 1) * turn; p.tokens < need {
		me.asked = now
		return 0, min(max(time.Duration((need-p.tokens)/rate*float64(time.Second)), time.Millisecond), paceAsk)
	}
	room = min(want, int(p.tokens-ahead*turn))
	p.tokens -= float64(room)
	me.served = now
	return room, 0
}

// returnTokens gives back what a lane took and did not notify. n may be negative: a step
// may exceed its room.
func (p *pace) returnTokens(n int) {
	if n == 0 || !p.isOn() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tokens += float64(n)
	p.boundTokens()
}

const (
	// admitTurn is how many subscribers a campaign counts in one turn; a few
	// milliseconds. The count goes on in the next step, so that no other campaign waits
	// for it.
	admitTurn = 50_000
	admitScan = 4096 // of them in one call
)

// admitCampaign counts the audience of a campaign that is joined from the start for the first
// time or as an edit. admitted is set once it is within the limit, or an operator has
// approved it; parked, if it exceeds the limit. With neither, the next turn counts on. It
// counts all, so that the operator who decides knows the number.
func (d *decider) admitCampaign(scan *state.Scan, l *liveCampaign, limit int64) (admitted, parked bool, err error) {
	if l.approved || l.cursor != "" || l.rejoins {
		l.admitted = true
		return true, false, nil
	}
	for left := admitTurn; left > 0; left -= admitScan {
		d.counted.Reset()
		var done bool
		if l.countedTo, done, err = scan.Undelivered(&d.counted, "", l.restaurant, l.countedTo, admitScan); err != nil {
			return false, false, err
		}
		switch l.counted += int64(d.counted.Len()); {
		case done && l.counted > limit:
			return false, true, nil
		case done:
			l.admitted = true
			l.audience.Store(new(l.counted))
			return true, false, nil
		}
	}
	return false, false, nil
}

// noteParked logs the campaigns that a committed step has parked.
func (l *lane) noteParked(st *step) {
	for i, c := range st.parked {
		if r := st.rows[c.Key()]; r == nil || r.liveCampaign != c || r.state != sink.StateParked {
			continue // another message or an operator came first
		}
		l.svc.counters.parked.Add(1)
		l.svc.heldChanged.Store(true)
		news := c.news(l.id, RecentParked, time.Now())
		news.setCounts(st.rows[c.Key()].stored)
		l.svc.recent.add(news)
		l.svc.cfg.Logger.Warn("campaign is parked: its audience is larger than limits.max_audience; nobody is notified until an operator approves it", "lane", l.id, "campaign", c.ID, "restaurant", c.RestaurantID,
			"audience", c.counted, "max_audience", st.maxima[i], "to_mend", fmt.Sprintf("dinnerbell approve %q --restaurant %q", c.ID, c.RestaurantID), "end", time.Unix(c.End, 0).UTC())
	}
}

// takeRoom returns how many clients the next step may have. paced is set if
// limits.notifications_per_second bounds that; with no room at all, hold says for how
// long.
func (d *decider) takeRoom() (room int, paced bool) {
	room = d.lane.stepClients()
	p := &d.lane.svc.pace
	if !p.isOn() {
		return room, false
	}
	if d.sched.len() == 0 && len(d.backlog) == 0 && len(d.replayed) == 0 { // there are late picks alone
		return 0, true
	}
	room, d.hold = p.takeTokens(d.lane.id, room, time.Now())
	return room, true
}

// settleRoom gives back the room that the step did not use. A message that found no room
// in it is accepted all the same: acceptance waits for no limit.
func (d *decider) settleRoom(st *step, room int) {
	for _, k := range st.picks {
		st.paced += k.clients.Len()
	}
	d.lane.svc.pace.returnTokens(room - st.paced)
	d.acceptAll(st)
}

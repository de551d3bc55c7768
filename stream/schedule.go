package stream

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
)

// liveCampaign is a campaign in the middle of its fan-out, as the decider holds it.
// Postgres holds the same as of the last committed step.
type liveCampaign struct {
	*campaign.Campaign
	from       campaign.Position // of its message, for the log
	owner      int32             // the lane that delivers it
	version    int64             // of its row: a change of the row must name it
	delivered  id.ID             // name of its clients in the delivered cache; "": none
	restaurant id.ID
	cursor     id.ID // last client looked at; "" before the first
	fresh      bool  // no client was looked at yet
	started    bool  // its start had come when it was accepted or loaded
	done       bool  // left the schedule
	passedOver bool  // the step had no room for it left, so it goes first in the next one
	replayed   bool  // brought by a replay
	approved   bool  // an operator let it go, however large its audience is
	rejoins    bool  // was finished, and is joined again for late subscribers
	again      bool  // clients were notified of it before this join began: its row counts them
	resumedAt  id.ID // an earlier session has passed the clients up to it; "": none
	passed     int64 // clients looked at; of the decider

	// Of limits.max_audience.
	admitted  bool  // the audience is within the limit, or approved
	countedTo id.ID // last client that was counted
	counted   int64

	began time.Time // when its message was received; zero: not known
	sent  int64     // milliseconds; time of its message, as Kafka gave it; 0: not known
	due   time.Time // when it should have gone out, see Durations; zero: not known
	over  bool      // a committed step has finished it; of the goroutine that handles those
	taken bool      // the feedback table has taken rows of it; likewise

	audience     atomic.Pointer[int64] // subscribers of the restaurant; nil: not counted yet
	passedBefore atomic.Pointer[int64] // those up to resumedAt; nil: not counted yet

	// guarded: the feedback table has refused some of the campaign's rows, so they are
	// written behind savepoints. refused: it takes no row of the campaign. The
	// committer sets both.
	guarded, refused atomic.Bool
	refusal          atomic.Pointer[string] // why; set before refused
	// droppedAtEnd: a step has left clients of it out, since its end has come. Steps behind
	// that were built before are cut off too. Set by the decider and the committer.
	droppedAtEnd atomic.Bool

	// contested: a client may have been notified of the campaign before, so its rows
	// go by ON CONFLICT. Set by the decider and, after a conflict, by the committer.
	contested atomic.Bool
	// postponed: a step has given the campaign up, and it comes back as another
	// liveCampaign. Set by the committer, together with lost.
	postponed atomic.Bool
	// lost: the campaign's row is not as this lane left it, so the lane decides
	// nothing more of this version. Set by the committer.
	lost atomic.Bool
}

// schedule holds the live campaigns of a lane and decides whose turn it is.
// Small ones go first without starving large ones: campaigns that were never
// served get up to three quarters of each step, in order of arrival. Campaigns that
// need more than one turn share, round-robin, the rest and any room that the fresh
// ones leave; room that remains after them goes to fresh ones again. A turn is at
// least a sixteenth of the step, since each turn costs an update of the campaign's
// row: with very many long campaigns not every one has a turn in every step.
//
// A step with few clients of fresh campaigns has few of long ones too: the fresh ones
// wait for the whole step. Every second step may be short, since small steps cost the
// long campaigns their speed.
type schedule struct {
	byKey         map[campaign.Key]*liveCampaign
	byID          map[string][]*liveCampaign // campaigns by id: one id may run for several restaurants
	fresh         []*liveCampaign
	long          []*liveCampaign // round-robin; the front is next
	passedOver    []*liveCampaign // in this step; they go to the front of long
	bytes         int             // memory held by campaigns in byKey
	removedCaches []id.ID         // delivered caches of campaigns that were removed

	replayed  int  // campaigns in byKey that a replay brought
	short     bool // the last step was short
	rejoining int  // campaigns in byKey that are joined again for late subscribers
}

func newSchedule() *schedule {
	return &schedule{byKey: map[campaign.Key]*liveCampaign{}, byID: map[string][]*liveCampaign{}}
}

// add puts a campaign in, in place of one of the same key.
func (s *schedule) add(l *liveCampaign) {
	if old := s.byKey[l.Key()]; old != nil {
		s.removeCampaign(old)
	}
	l.fresh = true
	s.byKey[l.Key()] = l
	s.bytes += l.Size()
	if l.rejoins { // it waits for its turn among the long ones
		s.rejoining++
		s.long = append(s.long, l)
	} else {
		s.fresh = append(s.fresh, l)
	}
	if l.replayed {
		s.replayed++
	}
	s.markContested(l)
}

// markContested marks campaigns that share an id over several restaurants: a client
// of two of them may be in a step in flight for one while the other is joined.
func (s *schedule) markContested(l *liveCampaign) {
	s.byID[l.ID] = append(s.byID[l.ID], l)
	if same := s.byID[l.ID]; len(same) > 1 {
		for _, o := range same {
			o.contested.Store(true)
		}
	}
}

// removeCampaign takes a campaign out that is finished, ended or replaced.
func (s *schedule) removeCampaign(l *liveCampaign) {
	if l.done {
		return
	}
	l.done = true
	if l.replayed {
		s.replayed--
	}
	if l.rejoins {
		s.rejoining--
	}
	if l.delivered != "" {
		s.removedCaches = append(s.removedCaches, l.delivered)
	}
	s.bytes -= l.Size()
	if s.byKey[l.Key()] == l {
		delete(s.byKey, l.Key())
	}
	same := slices.DeleteFunc(s.byID[l.ID], func(o *liveCampaign) bool { return o == l })
	if len(same) == 0 {
		delete(s.byID, l.ID)
	} else {
		s.byID[l.ID] = same
	}
}

func (s *schedule) len() int { return len(s.byKey) }

// takeEnded removes and returns the campaigns whose end has come.
func (s *schedule) takeEnded(now int64) []*liveCampaign {
	var ended []*liveCampaign
	for _, l := range s.byKey {
		if l.End <= now {
			ended = append(ended, l)
		}
	}
	for _, l := range ended {
		s.removeCampaign(l)
	}
	slices.SortFunc(ended, func(a, b *liveCampaign) int { return campaign.CompareKeys(a.Key(), b.Key()) })
	return ended
}

// shortShare of a step's room is what fresh campaigns have at most, and what long ones
// get, in a short step.
const shortShare = 8

// serveCampaigns calls take for campaigns in turn until the step's room is used. take returns
// how much room the campaign used and whether it has no clients left; it is called
// at most once per campaign and step. While there is room and no fresh campaign is
// left, serveCampaigns calls more, which adds one or returns false.
func (s *schedule) serveCampaigns(room int, more func() bool, take serveFunc) error {
	freshRoom := room
	if len(s.long) > 0 {
		freshRoom = room * 3 / 4
	}
	waiting := len(s.long) // campaigns behind these were served in this step
	whole, least := room/4, max(room/16, 1)
	used, err := s.serveFresh(freshRoom, whole, more, take)
	left := room - min(used, freshRoom) // the last fresh one may exceed the share of the fresh ones without taking from the others
	if s.short = !s.short && waiting > 0 && used > 0 && used <= room/shortShare; s.short {
		left = min(left, room/shortShare)
	}
	for i := 0; err == nil && i < waiting && left > 0; i++ {
		l := s.long[0]
		s.long[0], s.long = nil, s.long[1:]
		if l.done {
			continue
		}
		var n int
		n, err = s.serveTurn(l, max(left/(waiting-i)+1, least), take)
		left, used = left-n, used+n
	}
	if err == nil && used < room {
		_, err = s.serveFresh(room-used, whole, more, take)
	}
	if len(s.passedOver) > 0 {
		s.long, s.passedOver = append(s.passedOver, s.long...), nil
	}
	return err
}

type serveFunc func(l *liveCampaign, room int) (used int, exhausted bool, err error)

// serveFresh gives fresh campaigns turns until room is used. The last one may exceed
// room, so that a small campaign is not split: each part costs a write of its row.
func (s *schedule) serveFresh(room, whole int, more func() bool, take serveFunc) (used int, err error) {
	for used < room && (len(s.fresh) > 0 || more()) {
		if len(s.fresh) == 0 {
			continue
		}
		l := s.fresh[0]
		s.fresh[0], s.fresh = nil, s.fresh[1:]
		if l.done {
			continue
		}
		n, err := s.serveTurn(l, max(room-used, whole), take)
		if err != nil {
			return used, err
		}
		used += n
	}
	return used, nil
}

// serveTurn serves one campaign, which then leaves or goes to the end of the queue. One
// that take has passed over keeps its turn.
func (s *schedule) serveTurn(l *liveCampaign, room int, take serveFunc) (int, error) {
	used, exhausted, err := take(l, room)
	if err != nil {
		return 0, err
	}
	l.fresh = false
	switch {
	case exhausted:
		s.removeCampaign(l)
	case l.passedOver:
		l.passedOver = false
		s.passedOver = append(s.passedOver, l)
	default:
		s.long = append(s.long, l)
	}
	return used, nil
}

// stateOnTheWay is the state of the campaign's row while clients are left.
func (l *liveCampaign) stateOnTheWay() string {
	if l.rejoins {
		return sink.StateRejoin
	}
	return sink.StatePending
}

// whyRefused returns why the feedback table takes no row of the campaign.
func (l *liveCampaign) whyRefused() string {
	if why := l.refusal.Load(); why != nil {
		return *why
	}
	return ""
}

// packRestaurant sets the packed id of the restaurant.
func (l *liveCampaign) packRestaurant() (err error) {
	if l.restaurant, err = id.Pack(l.RestaurantID); err != nil {
		return fmt.Errorf("pack restaurant id: %w", err)
	}
	return nil
}

package stream

import (
	"fmt"
	"slices"
	"sync/atomic"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
)

// liveCampaign is one campaign in the middle of its fan-out, as the decide goroutine
// holds it. Postgres holds the same as of the last committed step.
type liveCampaign struct {
	*campaign.Campaign
	from       campaign.Position // of its message, for the log
	owner      int32             // the lane that delivers it
	version    int64             // of its row: whoever changes the row names it
	delivered  id.ID             // what the delivered cache has its clients under; "": nothing
	restaurant id.ID
	cursor     id.ID // last client looked at; "" before the first
	fresh      bool  // no client was looked at yet
	started    bool  // its start had come when it was accepted or loaded
	done       bool  // left the schedule
	replayed   bool  // brought by a replay

	// guarded: the table has refused rows of it, so they are written behind
	// savepoints. refused: it takes none of them. Both are commit's.
	guarded, refused atomic.Bool

	// contested: somebody may have been notified of it before, so its rows go by
	// ON CONFLICT. Set by decide and, after a conflict, by commit.
	contested atomic.Bool
	// lost: the row is not as this lane left it, so nothing more is decided by
	// this one. Set by commit.
	lost atomic.Bool
}

// schedule holds the live campaigns of a lane and decides whose turn it is.
// Small ones go first without starving large ones: campaigns that were never
// served get up to three quarters of each step, in order of arrival; those
// that need more than one turn share the rest, and whatever the fresh ones
// leave, round-robin; what those leave is for fresh ones again. A turn is a
// sixteenth of the step at least, since each one costs an update of the
// campaign's row: with very many long campaigns not every one has a turn in
// every step.
type schedule struct {
	byKey         map[campaign.Key]*liveCampaign
	byID          map[string][]*liveCampaign // campaigns by id: one id may run for several restaurants
	fresh         []*liveCampaign
	long          []*liveCampaign // round-robin; the front is next
	bytes         int             // memory held by campaigns in byKey
	removedCaches []id.ID         // delivered caches of campaigns that were removed

	replayed int // campaigns in byKey that a replay brought
}

func newSchedule() *schedule {
	return &schedule{byKey: map[campaign.Key]*liveCampaign{}, byID: map[string][]*liveCampaign{}}
}

// add puts a campaign in; one of the same key is replaced.
func (s *schedule) add(l *liveCampaign) {
	if old := s.byKey[l.Key()]; old != nil {
		s.remove(old)
	}
	l.fresh = true
	s.byKey[l.Key()] = l
	s.bytes += l.Size()
	s.fresh = append(s.fresh, l)
	if l.replayed {
		s.replayed++
	}
	s.markContested(l)
}

// markContested marks campaigns that share an id over several restaurants: a client
// of both is in flight for one while the other is joined, before the delivered
// cache can know.
func (s *schedule) markContested(l *liveCampaign) {
	s.byID[l.ID] = append(s.byID[l.ID], l)
	if same := s.byID[l.ID]; len(same) > 1 {
		for _, o := range same {
			o.contested.Store(true)
		}
	}
}

// remove takes a campaign out: finished, ended or replaced.
func (s *schedule) remove(l *liveCampaign) {
	if l.done {
		return
	}
	l.done = true
	if l.replayed {
		s.replayed--
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
		s.remove(l)
	}
	slices.SortFunc(ended, func(a, b *liveCampaign) int { return campaign.CompareKeys(a.Key(), b.Key()) })
	return ended
}

// serve hands out turns until take says that the step is full. take returns
// how much of the step's room the campaign used and whether it has no clients
// left; it is called at most once per campaign and step. more is asked for
// further fresh campaigns once there are none and while there is room; it adds
// what it has and returns false when there is nothing.
func (s *schedule) serve(room int, more func() bool, take serveFunc) error {
	freshRoom := room
	if len(s.long) > 0 {
		freshRoom = room * 3 / 4
	}
	waiting := len(s.long) // those that follow were served in this step
	whole, least := room/4, max(room/16, 1)
	used, err := s.serveFresh(freshRoom, whole, more, take)
	left := room - min(used, freshRoom) // the fresh ones' last may exceed their share, not take another's
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
	return err
}

type serveFunc func(l *liveCampaign, room int) (used int, exhausted bool, err error)

// serveFresh gives fresh campaigns turns until room is used. The last one may
// exceed it by what it takes to serve whole clients: a small campaign that is
// split is written twice.
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

// serveTurn serves one campaign, which then leaves or goes to the end of the queue.
func (s *schedule) serveTurn(l *liveCampaign, room int, take serveFunc) (int, error) {
	used, exhausted, err := take(l, room)
	if err != nil {
		return 0, err
	}
	l.fresh = false
	if exhausted {
		s.remove(l)
	} else {
		s.long = append(s.long, l)
	}
	return used, nil
}

// packRestaurant fills in the packed id of the restaurant.
func (l *liveCampaign) packRestaurant() (err error) {
	if l.restaurant, err = id.Pack(l.RestaurantID); err != nil {
		return fmt.Errorf("pack restaurant id: %w", err)
	}
	return nil
}

package stream

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"dinnerbell/internal/halt"
)

// LaneState is the state of a lane's work.
type LaneState string

// Lane states, as status shows them.
const (
	LaneTakeover LaneState = "takeover" // the lane waits for the sinks, or reads how far they are
	LaneRunning  LaneState = "running"
	LaneStopped  LaneState = "stopped" // its session has ended; the next takeover follows
	LaneHalted   LaneState = "halted"  // an operator is needed
)

// LaneStatus is one lane as this daemon sees it. Decided and Shipped are the
// step numbers P and K.
type LaneStatus struct {
	Partition  int32
	Epoch      int64
	Decided    int64
	Shipped    int64
	NextOffset int64
	State      LaneState
	// WaitingForFreshness: campaigns are held until the subscriptions have caught up.
	WaitingForFreshness bool
	// HeldByTransaction names the open transaction of another producer that keeps
	// campaigns from being read.
	HeldByTransaction string
	LastError         string
	Halted            *halt.Error
}

// Status is the stream at one moment. Live and scheduled campaigns are counted in
// memory; live ones include those that wait to be joined. The other campaigns and the
// notifications are counted since the deployment began, on the lanes that this daemon
// owns: these counts fall when a lane leaves.
type Status struct {
	Assigned  bool // the consumer group has answered at least once
	Lanes     []LaneStatus
	Campaigns struct {
		Live      int64
		Scheduled int64
		Expired   int64
		Dead      int64
	}
	Notifications struct {
		Decided int64
		Shipped int64
	}
	Counts    // since the service was made
	LastError string
	ClockSkew time.Duration // how far our clock was ahead of Postgres' at the start
	Halted    *halt.Error   // the first lane that halted
}

// Ready reports whether the group has answered and every lane that it has assigned
// works.
func (s *Status) Ready() bool {
	return s.Assigned && !slices.ContainsFunc(s.Lanes, func(l LaneStatus) bool { return l.State != LaneRunning })
}

// Status returns the present status. It is cheap and may be called at any time.
func (s *Service) Status() Status {
	s.mu.Lock()
	lanes := make([]*lane, 0, len(s.lanes))
	for _, h := range s.lanes {
		lanes = append(lanes, h.lane)
	}
	out := Status{Assigned: s.assigned, LastError: s.lastError, ClockSkew: s.skew, Counts: s.counters.snapshot()}
	s.mu.Unlock()
	slices.SortFunc(lanes, func(a, b *lane) int { return cmp.Compare(a.id, b.id) })
	for _, l := range lanes {
		l.addStatus(&out)
	}
	return out
}

func (l *lane) addStatus(out *Status) {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := l.status
	st.WaitingForFreshness = l.waiting.Load() > 0
	st.HeldByTransaction = l.held.describe(l.svc.cfg.Kafka.Campaigns, l.id)
	out.Lanes = append(out.Lanes, st)
	out.Campaigns.Live += int64(l.counts.live)
	if l.starts != nil {
		scheduled, waiting := l.starts.counts()
		out.Campaigns.Scheduled += int64(scheduled)
		out.Campaigns.Live += int64(waiting)
	}
	out.Campaigns.Expired += l.counts.Expired
	out.Campaigns.Dead += l.counts.Dead
	out.Notifications.Decided += l.counts.Notified
	out.Notifications.Shipped += l.counts.shipped
	if st.Halted != nil && out.Halted == nil {
		out.Halted = st.Halted
	}
}

// Counts count the work of this service since it was made, over all lanes that it has
// or had. They never fall: when a lane leaves, Status.Campaigns and
// Status.Notifications lose its share, and Counts stay.
type Counts struct {
	Decided         int64 // notifications that this service committed in Postgres
	Shipped         int64 // notifications that this service committed in Kafka, also of an earlier owner's steps
	Expired         int64 // campaigns that came after their end, cancels included
	Dead            int64 // messages that went to the dead letters
	Older           int64 // messages that did nothing: a newer one of their campaign was there
	WithoutAudience int64 // campaigns of a restaurant that nobody subscribes to
	Conflicts       int64 // steps that met clients whom the delivered cache did not know
	DeliveredMisses int64 // clients whom Postgres knew and the delivered cache did not
	Unservable      int64 // clients left out because the feedback table or the topic cannot take them; dead letters name them
}

// Add returns the sum of both.
func (c Counts) Add(o Counts) Counts {
	return Counts{
		Decided: c.Decided + o.Decided, Shipped: c.Shipped + o.Shipped, Expired: c.Expired + o.Expired, Dead: c.Dead + o.Dead,
		Older: c.Older + o.Older, WithoutAudience: c.WithoutAudience + o.WithoutAudience, Conflicts: c.Conflicts + o.Conflicts,
		DeliveredMisses: c.DeliveredMisses + o.DeliveredMisses, Unservable: c.Unservable + o.Unservable,
	}
}

// counters hold the Counts as they rise.
type counters struct {
	decided, shipped, expired, dead, older, withoutAudience, conflicts, deliveredMisses, unservable atomic.Int64
}

func (c *counters) snapshot() Counts {
	return Counts{
		Decided: c.decided.Load(), Shipped: c.shipped.Load(), Expired: c.expired.Load(), Dead: c.dead.Load(),
		Older: c.older.Load(), WithoutAudience: c.withoutAudience.Load(), Conflicts: c.conflicts.Load(),
		DeliveredMisses: c.deliveredMisses.Load(), Unservable: c.unservable.Load(),
	}
}

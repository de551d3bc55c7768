package stream

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dinnerbell/internal/halt"
	"dinnerbell/state"
	"dinnerbell/stream/campaign"
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
		Parked    int64 // wait for an operator's approval
		Paused    int64 // by an operator
	}
	Notifications struct {
		Decided int64
		Shipped int64
	}
	Counts    // since the service was made
	LastError string
	Limits    Limits
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
	out.PaceWaits = time.Duration(s.pace.held.Load())
	out.Limits = Limits{MaxAudience: s.maxAudience.Load(), NotificationsPerSecond: s.pace.rate.Load()}
	out.Campaigns.Parked, out.Campaigns.Paused = s.held.parked.Load(), s.held.paused.Load()
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
	Decided         int64         // notifications that this service committed in Postgres
	Shipped         int64         // notifications that this service committed in Kafka, also of an earlier owner's steps
	Expired         int64         // campaigns that came after their end, cancels included
	Dead            int64         // messages that went to the dead letters
	Older           int64         // messages that did nothing: a newer one of their campaign was there
	WithoutAudience int64         // campaigns of a restaurant that nobody subscribes to
	Conflicts       int64         // steps that met clients whom the delivered cache did not know
	DeliveredMisses int64         // clients whom Postgres knew and the delivered cache did not
	Parked          int64         // campaigns whose audience exceeded limits.max_audience
	PaceWaits       time.Duration // how long lanes waited for limits.notifications_per_second, over all lanes
	Unservable      int64         // clients left out because the feedback table or the topic cannot take them; dead letters name them
}

// Add returns the sum of both.
func (c Counts) Add(o Counts) Counts {
	return Counts{
		Decided: c.Decided + o.Decided, Shipped: c.Shipped + o.Shipped, Expired: c.Expired + o.Expired, Dead: c.Dead + o.Dead,
		Older: c.Older + o.Older, WithoutAudience: c.WithoutAudience + o.WithoutAudience, Conflicts: c.Conflicts + o.Conflicts,
		DeliveredMisses: c.DeliveredMisses + o.DeliveredMisses, Unservable: c.Unservable + o.Unservable, Parked: c.Parked + o.Parked, PaceWaits: c.PaceWaits + o.PaceWaits,
	}
}

// counters hold the Counts as they rise.
type counters struct {
	decided, shipped, expired, dead, older, withoutAudience, conflicts, deliveredMisses, unservable, parked atomic.Int64
}

func (c *counters) snapshot() Counts {
	return Counts{
		Decided: c.decided.Load(), Shipped: c.shipped.Load(), Expired: c.expired.Load(), Dead: c.dead.Load(),
		Older: c.older.Load(), WithoutAudience: c.withoutAudience.Load(), Conflicts: c.conflicts.Load(),
		DeliveredMisses: c.deliveredMisses.Load(), Unservable: c.unservable.Load(), Parked: c.parked.Load(),
	}
}

// A message that notifies nobody leaves a line in the log. A flood of such messages must
// not fill the log: one window has at most skipLogLines lines per reason, and the
// window's end adds a line with the number of the others.
const (
	skipLogWindow = 10 * time.Second
	skipLogLines  = 20
)

// skipReason is the reason why a message notifies nobody, as the log names it.
type skipReason string

const (
	skipRefused    skipReason = "it was refused and is in the dead letters"
	skipExpired    skipReason = "its end had passed when it was received"
	skipCancel     skipReason = "it ends the campaign"
	skipLeftOut    skipReason = "clients were left out"
	skipOlder      skipReason = "a newer message of its campaign is there; across partitions the record's time decides"
	skipStands     skipReason = "an operator cancelled its campaign; other content that is sent after the cancel revives it"
	skipNoAudience skipReason = "nobody subscribes to its restaurant"
)

// skippedMessage is a message of a step that notifies nobody.
type skippedMessage struct {
	kind     skipReason
	campaign *campaign.Campaign // nil for a dead letter
	offset   int64              // of the message
	reason   string             // only of a dead letter

	message, newest campaign.Version // only of an older message, or one of a cancelled campaign: its own version and the accepted one
}

// noteSkipped counts and logs the messages of a committed step that notify nobody.
func (l *lane) noteSkipped(st *step) {
	c := &l.svc.counters
	c.expired.Add(st.expired)
	c.dead.Add(int64(len(st.dead)))
	for _, o := range st.skipped {
		switch o.kind {
		case skipNoAudience:
			c.withoutAudience.Add(1)
		case skipOlder:
			c.older.Add(1)
		case skipRefused, skipExpired, skipCancel, skipLeftOut, skipStands:
		}
		l.svc.skipped.logMessage(o.kind, func() []any { return l.skippedAttributes(o) })
	}
	if !st.revives {
		return
	}
	for k, r := range st.rows {
		if r.revives > 0 {
			l.svc.cfg.Logger.Info("a message revives a campaign that an operator cancelled: it was sent after the cancel", "lane", l.id, "offset", r.at.Offset,
				"campaign", k.Campaign, "restaurant", k.Restaurant, "time", messageTime(r.acceptedVersion()), "cancelled", time.UnixMilli(r.revives).UTC())
		}
	}
}

// skippedAttributes are the log attributes of a skipped message.
func (l *lane) skippedAttributes(o skippedMessage) []any {
	if o.kind == skipRefused {
		return []any{"lane", l.id, "offset", o.offset, "reason", o.reason}
	}
	c := o.campaign
	attrs := []any{"lane", l.id, "offset", o.offset, "campaign", c.ID, "restaurant", c.RestaurantID}
	if o.kind == skipOlder {
		return append(attrs, "time", messageTime(o.message), "newer_lane", o.newest.Lane, "newer_offset", o.newest.Offset, "newer_time", messageTime(o.newest))
	}
	if o.kind == skipStands {
		return append(attrs, "time", messageTime(o.message), "cancelled", time.UnixMilli(o.newest.HeldAt).UTC())
	}
	if o.kind != skipNoAudience {
		return append(attrs, "end", time.Unix(c.End, 0).UTC())
	}
	if hint := similarHint(l.svc.store, c.RestaurantID); hint != "" {
		attrs = append(attrs, "hint", hint)
	}
	return attrs
}

func messageTime(k campaign.Version) time.Time { return time.UnixMilli(k.Time).UTC() }

// similarHint names a restaurant that has subscriptions and whose id differs from the given
// id only in ways that SQL may ignore; "" if there is no such restaurant or the state
// cannot be read.
func similarHint(store *state.Store, restaurant string) string {
	other, found, err := store.SimilarRestaurant(restaurant)
	if err != nil || !found {
		return ""
	}
	return fmt.Sprintf("restaurant %.200q has subscriptions; ids are compared byte by byte, and these two differ only in letter case, blanks at the end or the spelling of a UUID: send the id as the table has it", other)
}

// skipLog bounds the lines per reason.
type skipLog struct {
	log *slog.Logger

	mu      sync.Mutex // guards windows
	windows map[skipReason]*skipWindow
}

// skipWindow is one reason's window in progress.
type skipWindow struct {
	lines, more int64
	end         *time.Timer
}

// logMessage writes the line, or only counts it where the window is full. attributes is
// called only for a line that is written.
func (o *skipLog) logMessage(kind skipReason, attributes func() []any) {
	if !o.admitLine(kind) {
		return
	}
	o.log.Info("message notifies nobody", append([]any{"why", kind}, attributes()...)...)
}

// admitLine counts a line and reports whether the window has room for it.
func (o *skipLog) admitLine(kind skipReason) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := o.windows[kind]
	if w == nil {
		w = &skipWindow{}
		w.end = time.AfterFunc(skipLogWindow, func() { o.closeWindow(kind, w) })
		if o.windows == nil {
			o.windows = map[skipReason]*skipWindow{}
		}
		o.windows[kind] = w
	}
	if w.lines < skipLogLines {
		w.lines++
		return true
	}
	w.more++
	return false
}

// closeWindow ends a window and logs how many lines it left out.
func (o *skipLog) closeWindow(kind skipReason, w *skipWindow) {
	o.mu.Lock()
	if o.windows[kind] == w {
		delete(o.windows, kind)
	}
	more := w.more
	w.more = 0
	o.mu.Unlock()
	if more > 0 {
		o.log.Info("more messages notify nobody", "why", kind, "count", more, "within", skipLogWindow)
	}
}

// closeWindows ends all windows when the service ends.
func (o *skipLog) closeWindows() {
	o.mu.Lock()
	windows := o.windows
	o.windows = nil
	o.mu.Unlock()
	for kind, w := range windows {
		w.end.Stop()
		o.closeWindow(kind, w)
	}
}

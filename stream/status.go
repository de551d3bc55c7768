package stream

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"dinnerbell/internal/halt"
	"dinnerbell/state"
	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/record"
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
	// SourceLSN is how far the lane has handled the changes of the subscriptions for late
	// subscribers, and Behind how many bytes of the source's log it is behind the local
	// subscriptions; 0 where these are not served.
	SourceLSN id.LSN
	Behind    int64
	// WaitsForLSN: nothing is joined before the local subscriptions have come to this
	// position, which the lane has handled already; 0: nothing waits.
	WaitsForLSN id.LSN
	// HeldByTransaction names the open transaction of another producer that keeps
	// campaigns from being read.
	HeldByTransaction string
	// LagMessages is how many offsets of the campaigns topic wait to be decided, and Lag
	// since when the first of them waits; -1: not known.
	LagMessages int64
	Lag         time.Duration
	// Oldest is the age of the oldest campaign that the lane has accepted and not
	// delivered to its end, since it was due (see Durations); 0: there is none.
	Oldest    time.Duration
	LastError string
	Halted    *halt.Error
}

// Status is the stream at one moment. Live and scheduled campaigns are counted in
// memory; live ones include those that wait to be joined. The other campaigns and the
// notifications are counted since the deployment began, on the lanes that this daemon
// owns: these counts fall when another daemon takes a lane.
//
// Only a lane that runs knows its figures. The share of one that does not, and of one
// that is lost and not known to be another daemon's, is that of the end of its last
// session.
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
	// FiguresAt is the oldest moment that a lane's share in Campaigns and Notifications is
	// of; zero: all shares are those of now.
	FiguresAt time.Time
	// FiguresMissing is how many lanes have no share: this process has not taken them over
	// yet. FiguresUnknown: no lane has, so the numbers say nothing.
	FiguresMissing int
	FiguresUnknown bool
	Counts                          // since the service was made
	Recent         []RecentCampaign // the newest first
	LastError      string
	Limits         Limits
	ClockSkew      time.Duration // how far our clock was ahead of Postgres' at the last look
	ClockSkewError time.Duration // the largest error of ClockSkew: half of the time that Postgres took to answer
	Unreached      Unreached
	Halted         *halt.Error // the first lane that halted
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
	gone := slices.Collect(maps.Values(s.gone))
	out := Status{Assigned: s.assigned, LastError: s.lastError, ClockSkew: s.skew, ClockSkewError: s.skewOff, Unreached: s.unreached, Counts: s.counters.snapshot(), Recent: s.recent.snapshot()}
	out.PaceWaits = time.Duration(s.pace.held.Load())
	out.Limits = Limits{MaxAudience: s.maxAudience.Load(), NotificationsPerSecond: s.pace.rate.Load()}
	out.Campaigns.Parked, out.Campaigns.Paused = s.held.parked.Load(), s.held.paused.Load()
	s.mu.Unlock()
	slices.SortFunc(lanes, func(a, b *lane) int { return cmp.Compare(a.id, b.id) })
	for _, l := range lanes {
		l.addStatus(&out)
	}
	for _, l := range gone {
		l.addFigures(&out)
	}
	if !out.isHeldUp() {
		out.Unreached = Unreached{} // found before the trouble was over
	}
	known := len(lanes) + len(gone) - out.FiguresMissing
	out.FiguresUnknown = known == 0 && (len(lanes)+len(gone) > 0 || !out.Assigned)
	return out
}

// addFigures adds the lane's share to the counts.
func (l *lane) addFigures(out *Status) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.addFiguresLocked(out)
}

func (l *lane) addFiguresLocked(out *Status) {
	live, scheduled := l.ended.live, l.ended.scheduled
	switch {
	case l.status.State == LaneRunning:
		live, scheduled = l.openCampaignsLocked()
	case l.ended.at.IsZero():
		out.FiguresMissing++
		return
	case out.FiguresAt.IsZero() || l.ended.at.Before(out.FiguresAt):
		out.FiguresAt = l.ended.at
	}
	out.Campaigns.Live += live
	out.Campaigns.Scheduled += scheduled
	out.Campaigns.Expired += l.counts.Expired
	out.Campaigns.Dead += l.counts.Dead
	out.Notifications.Decided += l.counts.Notified
	out.Notifications.Shipped += l.counts.shipped
}

// openCampaignsLocked counts the campaigns of the session; live ones include those that
// wait to be joined.
func (l *lane) openCampaignsLocked() (live, scheduled int64) {
	live = int64(l.counts.live)
	if l.starts != nil {
		ahead, waiting := l.starts.countStarts()
		live, scheduled = live+int64(waiting), int64(ahead)
	}
	return live, scheduled
}

func (l *lane) addStatus(out *Status) {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := l.status
	st.WaitingForFreshness = l.waiting.Load() > 0
	if st.SourceLSN = l.handledLSN(); st.SourceLSN > 0 {
		st.Behind = max(0, int64(l.svc.store.EndLSN())-int64(st.SourceLSN))
	}
	st.WaitsForLSN = l.gate.Load().waitsFor()
	st.HeldByTransaction = l.held.describe(l.svc.cfg.Kafka.Campaigns, l.id)
	l.addLateness(&st)
	out.Lanes = append(out.Lanes, st)
	l.addFiguresLocked(out)
	if st.Halted != nil && out.Halted == nil {
		out.Halted = st.Halted
	}
}

// Counts count the work of this service since it was made, over all lanes that it has
// or had. They never fall: when a lane leaves, Status.Campaigns and
// Status.Notifications lose its share, and Counts stay.
type Counts struct {
	Decided         int64                // notifications that this service committed in Postgres
	Shipped         int64                // notifications that this service committed in Kafka, also of an earlier owner's steps
	Accepted        int64                // messages that were accepted as campaigns, edits included
	Finished        int64                // campaigns whose fan-out is over: finished, ended in the middle, or without audience
	Expired         int64                // campaigns that came after their end, cancels included
	Dead            int64                // messages that went to the dead letters
	Letters         campaign.ClassCounts // dead letters, those that name left-out clients included
	Older           int64                // messages that did nothing: a newer one of their campaign was there
	WithoutAudience int64                // campaigns of a restaurant that nobody subscribes to
	Conflicts       int64                // steps that met clients whom the delivered cache did not know
	DeliveredMisses int64                // clients whom Postgres knew and the delivered cache did not
	LateNotified    int64                // clients notified because they subscribed while a campaign was live
	LateEntries     int64                // new subscriptions that the lanes have looked at for that
	EarlyAborts     int64                // steps that were produced before their commit in vain: their Kafka transaction was aborted
	SessionsFailed  int64                // sessions of lanes that an error ended; the next session takes over
	Parked          int64                // campaigns whose audience exceeded limits.max_audience
	PaceWaits       time.Duration        // how long lanes waited for limits.notifications_per_second, over all lanes
	Unservable      int64                // clients left out because the feedback table or the topic cannot take them; dead letters name them
}

// Add returns the sum of both.
func (c Counts) Add(o Counts) Counts {
	c.Decided += o.Decided
	c.Shipped += o.Shipped
	c.Accepted += o.Accepted
	c.Finished += o.Finished
	c.Expired += o.Expired
	c.Dead += o.Dead
	for i := range c.Letters {
		c.Letters[i] += o.Letters[i]
	}
	c.Older += o.Older
	c.WithoutAudience += o.WithoutAudience
	c.Conflicts += o.Conflicts
	c.DeliveredMisses += o.DeliveredMisses
	c.LateNotified += o.LateNotified
	c.LateEntries += o.LateEntries
	c.Unservable += o.Unservable
	c.EarlyAborts += o.EarlyAborts
	c.SessionsFailed += o.SessionsFailed
	c.Parked += o.Parked
	c.PaceWaits += o.PaceWaits
	return c
}

// counters hold the Counts as they rise.
type counters struct {
	decided, shipped, accepted, finished, expired, dead, older, withoutAudience, conflicts, deliveredMisses, lateNotified, lateEntries, unservable, parked, earlyAborts, sessionsFailed atomic.Int64

	letters [len(campaign.ReasonClasses)]atomic.Int64
	latency [LatencyBuckets]atomic.Int64
}

// countLetter counts a dead letter: a refused message, or left-out clients.
func (c *counters) countLetter(d *record.DeadLetter) {
	if d.Clients > 0 {
		c.unservable.Add(d.Clients)
	} else {
		c.dead.Add(1)
	}
	if i := slices.Index(campaign.ReasonClasses[:], d.Class); i >= 0 {
		c.letters[i].Add(1)
	}
}

func (c *counters) snapshot() Counts {
	out := Counts{
		Decided: c.decided.Load(), Shipped: c.shipped.Load(), Accepted: c.accepted.Load(), Finished: c.finished.Load(), Expired: c.expired.Load(), Dead: c.dead.Load(),
		Older: c.older.Load(), WithoutAudience: c.withoutAudience.Load(), Conflicts: c.conflicts.Load(),
		DeliveredMisses: c.deliveredMisses.Load(), LateNotified: c.lateNotified.Load(), LateEntries: c.lateEntries.Load(),
		Unservable: c.unservable.Load(), Parked: c.parked.Load(),
		EarlyAborts: c.earlyAborts.Load(), SessionsFailed: c.sessionsFailed.Load(),
	}
	for i := range c.letters {
		out.Letters[i] = c.letters[i].Load()
	}
	return out
}

// A flood of campaigns, or of messages that notify nobody, must not fill the log: one
// window has at most skipLogLines lines per kind, and the window's end adds a line with
// the number of the others.
const (
	skipLogWindow = 10 * time.Second
	skipLogLines  = 20
)

// skipReason is the reason why a message notifies nobody, as the log names it; or the
// kind of a campaign's line.
type skipReason string

// The lines of campaigns; the others are those of messages that notify nobody.
const (
	logAccepted skipReason = "campaign accepted"
	logFinished skipReason = "campaign finished"
	logEnded    skipReason = "campaign ended"
)

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
func (l *lane) noteSkipped(st *step, seq int64) {
	c := &l.svc.counters
	c.expired.Add(st.expired)
	for i := range st.dead {
		c.countLetter(&st.dead[i])
	}
	var news []RecentCampaign
	for i := range st.skipped {
		o := &st.skipped[i]
		if len(st.skipped)-i <= recentLength {
			news = o.appendNews(news, l.id, st)
		}
		switch o.kind {
		case skipNoAudience:
			c.withoutAudience.Add(1)
		case skipOlder:
			c.older.Add(1)
		default:
		}
		l.svc.log.writeLines(o.kind, 1, 0, func(int) []any { return l.skippedAttributes(o, seq) })
	}
	l.svc.recent.add(news...)
	if !st.revives {
		return
	}
	for k, r := range st.rows {
		if r.revives > 0 {
			l.svc.cfg.Logger.Info("a message revives a campaign that an operator cancelled: it was sent after the cancel", "lane", l.id, "seq", seq, "offset", r.at.Offset,
				"campaign", k.Campaign, "restaurant", k.Restaurant, "sent", messageTime(r.acceptedVersion()), "cancelled", time.UnixMilli(r.revives).UTC())
		}
	}
}

// recentKinds names skipped messages as Recent does.
var recentKinds = map[skipReason]RecentKind{skipRefused: RecentRefused, skipExpired: RecentExpired, skipCancel: RecentCancelled, skipOlder: RecentSuperseded, skipStands: RecentSuperseded}

// appendNews appends the message as Recent lists it. A campaign without audience is
// listed with the finished ones.
func (o *skippedMessage) appendNews(list []RecentCampaign, lane int32, st *step) []RecentCampaign {
	what, ok := recentKinds[o.kind]
	if !ok {
		return list
	}
	if o.campaign == nil {
		return append(list, RecentCampaign{Lane: lane, Offset: o.offset, What: what, Reason: o.reason, At: time.Now(), Audience: -1})
	}
	l := &liveCampaign{Campaign: o.campaign, from: campaign.Position{Offset: o.offset}}
	item := l.news(lane, what, time.Now())
	if r := st.rows[l.Key()]; r != nil && what == RecentCancelled {
		item.setCounts(r.stored)
	}
	return append(list, item)
}

// skippedAttributes are the log attributes of a skipped message.
func (l *lane) skippedAttributes(o *skippedMessage, seq int64) []any {
	if o.kind == skipRefused {
		return []any{"lane", l.id, "seq", seq, "offset", o.offset, "reason", o.reason}
	}
	c := o.campaign
	attrs := []any{"lane", l.id, "seq", seq, "campaign", c.ID, "restaurant", c.RestaurantID, "offset", o.offset}
	if o.kind == skipOlder {
		return append(attrs, "sent", messageTime(o.message), "newer_lane", o.newest.Lane, "newer_offset", o.newest.Offset, "newer_sent", messageTime(o.newest))
	}
	if o.kind == skipStands {
		return append(attrs, "sent", messageTime(o.message), "cancelled", time.UnixMilli(o.newest.HeldAt).UTC())
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

// foldedLog bounds the lines of each kind.
type foldedLog struct {
	log *slog.Logger

	mu      sync.Mutex // guards windows
	windows map[skipReason]*skipWindow
}

// skipWindow is one kind's window in progress.
type skipWindow struct {
	lines   int // written
	all     int
	clients int64 // of all
	end     *time.Timer
}

// writeLines writes the lines of n messages, or only counts them and their clients where the
// window is full. attributes is called only for a line that is written.
func (o *foldedLog) writeLines(kind skipReason, n int, clients int64, attributes func(i int) []any) {
	lines := 0
	if n > 0 {
		lines = o.admitLines(kind, n, clients)
	}
	for i := range lines {
		switch attrs := attributes(i); kind {
		case logAccepted:
			o.log.Info("campaign accepted", attrs...)
		case logFinished:
			o.log.Info("campaign finished", attrs...)
		case logEnded:
			o.log.Info("campaign ended before everybody was notified", attrs...)
		default:
			o.log.Info("message notifies nobody", append([]any{"kind", kind}, attrs...)...)
		}
	}
}

// admitLines counts n lines and their clients, and returns for how many of them the
// window has room.
func (o *foldedLog) admitLines(kind skipReason, n int, clients int64) (lines int) {
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
	lines = min(n, skipLogLines-w.lines)
	w.lines += lines
	w.all, w.clients = w.all+n, w.clients+clients
	return lines
}

// closeWindow ends a window and logs how many lines it left out. For campaigns it counts
// the clients of all, with a line or not.
func (o *foldedLog) closeWindow(kind skipReason, w *skipWindow) {
	o.mu.Lock()
	if o.windows[kind] == w {
		delete(o.windows, kind)
	}
	more, all, clients := w.all-w.lines, w.all, w.clients
	w.all = w.lines
	o.mu.Unlock()
	if more == 0 {
		return
	}
	switch kind {
	case logAccepted:
		o.log.Info("campaigns accepted", "count", all, "without_line", more, "within", skipLogWindow)
	case logFinished:
		o.log.Info("campaigns finished", "count", all, "without_line", more, "notified", clients, "within", skipLogWindow)
	case logEnded:
		o.log.Info("campaigns ended before everybody was notified", "count", all, "without_line", more, "notified", clients, "within", skipLogWindow)
	default:
		o.log.Info("more messages notify nobody", "kind", kind, "count", more, "within", skipLogWindow)
	}
}

// closeWindows ends all windows when the service ends.
func (o *foldedLog) closeWindows() {
	o.mu.Lock()
	windows := o.windows
	o.windows = nil
	o.mu.Unlock()
	for kind, w := range windows {
		w.end.Stop()
		o.closeWindow(kind, w)
	}
}

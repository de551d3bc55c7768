package stream

import (
	"slices"
	"time"
)

// Observer records durations in seconds, such as a Prometheus histogram. Its callers are
// concurrent.
type Observer interface{ Observe(seconds float64) }

// Durations receive how long campaigns and steps take; nil: nobody wants to know. They
// are called once per campaign or step, never per notification.
//
// A campaign is due when its message was produced (the record's timestamp), or at its
// start if that is later, or when an operator let it go. Of a replayed message the
// receipt counts. The times are those of several machines' clocks; a negative duration
// is taken as 0.
type Durations struct {
	Decided   Observer // from due until the campaign's last step is in Postgres
	Delivered Observer // from due until the campaign's last notification is in Kafka
	Shipped   Observer // from a step's commit in Postgres until its commit in Kafka
}

// observeDuration records a duration, if somebody wants to know it.
func observeDuration(o Observer, d time.Duration) {
	if o != nil {
		o.Observe(max(d, 0).Seconds())
	}
}

// dueAt returns when a campaign is due: start is in seconds; since is when its message was
// produced or an operator let it go, in milliseconds.
func dueAt(start, since int64) time.Time {
	return time.UnixMilli(max(start*1000, since))
}

// lagUnknownAfter is how long a look at the end of the campaigns topic holds. While
// Kafka does not answer, nobody knows how many messages wait.
const lagUnknownAfter = 15 * time.Second

// maxEndMarks bounds the ends that inputLag remembers.
const maxEndMarks = 64

// inputLag is how far a lane is behind the end of its partition. The lane's mutex guards
// it.
type inputLag struct {
	end    int64     // of the partition, when it was looked at
	looked time.Time // zero: never
	// ends are ends that the lane has not come to, each with the moment of the look that
	// found it first; the earliest is at the front.
	ends []endMark
	// batches are messages that the intake has read and that are not decided, in their
	// order.
	batches []readBatch
}

type endMark struct {
	offset int64
	at     time.Time
}

// readBatch stands for messages that were read together.
type readBatch struct {
	last     int64     // offset of the last message
	produced time.Time // timestamp of the first message
}

// noteEnd records the partition's end; next is the lane's next offset.
func (g *inputLag) noteEnd(end, next int64, now time.Time) {
	g.end, g.looked = end, now
	g.trimBelow(next)
	if end <= next || len(g.ends) > 0 && g.ends[len(g.ends)-1].offset >= end {
		return
	}
	if len(g.ends) == maxEndMarks { // of each two the later one goes: the time of the earlier one errs by one interval
		for i := range maxEndMarks / 2 {
			g.ends[i] = g.ends[2*i]
		}
		g.ends = g.ends[:maxEndMarks/2]
	}
	g.ends = append(g.ends, endMark{end, now})
}

// noteRead records a batch of messages that was read.
func (g *inputLag) noteRead(batch []message) {
	first := batch[0]
	if first.holdsNothing() {
		return
	}
	g.batches = append(g.batches, readBatch{last: batch[len(batch)-1].offset, produced: time.UnixMilli(first.time)})
}

// trimBelow forgets the marks that the lane has come to.
func (g *inputLag) trimBelow(next int64) {
	n := 0
	for n < len(g.ends) && g.ends[n].offset <= next {
		n++
	}
	g.ends = slices.Delete(g.ends, 0, n)
	n = 0
	for n < len(g.batches) && g.batches[n].last < next {
		n++
	}
	g.batches = slices.Delete(g.batches, 0, n)
}

// lag returns how many offsets the lane is behind, and since when: since the message that
// is decided next was produced, or was seen at the end of the topic where it was not read
// yet. Both are -1 where that is not known. Aborted messages and transactions' markers
// count as messages until the lane has passed them.
func (g *inputLag) lag(next int64, now time.Time) (messages int64, behind time.Duration) {
	if g.looked.IsZero() || now.Sub(g.looked) > lagUnknownAfter {
		return -1, -1
	}
	g.trimBelow(next)
	messages = g.end - next
	if messages <= 0 {
		return 0, 0
	}
	since := g.looked
	if len(g.ends) > 0 {
		since = g.ends[0].at
	}
	if len(g.batches) > 0 && g.batches[0].produced.Before(since) {
		since = g.batches[0].produced
	}
	return messages, max(now.Sub(since), 0)
}

// lateness is what a lane knows of the time that its campaigns wait. The lane's mutex
// guards it.
type lateness struct {
	input inputLag
	// fresh is when the oldest campaign is due of which the decider has looked at no
	// client yet; zero: there is none.
	fresh time.Time
	// built are the steps that are built and not committed: when the oldest campaign
	// that each serves is due; zero: it serves none.
	built []time.Time
	// decided are the steps that are committed and not shipped.
	decided []decidedStep
	// before is when the oldest campaign of the last session was due; zero: all were
	// delivered.
	before time.Time
}

// decidedStep is a step that was committed at a time.
type decidedStep struct {
	seq int64
	at  time.Time
}

// noteDecided records that the oldest of the built steps is committed as step seq.
func (t *lateness) noteDecided(seq, next int64) {
	t.input.trimBelow(next)
	if len(t.built) > 0 {
		t.built = slices.Delete(t.built, 0, 1)
	}
	t.decided = append(t.decided, decidedStep{seq, time.Now()})
}

// noteShipped records that all steps up to seq are shipped, and observes how long each
// took.
func (t *lateness) noteShipped(seq int64, o Observer) {
	now, n := time.Now(), 0
	for ; n < len(t.decided) && t.decided[n].seq <= seq; n++ {
		observeDuration(o, now.Sub(t.decided[n].at))
	}
	t.decided = slices.Delete(t.decided, 0, n)
}

// endSession forgets the session's steps, but for when the oldest campaign was due.
func (t *lateness) endSession(oldest time.Time) {
	t.fresh, t.built, t.decided, t.input.batches, t.before = time.Time{}, nil, nil, nil, oldest
}

// oldestDueLocked returns when the oldest campaign of the lane is due that the lane has
// accepted and not delivered to its end; zero: there is none. Campaigns that an operator
// holds are left out, and those whose start lies ahead.
func (l *lane) oldestDueLocked() time.Time {
	t := &l.late
	oldest := earlierTime(t.before, t.fresh)
	for _, at := range t.built {
		oldest = earlierTime(oldest, at)
	}
	for _, f := range l.fanOuts {
		if !f.live.lost.Load() {
			oldest = earlierTime(oldest, f.live.due)
		}
	}
	for i := range l.unshipped {
		if f := &l.unshipped[i]; f.counts.Notified > 0 {
			oldest = earlierTime(oldest, f.due)
		}
	}
	if l.starts != nil {
		oldest = earlierTime(oldest, l.starts.oldestDue(l.svc.now().Unix()))
	}
	return oldest
}

// noteFresh records when the oldest campaign is due that waits for the decider.
func (l *lane) noteFresh(due time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.late.fresh = due
}

// noteBuilt records a step that the decider hands to the committer.
func (l *lane) noteBuilt(st *step) {
	var oldest time.Time
	for _, r := range st.rows {
		if r.served && !r.rejoins {
			oldest = earlierTime(oldest, r.due)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.late.built = append(l.late.built, oldest)
}

// oldestFresh returns when the campaign is due that has waited longest for its first
// turn; zero: none waits.
func (s *schedule) oldestFresh() time.Time {
	for _, l := range s.fresh {
		if !l.done {
			return l.due
		}
	}
	return time.Time{}
}

// oldestDue returns when the oldest listed campaign is due whose start has come; zero:
// there is none.
func (a *startTimes) oldestDue(now int64) (oldest time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.handingOver > 0 {
		oldest = a.handedDue
	}
	if len(a.queue) == 0 || a.queue[0].start > now {
		return oldest
	}
	for i := range a.queue {
		if p := &a.queue[i]; p.start <= now && a.listed[p.key] == p.version {
			oldest = earlierTime(oldest, dueAt(p.start, p.since))
		}
	}
	return oldest
}

// earlierTime returns the earlier one of two moments; a zero one is none.
func earlierTime(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// addLateness adds to the lane's status how late the lane is. The caller holds l.mu.
func (l *lane) addLateness(st *LaneStatus) {
	st.LagMessages, st.Lag = -1, -1
	now := l.svc.now()
	if st.Epoch > 0 { // before, nobody knows what the lane has read
		st.LagMessages, st.Lag = l.late.input.lag(st.NextOffset, now)
	}
	if oldest := l.oldestDueLocked(); !oldest.IsZero() {
		st.Oldest = max(now.Sub(oldest), 0)
	}
}

// noteRead records messages that the intake has read.
func (l *lane) noteRead(batch []message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.late.input.noteRead(batch)
}

// observeSinceDue records how long a finished campaign took until now, if it notified somebody
// and its end did not cut it off.
func (f *finishedCampaign) observeSinceDue(o Observer, now time.Time) {
	if f.what == RecentFinished && f.counts.Notified > 0 && !f.due.IsZero() && !f.rejoins {
		observeDuration(o, now.Sub(f.due))
	}
}

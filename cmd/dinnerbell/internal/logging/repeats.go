package logging

import (
	"log/slog"
	"sync"
	"time"
)

// A repeated message of level warn or above is written again after the first pause
// at the earliest, then after twice that pause, up to the last.
const (
	firstPause = 10 * time.Second
	lastPause  = 5 * time.Minute
	// maxRepeats bounds how many different messages are remembered.
	maxRepeats = 256

	// A part in trouble is summed up in one line after this time, and each time again.
	summaryPause = time.Minute
	// A part without a failed attempt for this time is no longer in trouble.
	calm = time.Minute
	// Failed connections of Kafka's client are written when nobody else has told of the
	// trouble for this time: the client lost a broker, and found another one.
	clientPatience = 10 * time.Second
)

// message is what the filter knows of a record.
type message struct {
	part, text, id string
	level          slog.Level

	ofClient   bool // Kafka's client library speaks, of a connection that it makes again
	retried    bool // it names the next attempt, or comes from the consumer group, which tries again
	ofCampaign bool // a campaign's progress says nothing of servers
	ofCommand  bool // an operator's
}

// noteAttribute takes a record's attribute into account.
func (m *message) noteAttribute(key string) {
	switch key {
	case "campaign", "within":
		m.ofCampaign = true
	case "command":
		m.ofCommand = true
	case "again_in", "group":
		m.retried = true
	}
}

// isRecovery reports whether a message says that a part works again.
func (m *message) isRecovery() bool {
	return m.level == slog.LevelInfo && (m.text == "streaming" || m.text == "lane taken over")
}

// repeatFilter remembers the warnings that were written, and which parts are in trouble.
type repeatFilter struct {
	now func() time.Time

	mu       sync.Mutex // guards what follows
	seen     map[string]*repeatedMessage
	troubles map[string]*trouble // by part; a part is a constant
}

func newRepeatFilter(now func() time.Time) *repeatFilter {
	return &repeatFilter{now: now, seen: map[string]*repeatedMessage{}, troubles: map[string]*trouble{}}
}

// trouble is a part's series of failed attempts: a server is down, and every attempt
// fails in a way of its own. The series is one line at its begin, and one for each
// summaryPause, with the last cause.
type trouble struct {
	since, last time.Time // the first and the last failure
	written     time.Time // the last line; zero: none yet
	attempts    int
	over        bool // the part works again
}

// admitMessage returns whether a message is written, and attributes to add to it.
func (r *repeatFilter) admitMessage(m *message) (write bool, more []slog.Attr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case m.level == slog.LevelWarn && (m.retried || m.ofClient):
		return r.admitFailureLocked(m)
	case m.level >= slog.LevelWarn:
		times, write := r.addLocked(m.part, m.id)
		if times > 0 {
			more = append(more, slog.Int("repeated", times))
		}
		return write, more
	case m.isRecovery():
		r.forgetLocked(m.part)
		return r.admitRecoveryLocked(m.part)
	case m.level >= slog.LevelInfo && !m.ofCampaign:
		r.forgetLocked(m.part) // progress: the next warning is news
	}
	return true, nil
}

// admitFailureLocked admits a failed attempt of a part.
func (r *repeatFilter) admitFailureLocked(m *message) (write bool, more []slog.Attr) {
	now := r.now()
	t := r.troubles[m.part]
	if t == nil || now.Sub(t.last) >= calm {
		t = &trouble{since: now}
		r.troubles[m.part] = t
	}
	if t.over { // and soon in trouble again: a new series, whose first line may have to wait
		*t = trouble{since: now, written: t.written}
	}
	t.last = now
	t.attempts++
	switch due := t.written.Add(summaryPause); {
	case t.written.IsZero():
		write = !m.ofClient || now.Sub(t.since) >= clientPatience
	case t.since.After(t.written): // of a series that no line tells of yet
		write = !m.ofClient && now.Sub(t.written) >= firstPause || !now.Before(due)
	default:
		write = !now.Before(due)
	}
	if !write {
		return false, nil
	}
	if t.attempts > 1 {
		more = append(more, slog.Int("attempts", t.attempts), slog.Duration("for", now.Sub(t.since).Round(time.Second)))
	}
	t.written = now
	return true, more
}

// admitRecoveryLocked ends a part's trouble, and returns how long it took. The recovery
// from a trouble that no line tells of is not written either.
func (r *repeatFilter) admitRecoveryLocked(part string) (write bool, more []slog.Attr) {
	t := r.troubles[part]
	if t == nil || r.now().Sub(t.last) >= calm {
		return true, nil
	}
	if !t.written.IsZero() && t.since.After(t.written) {
		t.over = true
		return false, nil
	}
	if !t.over {
		more = []slog.Attr{slog.Int("attempts", t.attempts), slog.Duration("after", r.now().Sub(t.since).Round(time.Millisecond))}
	}
	t.over = true
	return true, more
}

// repeatedMessage is one warning.
type repeatedMessage struct {
	part  string
	until time.Time     // the message is not written again before
	pause time.Duration // before until
	times int           // suppressed since the last time
}

// addLocked records a warning, and returns whether to write it and how often it was not
// written since the last time.
func (r *repeatFilter) addLocked(part, id string) (times int, write bool) {
	now := r.now()
	m := r.seen[id]
	switch {
	case m == nil || now.Sub(m.until) > m.pause: // new, or it had stopped
		if len(r.seen) >= maxRepeats {
			clear(r.seen)
		}
		r.seen[id] = &repeatedMessage{part: part, until: now.Add(firstPause), pause: firstPause}
		if m != nil {
			return m.times, true
		}
		return 0, true
	case now.Before(m.until):
		m.times++
		return 0, false
	}
	times, m.times = m.times, 0
	m.pause = min(2*m.pause, lastPause)
	m.until = now.Add(m.pause)
	return times, true
}

// forgetLocked lets the warnings of a part be written again at once.
func (r *repeatFilter) forgetLocked(part string) {
	for id, m := range r.seen {
		if m.part == part {
			delete(r.seen, id)
		}
	}
}

package logging

import (
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// maxEvents is how many events are kept.
	maxEvents = 200
	// maxEventText bounds an event's text, in bytes: all of them take 200 KB at most.
	maxEventText = 1000
)

// Event is one message of the log that an operator wants to read later: a change of
// state of a part, a halt, a takeover, a snapshot, an operator's command. It names no
// client: anybody may read a status.
type Event struct {
	Time  time.Time
	Level slog.Level
	Part  string // source, stream, state; empty: the daemon itself
	Text  string // one line, without secrets, of bounded length
	Times int    // how often it came in a row; Time and Text are of the last
}

// Events returns the last events of a logger of New, the newest first; none of other
// loggers. The log's level does not matter: a message of info or above is an event.
func Events(log *slog.Logger) []Event {
	h, ok := log.Handler().(*cleaningHandler)
	if !ok {
		return nil
	}
	return h.events.listEvents()
}

// eventRing keeps the last events.
type eventRing struct {
	mu     sync.Mutex // guards what follows
	events []Event    // the oldest at next, once it is full
	next   int
	lastID string // the identity of the newest
}

// add keeps an event. An event whose message is the same as the one before, but for
// its numbers, takes the place of that one.
func (r *eventRing) add(e Event, id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.Times = 1
	switch n := len(r.events); {
	case n > 0 && id == r.lastID:
		last := (r.next + n - 1) % n
		e.Times = r.events[last].Times + 1
		r.events[last] = e
	case n < maxEvents:
		r.events = append(r.events, e)
	default:
		r.events[r.next] = e
		r.next = (r.next + 1) % n
	}
	r.lastID = id
}

// listEvents returns a copy, the newest first.
func (r *eventRing) listEvents() []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := slices.Concat(r.events[r.next:], r.events[:r.next])
	slices.Reverse(out)
	return out
}

// isEvent reports whether a message is an event. The lines of a single campaign's
// progress are none: recent_campaigns has them, and a busy hour of them would push
// out everything else. An operator's command on a campaign is one.
func isEvent(level slog.Level, ofCampaign, ofCommand bool) bool {
	return level >= slog.LevelWarn || level >= slog.LevelInfo && (!ofCampaign || ofCommand)
}

// isReadOnlyAction reports whether an action of the control socket only looks. Scripts
// repeat these, and their errors may name a client.
func isReadOnlyAction(name string) bool {
	return slices.Contains([]string{"campaigns", "explain", "preview", "subscribers"}, name)
}

// eventText returns a record of clean attributes as one line for a person: the
// message, its cause, the other attributes in parentheses, and how to mend it.
func eventText(r *slog.Record) string {
	var causes, others []string
	mend := ""
	r.Attrs(func(a slog.Attr) bool {
		text := attrText(a.Value)
		switch {
		case a.Key == "to_mend":
			mend = "; to mend: " + text
		case isProse(a.Key):
			causes = append(causes, text)
		default:
			if quoted := strconv.Quote(text); a.Value.Kind() == slog.KindString && (text != Line(text) || len(quoted) != len(text)+2) {
				text = quoted // an id, perhaps
			}
			others = append(others, strings.ReplaceAll(a.Key, "_", " ")+" "+text)
		}
		return true
	})
	text := r.Message
	if len(causes) > 0 {
		text += ": " + strings.Join(causes, "; ")
	}
	if len(others) > 0 {
		text += " (" + strings.Join(others, ", ") + ")"
	}
	return Bound(text, maxEventText-len(mend)) + mend
}

// attrText returns a clean value as text.
func attrText(v slog.Value) string {
	switch v.Kind() {
	case slog.KindDuration:
		return v.Duration().Round(time.Millisecond).String()
	case slog.KindTime:
		return v.Time().UTC().Format(time.RFC3339)
	case slog.KindAny:
		if list, ok := v.Any().([]string); ok {
			return strings.Join(list, ", ")
		}
		return Line(fmt.Sprint(v.Any()))
	default:
		return v.String()
	}
}

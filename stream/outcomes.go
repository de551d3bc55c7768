package stream

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"dinnerbell/state"
	"dinnerbell/stream/campaign"
)

// A message that notifies nobody leaves a line. A flood of them must not fill the
// log: within one window at most outcomeLines lines of a kind are written, and the
// window's end writes how many more there were.
const (
	outcomeWindow = 10 * time.Second
	outcomeLines  = 20
)

// outcomeKind is why a message notifies nobody, as the log names it.
type outcomeKind string

const (
	outcomeDead            outcomeKind = "it was refused and is in the dead letters"
	outcomeExpired         outcomeKind = "its end had passed when it was received"
	outcomeCancelled       outcomeKind = "it ends the campaign"
	outcomeLeftOut         outcomeKind = "clients were left out"
	outcomeOlder           outcomeKind = "a newer message of its campaign is there; across partitions the record's time decides"
	outcomeWithoutAudience outcomeKind = "nobody subscribes to its restaurant"
)

// outcome is one such message of a step.
type outcome struct {
	kind     outcomeKind
	campaign *campaign.Campaign // nil of a dead letter
	offset   int64              // of the message
	reason   string             // of a dead letter

	message, newest campaign.Version // of an older message: itself, and the newest
}

// noteOutcomes counts what the committed step did not notify, and logs it.
func (l *lane) noteOutcomes(st *step) {
	c := &l.svc.counters
	c.expired.Add(st.expired)
	c.dead.Add(int64(len(st.dead)))
	for _, o := range st.outcomes {
		switch o.kind {
		case outcomeWithoutAudience:
			c.withoutAudience.Add(1)
		case outcomeOlder:
			c.older.Add(1)
		case outcomeDead, outcomeExpired, outcomeCancelled, outcomeLeftOut:
		}
		l.svc.outcomes.note(o.kind, func() []any { return l.outcomeAttributes(o) })
	}
}

func (l *lane) outcomeAttributes(o outcome) []any {
	if o.kind == outcomeDead {
		return []any{"lane", l.id, "offset", o.offset, "reason", o.reason}
	}
	c := o.campaign
	attrs := []any{"lane", l.id, "offset", o.offset, "campaign", c.ID, "restaurant", c.RestaurantID}
	if o.kind == outcomeOlder {
		return append(attrs, "time", msgTime(o.message), "newer_lane", o.newest.Lane, "newer_offset", o.newest.Offset, "newer_time", msgTime(o.newest))
	}
	if o.kind != outcomeWithoutAudience {
		return append(attrs, "end", time.Unix(c.End, 0).UTC())
	}
	if hint := similarHint(l.svc.store, c.RestaurantID); hint != "" {
		attrs = append(attrs, "hint", hint)
	}
	return attrs
}

func msgTime(k campaign.Version) time.Time { return time.UnixMilli(k.Time).UTC() }

// similarHint names a restaurant that has subscriptions and whose id differs from
// the given one only in what SQL may ignore; "" if there is none. A state that
// cannot be read has no hint.
func similarHint(store *state.Store, restaurant string) string {
	other, found, err := store.SimilarRestaurant(restaurant)
	if err != nil || !found {
		return ""
	}
	return fmt.Sprintf("restaurant %.200q has subscriptions; ids are compared byte by byte, and these two differ only in letter case, blanks at the end or the spelling of a UUID: send the id as the table has it", other)
}

// outcomeLog bounds the lines of each kind.
type outcomeLog struct {
	log *slog.Logger

	mu      sync.Mutex // guards windows
	windows map[outcomeKind]*outcomeCount
}

// outcomeCount is one kind's window under way.
type outcomeCount struct {
	lines, more int64
	end         *time.Timer
}

// note writes the line, or counts it where the window has its lines. attributes
// is called for a line that is written alone.
func (o *outcomeLog) note(kind outcomeKind, attributes func() []any) {
	if !o.admit(kind) {
		return
	}
	o.log.Info("message notifies nobody", append([]any{"why", kind}, attributes()...)...)
}

// admit tells whether the window has room for a line, and counts.
func (o *outcomeLog) admit(kind outcomeKind) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := o.windows[kind]
	if w == nil {
		w = &outcomeCount{}
		w.end = time.AfterFunc(outcomeWindow, func() { o.close(kind, w) })
		if o.windows == nil {
			o.windows = map[outcomeKind]*outcomeCount{}
		}
		o.windows[kind] = w
	}
	if w.lines < outcomeLines {
		w.lines++
		return true
	}
	w.more++
	return false
}

// close ends a window and writes how many lines it left out.
func (o *outcomeLog) close(kind outcomeKind, w *outcomeCount) {
	o.mu.Lock()
	if o.windows[kind] == w {
		delete(o.windows, kind)
	}
	more := w.more
	w.more = 0
	o.mu.Unlock()
	if more > 0 {
		o.log.Info("more messages notify nobody", "why", kind, "count", more, "within", outcomeWindow)
	}
}

// flush ends all windows: the service ends.
func (o *outcomeLog) flush() {
	o.mu.Lock()
	windows := o.windows
	o.windows = nil
	o.mu.Unlock()
	for kind, w := range windows {
		w.end.Stop()
		o.close(kind, w)
	}
}

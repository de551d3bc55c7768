package stream

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"dinnerbell/state"
	"dinnerbell/stream/campaign"
)

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
	skipNoAudience skipReason = "nobody subscribes to its restaurant"
)

// skippedMessage is a message of a step that notifies nobody.
type skippedMessage struct {
	kind     skipReason
	campaign *campaign.Campaign // nil for a dead letter
	offset   int64              // of the message
	reason   string             // only of a dead letter

	message, newest campaign.Version // only of an older message: its own version and the newest one
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
		case skipRefused, skipExpired, skipCancel, skipLeftOut:
		}
		l.svc.skipped.logMessage(o.kind, func() []any { return l.skippedAttributes(o) })
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

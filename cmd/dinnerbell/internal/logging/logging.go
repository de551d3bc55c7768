// Package logging makes the daemon's logger: every text in it is bounded and holds
// no secret, and a repeated message is written once in a while.
package logging

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// New makes a logger of a level (debug, info, warn, error) and a format (text,
// json). hide takes secrets out of a text; it may be called at any time.
func New(w io.Writer, level, format string, hide func(string) string) *slog.Logger {
	threshold := &slog.LevelVar{}
	_ = threshold.UnmarshalText([]byte(level)) // the configuration has been checked
	opts := &slog.HandlerOptions{Level: threshold}
	var next slog.Handler = slog.NewTextHandler(w, opts)
	if format == "json" {
		next = slog.NewJSONHandler(w, opts)
	}
	return slog.New(&cleaningHandler{next: next, threshold: threshold, hide: hide, events: &eventRing{},
		repeats: &repeatFilter{now: time.Now, seen: map[string]*repeatedMessage{}}})
}

// SetLevel changes the level of a logger of New, and of all loggers that come from it.
func SetLevel(log *slog.Logger, level string) {
	if h, ok := log.Handler().(*cleaningHandler); ok {
		_ = h.threshold.UnmarshalText([]byte(level)) // the configuration has been checked
	}
}

// cleaningHandler cleans each record before it passes it on, and keeps the events.
// Its copies of With share the repeats and the events.
type cleaningHandler struct {
	next      slog.Handler
	threshold *slog.LevelVar
	hide      func(string) string
	with      string // the attributes of With, as a part of a message's identity
	part      string // the attribute of that name, if With gave one
	silent    bool   // no message is an event
	repeats   *repeatFilter
	events    *eventRing
}

// Enabled implements slog.Handler.
func (h *cleaningHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo || h.next.Enabled(ctx, level) // events are kept at every level of the log
}

// WithAttrs implements slog.Handler.
func (h *cleaningHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	clean := make([]slog.Attr, len(attrs))
	for i, a := range attrs {
		clean[i] = h.cleanAttr(a)
		c.with += attrIdentity(clean[i])
		switch a.Key {
		case "part":
			c.part = clean[i].Value.String()
		case "action":
			c.silent = isReadOnlyAction(clean[i].Value.String())
		}
	}
	c.next = h.next.WithAttrs(clean)
	return &c
}

// WithGroup implements slog.Handler.
func (h *cleaningHandler) WithGroup(name string) slog.Handler {
	c := *h
	c.next, c.with = h.next.WithGroup(name), h.with+name+"."
	return &c
}

// Handle implements slog.Handler.
func (h *cleaningHandler) Handle(ctx context.Context, r slog.Record) error {
	out := slog.NewRecord(r.Time, r.Level, Line(h.hide(r.Message)), r.PC)
	var id strings.Builder
	id.WriteString(h.with + out.Message)
	ofCampaign, ofCommand := false, false
	r.Attrs(func(a slog.Attr) bool {
		a = h.cleanAttr(a)
		ofCampaign = ofCampaign || a.Key == "campaign" || a.Key == "within"
		ofCommand = ofCommand || a.Key == "command"
		id.WriteString(attrIdentity(a))
		out.AddAttrs(a)
		return true
	})
	switch {
	case r.Level >= slog.LevelWarn:
		times, write := h.repeats.add(h.part, id.String())
		if !write {
			return nil
		}
		if times > 0 {
			out.AddAttrs(slog.Int("repeated", times))
		}
	case r.Level >= slog.LevelInfo && !ofCampaign:
		h.repeats.forget(h.part) // progress: the next warning is news. A campaign's own line says nothing of servers
	}
	if !h.silent && isEvent(r.Level, ofCampaign, ofCommand) {
		h.events.add(Event{Time: r.Time, Level: r.Level, Part: h.part, Text: eventText(&out)}, id.String())
	}
	if !h.next.Enabled(ctx, r.Level) {
		return nil
	}
	return h.next.Handle(ctx, out)
}

// cleanAttr bounds a value's text and takes secrets out of it.
func (h *cleaningHandler) cleanAttr(a slog.Attr) slog.Attr {
	switch v := a.Value.Resolve(); v.Kind() {
	case slog.KindString:
		a.Value = slog.StringValue(Line(h.hide(v.String())))
	case slog.KindGroup:
		group := slices.Clone(v.Group())
		for i := range group {
			group[i] = h.cleanAttr(group[i])
		}
		a.Value = slog.GroupValue(group...)
	case slog.KindAny:
		switch x := v.Any().(type) {
		case error, fmt.Stringer:
			a.Value = slog.StringValue(Line(h.hide(fmt.Sprint(x))))
		case []string:
			texts := slices.Clone(x)
			for i := range texts {
				texts[i] = Line(h.hide(texts[i]))
			}
			a.Value = slog.AnyValue(texts)
		default:
			a.Value = v
		}
	default:
		a.Value = v
	}
	return a
}

// attrIdentity returns the part of an attribute by which two messages differ. It
// leaves out durations, and numbers other than a lane's, because pauses and counts
// grow; and numbers inside of a text, such as a port or a process id.
func attrIdentity(a slog.Attr) string {
	switch a.Value.Kind() {
	case slog.KindDuration, slog.KindInt64, slog.KindUint64, slog.KindFloat64, slog.KindTime:
		if a.Key != "lane" {
			return ""
		}
	default:
	}
	text := a.Value.String()
	if a.Value.Kind() == slog.KindString {
		text = strings.Map(func(r rune) rune {
			if '0' <= r && r <= '9' {
				return -1
			}
			return r
		}, text)
	}
	return "\x00" + a.Key + "=" + text
}

// A repeated message of level warn or above is written again after the first pause
// at the earliest, then after twice that pause, up to the last.
const (
	firstPause = 10 * time.Second
	lastPause  = 5 * time.Minute
	// maxRepeats bounds how many different messages are remembered.
	maxRepeats = 256
)

// repeatFilter remembers the warnings that were written.
type repeatFilter struct {
	now func() time.Time

	mu   sync.Mutex // guards what follows
	seen map[string]*repeatedMessage
}

// repeatedMessage is one warning.
type repeatedMessage struct {
	part  string
	until time.Time     // the message is not written again before
	pause time.Duration // before until
	times int           // suppressed since the last time
}

// add records a warning, and returns whether to write it and how often it was not
// written since the last time.
func (r *repeatFilter) add(part, id string) (times int, write bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
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

// forget lets the warnings of a part be written again at once.
func (r *repeatFilter) forget(part string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, m := range r.seen {
		if m.part == part {
			delete(r.seen, id)
		}
	}
}

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
	"time"
)

// New makes a logger of a level (debug, info, warn, error) and a format (text,
// json). hide takes secrets out of a text; it may be called at any time.
func New(w io.Writer, level, format string, hide func(string) string) *slog.Logger {
	threshold := &slog.LevelVar{}
	_ = threshold.UnmarshalText([]byte(level)) // the configuration has been checked
	opts := &slog.HandlerOptions{Level: threshold}
	var next slog.Handler = slog.NewTextHandler(w, &slog.HandlerOptions{Level: threshold, ReplaceAttr: joinProse})
	if format == "json" {
		next = slog.NewJSONHandler(w, opts)
	}
	return slog.New(&cleaningHandler{next: next, threshold: threshold, hide: hide, events: &eventRing{},
		repeats: newRepeatFilter(time.Now)})
}

// joinProse makes one text of a list of explanations, which a line of text would show
// without anything between them.
func joinProse(_ []string, a slog.Attr) slog.Attr {
	if list, ok := a.Value.Any().([]string); ok && isProse(a.Key) {
		a.Value = slog.StringValue(strings.Join(list, "; "))
	}
	return a
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
	ofClient  bool   // Kafka's client library speaks
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
		case "said":
			c.ofClient = true
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
	m := message{part: h.part, text: out.Message, level: r.Level, ofClient: h.ofClient}
	var id strings.Builder
	id.WriteString(h.with + out.Message)
	r.Attrs(func(a slog.Attr) bool {
		a = h.cleanAttr(a)
		m.noteAttribute(a.Key)
		id.WriteString(attrIdentity(a))
		out.AddAttrs(a)
		return true
	})
	m.id = id.String()
	write, more := h.repeats.admitMessage(&m)
	if !write {
		return nil
	}
	out.AddAttrs(more...)
	if !h.silent && isEvent(r.Level, m.ofCampaign, m.ofCommand) {
		h.events.add(Event{Time: r.Time, Level: r.Level, Part: h.part, Text: eventText(&out)}, m.id)
	}
	if !h.next.Enabled(ctx, r.Level) {
		return nil
	}
	return h.next.Handle(ctx, out)
}

// isProse reports whether an attribute's text is an explanation, which is folded into one
// line. Every other text may be an id: its white space stays, and the format escapes it, so
// that two ids never look equal.
func isProse(key string) bool {
	switch key {
	case "error", "reason", "reasons", "what", "found", "said", "to_mend":
		return true
	}
	return false
}

// cleanAttr bounds a value's text and takes secrets out of it.
func (h *cleaningHandler) cleanAttr(a slog.Attr) slog.Attr {
	switch v := a.Value.Resolve(); v.Kind() {
	case slog.KindString:
		text := h.hide(v.String())
		if isProse(a.Key) {
			a.Value = slog.StringValue(Line(text))
		} else {
			a.Value = slog.StringValue(Bound(text, MaxText))
		}
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
// grow; numbers inside of a text, such as a port or a process id; and the address of a
// stranger, who may have as many as he likes.
func attrIdentity(a slog.Attr) string {
	if a.Key == "address" {
		return ""
	}
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

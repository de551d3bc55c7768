package logging

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// texts returns the texts of a logger's events, the newest first.
func texts(log *slog.Logger) []string {
	var out []string
	for _, e := range Events(log) {
		out = append(out, e.Text)
	}
	return out
}

func TestEvents(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	log := New(&out, "error", "text", hide)
	source := log.With("part", "source")
	source.Info("streaming", "slot", "bell", "took", 1234567*time.Nanosecond)
	source.Warn("cannot reach the source", "error", errors.New("hunter2\nrefused"), "to_mend", "start it")
	log.Info("campaign finished", "campaign", "c")
	log.Info("campaigns finished", "count", 7, "within", time.Second)
	log.Info("an operator's command on a campaign", "campaign", "c", "command", "cancel")
	log.Warn("campaign is parked", "campaign", "c")
	log.Debug("detail")
	log.With("action", "explain").Warn("action failed", "error", "client 17")
	log.With("action", "rebuild").Info("action done")
	want := []string{
		"action done",
		"campaign is parked (campaign c)",
		"an operator's command on a campaign (campaign c, command cancel)",
		"cannot reach the source: [redacted] refused; to mend: start it",
		"streaming (slot bell, took 1ms)",
	}
	got := Events(log)
	if fmt.Sprint(texts(log)) != fmt.Sprint(want) {
		t.Errorf("events %q, want %q", texts(log), want)
	}
	if e := got[3]; e.Level != slog.LevelWarn || e.Part != "source" || e.Time.IsZero() || e.Times != 1 {
		t.Errorf("%+v", e)
	}
	if out.Len() > 0 {
		t.Errorf("at level error the log holds %s", out.String())
	}
}

// Messages in a row that differ in numbers alone are one event with a count.
func TestEventsInARowAreFolded(t *testing.T) {
	t.Parallel()
	log := New(&strings.Builder{}, "info", "text", hide)
	for i := range 5 {
		log.Info("copying", "rows", i)
	}
	log.Info("lane taken over", "lane", 0, "epoch", 1)
	log.Info("lane taken over", "lane", 1, "epoch", 1)
	log.Info("copying", "rows", 9)
	got := Events(log)
	if len(got) != 4 || got[3].Times != 5 || got[3].Text != "copying (rows 4)" || got[0].Times != 1 {
		t.Errorf("%+v", got)
	}
}

// However many and however long the messages are, the events' memory is bounded.
func TestEventsAreBounded(t *testing.T) {
	t.Parallel()
	log := New(&strings.Builder{}, "info", "text", hide)
	long := strings.Repeat("яy ", 10000)
	for i := range 3*maxEvents + 7 {
		log.Info("event", "error", strings.Repeat("i", i)+" "+long, "to_mend", "end it")
	}
	got := Events(log)
	if len(got) != maxEvents {
		t.Fatalf("%d events", len(got))
	}
	for i, e := range got {
		if want := "event: " + strings.Repeat("i", 3*maxEvents+6-i) + " "; !strings.HasPrefix(e.Text, want) || !strings.HasSuffix(e.Text, "to mend: end it") || len(e.Text) > maxEventText+100 {
			t.Fatalf("event %d, %d bytes: %s", i, len(e.Text), e.Text)
		}
	}
}

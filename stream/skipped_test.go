package stream

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
)

// logLines keeps the log lines at info and above.
type logLines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// with lists the lines that contain all parts.
func (l *logLines) with(parts ...string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
next:
	for line := range strings.Lines(l.b.String()) {
		for _, p := range parts {
			if !strings.Contains(line, p) {
				continue next
			}
		}
		out = append(out, line)
	}
	return out
}

// Each message that notifies nobody leaves one line at info, and is counted.
func TestMessagesThatNotifyNobodyLeaveALine(t *testing.T) {
	t.Parallel()
	const lower = "123e4567-e89b-12d3-a456-426614174000"
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}, lower: {"b"}, "rest_1" + strings.Repeat(" ", 34): {"c"}})
	lines := &logLines{}
	w.cfg.Logger = slog.New(slog.NewTextHandler(lines, nil))
	svc, _ := w.start()
	expired, cancelled := w.campaign("expired", "r1"), w.campaign("cancelled", "r1")
	expired.End = time.Now().Unix() - 1
	cancelled.Start = time.Now().Unix() + 1000
	cancel := cancelled
	cancel.Start, cancel.End = 1000, 2000
	w.produce(0, []byte("no json"), encodeCampaign(expired), encodeCampaign(cancelled), encodeCampaign(cancel), encodeCampaign(w.campaign("alone", "r2")),
		encodeCampaign(w.campaign("upper", strings.ToUpper(lower))), encodeCampaign(w.campaign("padded", "rest_1")), encodeCampaign(w.campaign("met", "r1")))
	w.expect(map[string][]string{"met": {"a"}})
	envtest.Until(t, patience, func() error {
		if s := svc.Status(); s.Counts != (Counts{Decided: 1, Shipped: 1, Expired: 2, Dead: 1, WithoutAudience: 3}) {
			return fmt.Errorf("counts %+v", s.Counts)
		}
		return nil
	})
	for _, parts := range [][]string{
		{"refused", "offset=0", "reason="},
		{"end had passed", "campaign=expired", "restaurant=r1", "offset=1"},
		{"ends the campaign", "campaign=cancelled", "offset=3"},
		{"nobody subscribes", "campaign=alone", "restaurant=r2"},
		{"nobody subscribes", "campaign=upper", "hint=", lower, "byte by byte"},
		{"nobody subscribes", "campaign=padded", "hint=", "rest_1   "},
	} {
		if got := lines.with(append(parts, "level=INFO")...); len(got) != 1 {
			t.Errorf("%d lines with %q, want 1", len(got), parts)
		}
	}
	if got := lines.with("campaign=alone", "hint="); len(got) > 0 {
		t.Errorf("a hint without a reason: %s", got)
	}
	if got := lines.with("campaign=met"); len(got) > 0 {
		t.Errorf("a line for a campaign that was delivered: %s", got)
	}
}

// A flood does not fill the log: messages without a line of their own are counted.
func TestFloodOfRefusedMessagesIsCoalesced(t *testing.T) {
	t.Parallel()
	lines := &logLines{}
	o := skipLog{log: slog.New(slog.NewTextHandler(lines, nil))}
	for i := range 1000 {
		o.logMessage(skipRefused, func() []any { return []any{"offset", i} })
	}
	o.logMessage(skipExpired, func() []any { return []any{"offset", 1000} })
	o.closeWindows()
	if n := len(lines.with("msg=\"message notifies", "refused")); n != skipLogLines {
		t.Errorf("%d lines, want %d", n, skipLogLines)
	}
	if n := len(lines.with("more messages", "refused", fmt.Sprintf("count=%d", 1000-skipLogLines))); n != 1 {
		t.Errorf("%d lines that count the others, want 1", n)
	}
	if n := len(lines.with("end had passed")); n != 1 {
		t.Errorf("%d lines of the other kind, want 1: kinds have a window each", n)
	}
}

// Counts never fall, and leave out the work of other processes: a lane that moves
// takes its totals along.
func TestCountsStayWhenLanesMove(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 2, map[string][]string{"r1": clients("0000", 40)})
	first, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("c0", "r1")), []byte("no json"))
	w.produce(1, encodeCampaign(w.campaign("c1", "r1")))
	w.expect(map[string][]string{"c0": w.subs["r1"], "c1": w.subs["r1"]})
	want := Counts{Decided: 80, Shipped: 80, Dead: 1}
	if got := first.Status().Counts; got != want {
		t.Errorf("counts %+v, want %+v", got, want)
	}
	w.cfg.Kafka.InstanceID, w.store = "second", w.openStore()
	second, _ := w.start()
	envtest.Until(t, patience, func() error {
		a, b := first.Status(), second.Status()
		if a.Counts != want || b.Counts != (Counts{}) {
			t.Fatalf("counts %+v and %+v while a lane moves, want %+v and none", a.Counts, b.Counts, want)
		}
		if len(a.Lanes) != 1 || len(b.Lanes) != 1 || b.Notifications.Decided != 40 {
			return fmt.Errorf("lanes %+v and %+v", a.Lanes, b.Lanes)
		}
		return nil
	})
}

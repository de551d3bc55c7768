package stream

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/campaign"
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
		s := svc.Status()
		if s.Accepted == 4 { // one step had the cancelled campaign and its cancel
			s.Accepted = 5
		}
		if s.Counts != (Counts{Decided: 1, Shipped: 1, Accepted: 5, Finished: 4, Expired: 2, Dead: 1, Letters: countLetters(campaign.ClassNotJSON), WithoutAudience: 3}) {
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
	if got := lines.with("campaign=met"); len(got) != 2 || !strings.Contains(got[0], "campaign accepted") || !strings.Contains(got[1], "campaign finished") {
		t.Errorf("lines of a campaign that was delivered: %q", got)
	}
	var recent []string
	for _, r := range slices.Backward(svc.Status().Recent) {
		recent = append(recent, fmt.Sprintf("%d %s %s", r.Offset, r.Campaign, r.What))
	}
	if got := strings.Join(recent, ", "); got != "0  refused, 1 expired expired, 3 cancelled cancelled, 4 alone met nobody, 5 upper met nobody, 6 padded met nobody, 7 met finished" {
		t.Errorf("recent: %s", got)
	}
}

// A campaign leaves one line when it is accepted and one when its last notification is
// shipped, over edits, cache, a restart in the middle, and where its end cuts it off.
func TestCampaignsLeaveALineEach(t *testing.T) {
	t.Parallel()
	all := clients("0000", 6000)
	w := newDeployment(t, 1, map[string][]string{"big": all, "r1": all[:20]})
	w.cfg.StepClients = 20
	w.slowSteps("0.01")
	lines := &logLines{}
	w.cfg.Logger = slog.New(slog.NewTextHandler(lines, nil))
	_, stop := w.start()
	big, cut, edited, ahead := w.campaign("big", "big"), w.campaign("cut", "big"), w.campaign("edited", "r1"), w.campaign("ahead", "r1")
	cut.End = time.Now().Unix() + 10
	ahead.Start = time.Now().Unix() + 1800
	edit := edited
	edit.Content = "edited"
	w.produce(0, encodeCampaign(big), encodeCampaign(cut), encodeCampaign(edited), encodeCampaign(ahead))
	envtest.Until(t, patience, func() error {
		if n := w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE notified >= 20`); n < 3 {
			return fmt.Errorf("%d campaigns are under way", n)
		}
		return nil
	})
	w.produce(0, encodeCampaign(edited), encodeCampaign(edit), encodeCampaign(big))
	w.awaitOffset(0, 7)
	stop()
	w.cfg.StepClients = 2000
	svc, _ := w.start()
	envtest.Until(t, patience, func() error {
		if s := svc.Status(); time.Now().Unix() <= cut.End || s.Campaigns.Live > 0 || s.Notifications.Decided != s.Notifications.Shipped {
			return fmt.Errorf("still at it: %+v", s)
		}
		return nil
	})
	w.checkCounts()
	for _, c := range []struct {
		n     int
		parts []string
	}{
		{1, []string{"campaign accepted", "campaign=big", "restaurant=big", "lane=0", "seq=", "offset=0"}},
		{1, []string{"campaign finished", "campaign=big", "audience=6000 notified=6000 left_out=0", "ms="}},
		{1, []string{"campaign accepted", "campaign=cut"}},
		{1, []string{"campaign accepted", "campaign=ahead", "start="}},
		{0, []string{"campaign finished", "campaign=ahead"}},
		{2, []string{"campaign accepted", "campaign=edited"}},
		{1, []string{"campaign accepted", "campaign=edited", "edit=true", "offset=5"}},
		{2, []string{"campaign finished", "campaign=edited", "audience=20 notified=20 left_out=0"}},
		{2, []string{"campaign=big"}},
		{2, []string{"campaign=cut"}},
	} {
		if got := lines.with(append(c.parts, "level=INFO")...); len(got) != c.n {
			t.Errorf("%d lines with %q, want %d: %q", len(got), c.parts, c.n, got)
		}
	}
	if s := svc.Status(); s.Finished < 1 || s.Finished > 3 {
		t.Errorf("%d finished after the restart", s.Finished)
	}
}

// Recent lists the campaigns that were handled last, each once while it is open.
func TestRecentCampaigns(t *testing.T) {
	t.Parallel()
	var r recentCampaigns
	item := func(id string, what RecentKind) RecentCampaign { return RecentCampaign{Campaign: id, What: what} }
	r.add(item("a", RecentAccepted), item("b", RecentAccepted), item("a", RecentSuperseded), item("a", RecentFinished), item("a", RecentAccepted), item("b", RecentCancelled))
	if got := fmt.Sprint(whats(r.snapshot())); got != "[a accepted a superseded b cancelled a finished]" {
		t.Error(got)
	}
	r.add(item("c", RecentAccepted), item("c", RecentPaused), item("c", RecentAccepted), item("c", RecentCancelled), item("c", RecentCancelled))
	if got := fmt.Sprint(whats(r.snapshot())[:2]); got != "[c cancelled c cancelled]" {
		t.Error(got)
	}
	for i := range 3 * recentLength {
		r.add(item(fmt.Sprint(i), RecentAccepted))
	}
	if got := r.snapshot(); len(got) != recentLength || got[0].Campaign != fmt.Sprint(3*recentLength-1) {
		t.Errorf("%d, the newest %s", len(got), got[0].Campaign)
	}
}

func whats(list []RecentCampaign) (out []string) {
	for _, r := range list {
		out = append(out, r.Campaign+" "+string(r.What))
	}
	return out
}

// countLetters counts one dead letter of each class given.
func countLetters(classes ...campaign.ReasonClass) (n campaign.ClassCounts) {
	for _, c := range classes {
		n[slices.Index(campaign.ReasonClasses[:], c)]++
	}
	return n
}

// A flood does not fill the log: messages without a line of their own are counted.
func TestFloodOfRefusedMessagesIsCoalesced(t *testing.T) {
	t.Parallel()
	lines := &logLines{}
	o := foldedLog{log: slog.New(slog.NewTextHandler(lines, nil))}
	for i := range 1000 {
		o.writeLines(skipRefused, 1, 0, func(int) []any { return []any{"offset", i} })
	}
	o.writeLines(skipExpired, 1, 0, func(int) []any { return []any{"offset", 1000} })
	o.writeLines(logAccepted, 300, 0, func(i int) []any { return []any{"offset", i} })
	o.writeLines(logFinished, 300, 4500, func(i int) []any { return []any{"offset", i} })
	o.writeLines(logFinished, 1, 15, func(int) []any { return []any{"offset", 300} })
	o.closeWindows()
	if n := len(lines.with("msg=\"message notifies", "refused")); n != skipLogLines {
		t.Errorf("%d lines, want %d", n, skipLogLines)
	}
	if n := len(lines.with("more messages", "refused", fmt.Sprintf("count=%d", 1000-skipLogLines))); n != 1 {
		t.Errorf("%d lines that count the others, want 1", n)
	}
	for kind, count := range map[skipReason]string{logAccepted: "count=300 without_line=280", logFinished: "count=301 without_line=281 notified=4515"} {
		if n := len(lines.with(fmt.Sprintf("msg=%q", string(kind)))); n != skipLogLines {
			t.Errorf("%d lines of %q, want %d", n, kind, skipLogLines)
		}
		if n := len(lines.with("msg=\"campaigns ", count)); n != 1 {
			t.Errorf("%d lines that count those of %q, want 1", n, kind)
		}
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
	want := Counts{Decided: 80, Shipped: 80, Accepted: 2, Finished: 2, Dead: 1, Letters: countLetters(campaign.ClassNotJSON)}
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

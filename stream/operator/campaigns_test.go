package operator

import (
	"strings"
	"testing"
	"time"

	"dinnerbell/stream/sink"
)

// A command on a finished campaign that notified nobody does not claim that it went out: it
// says since when the feedback table has refused it, and where the reason is.
func TestCommandsNameARefusal(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		action  Action
		refusal string
		begun   bool
		counts  sink.RowCounts
		want    []string
		never   string
	}{
		"resume, refused":         {Resume, "constraint short", true, sink.RowCounts{}, []string{"the feedback table refused it at 2026-05-04T11:00:00Z: constraint short", "dead-letters retry"}, "went out"},
		"approve, refused":        {Approve, "constraint short", true, sink.RowCounts{}, []string{"refused it at 2026-05-04T11:00:00Z"}, "went out"},
		"cancel, refused":         {Cancel, "constraint short", true, sink.RowCounts{}, []string{"refused it at 2026-05-04T11:00:00Z", "nobody is notified of it any more"}, "everybody"},
		"resume, no reason":       {Resume, "", true, sink.RowCounts{}, []string{"it is over since 2026-05-04T11:00:00Z and notified nobody", "dead letter", "dinnerbell dead-letters list"}, "went out"},
		"resume, delivered":       {Resume, "", true, sink.RowCounts{Notified: 3}, []string{"it went out to everybody who subscribed"}, "refused"},
		"resume, all had it":      {Resume, "", true, sink.RowCounts{Already: 3}, []string{"it went out to everybody who subscribed"}, "refused"},
		"resume, no audience":     {Resume, "", false, sink.RowCounts{}, []string{"nobody subscribed"}, "refused"},
		"cancel, delivered":       {Cancel, "", true, sink.RowCounts{Notified: 3}, []string{"everybody who was subscribed when it was sent has it"}, "refused"},
		"cancel, no reason known": {Cancel, "", true, sink.RowCounts{}, []string{"notified nobody", "nobody is notified of it any more"}, "everybody"},
	} {
		o := sink.OperatedCampaign{State: sink.StateFinished, Begun: c.begun, End: now.Unix() + 3600, Finished: now.Add(-time.Hour), Refusal: c.refusal, RowCounts: c.counts}
		_, note, _ := planRow(c.action, &o, now)
		for _, part := range c.want {
			if !strings.Contains(note, part) {
				t.Errorf("%s: %q, want %q", name, note, part)
			}
		}
		if strings.Contains(note, c.never) {
			t.Errorf("%s: %q says %q", name, note, c.never)
		}
	}
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"dinnerbell/cdc"
	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/control"
	"dinnerbell/cmd/dinnerbell/internal/logging"
	"dinnerbell/cmd/dinnerbell/internal/status"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/internal/precondition"
	"dinnerbell/stream"
)

// statusCmd shows the status of the running daemon.
type statusCmd struct {
	JSON bool `help:"As JSON, the same as /api/status."`
}

// Help shows how it is used.
func (*statusCmd) Help() string {
	return `The command exits with 0 if the daemon is ready, 1 if the daemon is not ready or does not run, 3 if a part is halted.

Examples:
  dinnerbell status
  dinnerbell status --json | jq .lanes`
}

// Run asks over the socket in state.dir. It needs no other key, so it works with a
// configuration that `run` would refuse. It ends with 1 if the daemon is not ready
// and with 3 if a part of it is halted.
func (c *statusCmd) Run(ctx context.Context, a *invocation) error {
	cfg, err := config.Load(a.configFile, a.env)
	if err != nil {
		return err
	}
	body, err := control.Get(ctx, cfg.State.Dir, "/api/status")
	if err != nil {
		return err
	}
	var r status.Report
	if err := json.Unmarshal(body, &r); err != nil {
		return fmt.Errorf("read answer of the daemon: %w", err)
	}
	if c.JSON {
		_, err = a.stdout.Write(body)
	} else {
		err = printStatus(a.stdout, &r)
	}
	if err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return statusError(&r, c.JSON)
}

// statusError returns the error that the command ends with: exit 3 if a part waits
// for an operator, 1 if the daemon is not ready. Beside the text it repeats nothing.
func statusError(r *status.Report, asJSON bool) error {
	switch {
	case r.Halted != nil && asJSON:
		return &control.RemoteError{Message: fmt.Sprintf("%s halted: %s; to go on: %s", r.Halted.Part, r.Halted.What, r.Halted.Hint), Exit: exitHalted}
	case r.Halted != nil:
		return &control.RemoteError{Message: r.Halted.Part + " halted, as the first lines say", Exit: exitHalted}
	case !r.Ready && asJSON:
		return fmt.Errorf("not ready: %s", strings.Join(r.Reasons, "; "))
	case !r.Ready:
		return errors.New("not ready, for the reasons in the first lines")
	}
	return nil
}

// printStatus writes the status as text: readiness and reasons first, lanes as a
// table at the end.
func printStatus(out io.Writer, r *status.Report) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		_, _ = fmt.Fprintf(w, "%s\t%s\n", name, terminal.Escape(logging.Line(fmt.Sprintf(format, args...)))) // Flush reports errors
	}
	if r.Ready {
		row("ready", "yes")
	} else {
		row("ready", "NO")
	}
	printProblems(row, r)
	row("version", "%s", r.Version)
	s := r.Source
	row("source", "%s at %s, %s, %s", s.State, s.AppliedLSN, sourceLagText(&s), slotText(&s))
	if s.State == string(cdc.StateSnapshot) {
		row("snapshot", "%s", snapshotText(&s))
	}
	if s.LastError != "" && s.State != string(cdc.StateStreaming) && len(r.Problems) == 0 { // else it is mended, and the events have it; or it is a problem
		row("", "last error: %s", s.LastError)
	}
	if s.Work != nil {
		row(s.Work.Kind, "%s", workText(s.Work))
	}
	if c := r.Checkpoint; c.ID != "" {
		row("checkpoint", "%s, %s old, stands for %s, %s held back", c.ID, ageText(c.Made), c.LSN, terminal.Bytes(c.HeldBackBytes))
	}
	if r.Checkpoint.LastError != "" {
		row("", "the last checkpoint failed: %s", r.Checkpoint.LastError)
	}
	row("subscriptions", "%s", terminal.Thousands(s.Subscriptions))
	row("local state", "%s, %s free, %s in reserve", r.State.Condition, terminal.Bytes(r.State.FreeBytes), terminal.Bytes(r.State.ReserveBytes))
	if r.State.Quarantine != "" {
		row("", "set aside since the start: %d, last %s: %s", r.State.Quarantines, r.State.Quarantine, r.State.Damage)
	}
	if s.FreshnessMS > 0 {
		row("freshness", "the last join waited %.1f ms", s.FreshnessMS)
	}
	if c := r.Campaigns; c.Parked > 0 || c.Paused > 0 {
		row("HELD", "%s parked (see `dinnerbell approve`), %s paused (see `dinnerbell resume`)", terminal.Thousands(c.Parked), terminal.Thousands(c.Paused))
	}
	row("campaigns", "%s", campaignsText(r))
	row("", "since the start %s accepted, %s finished, %s without audience", terminal.Thousands(r.Counters.CampaignsAccepted),
		terminal.Thousands(r.Counters.CampaignsFinished), terminal.Thousands(r.Counters.CampaignsWithoutAudience))
	for _, c := range r.Recent[:min(len(r.Recent), recentInStatus)] {
		row("", "%s", recentText(&c))
	}
	row("notifications", "%s", notificationsText(r))
	for i, e := range r.Events[:min(len(r.Events), recentInStatus)] {
		row(eventsHead(i), "%s %-5s %s", e.Time.UTC().Format("15:04:05"), e.Level, eventLine(&e))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return printLanes(out, r.Lanes)
}

// problemNames are the names in front of problems.
var problemNames = map[status.Level]string{status.LevelHalted: "HALTED", status.LevelDown: "DOWN", status.LevelWarning: "warning", status.LevelWork: "busy"}

// printProblems writes what is wrong and what mends it.
func printProblems(row func(name, format string, args ...any), r *status.Report) {
	for i := range r.Problems {
		p := &r.Problems[i]
		if p.Part == "campaigns" {
			continue // they have a line of their own
		}
		row(problemNames[p.Level], "%s: %s", p.Part, p.What)
		printMend(row, "since "+momentText(p.Since, time.Now())+"; to mend:", p.Mend)
	}
	if len(r.Problems) > 0 {
		return
	}
	for _, reason := range r.Reasons {
		row("", "%s", reason)
	}
	if h := r.Halted; h != nil {
		row("HALTED", "%s: %s", h.Part, h.What)
		printMend(row, "to mend:", h.Hint)
	}
}

// printMend writes what mends a problem: each statement on a line of its own, to be pasted.
func printMend(row func(name, format string, args ...any), head, mend string) {
	remedy := precondition.SplitRemedy(mend)
	if len(remedy.Statements) == 0 {
		row("", "%s %s", head, mend)
		return
	}
	row("", "%s", strings.TrimSpace(head+" "+remedy.Advice))
	for _, statement := range remedy.Statements {
		row("", "%s;", statement)
	}
}

// momentText writes a moment in UTC, with its day where it is not of the last hours.
func momentText(t, now time.Time) string {
	if now.Sub(t).Abs() < 12*time.Hour {
		return t.UTC().Format("15:04:05")
	}
	return t.UTC().Format(time.DateTime)
}

// slotText describes the slot as far as it is known.
func slotText(s *status.Source) string {
	switch {
	case s.SlotWALStatus == "" && s.SlotHeldBytes == nil:
		return "slot not known"
	case s.SlotHeldBytes == nil:
		return "slot " + s.SlotWALStatus
	}
	return fmt.Sprintf("slot %s keeps %s", orDash(s.SlotWALStatus), terminal.Bytes(*s.SlotHeldBytes))
}

// noFigures stands for counts that nobody knows yet.
const noFigures = "not known: this process has not taken over a lane yet"

// campaignsText returns the counts of campaigns.
func campaignsText(r *status.Report) string {
	c := &r.Campaigns
	if r.FiguresUnknown() {
		return noFigures
	}
	return fmt.Sprintf("%s live, %s scheduled, %s expired, %s dead", terminal.Thousands(c.Live),
		terminal.Thousands(c.Scheduled), terminal.Thousands(c.Expired), terminal.Thousands(c.Dead)) + figuresNote(r.Figures)
}

// notificationsText returns the counts of notifications.
func notificationsText(r *status.Report) string {
	if r.FiguresUnknown() {
		return noFigures
	}
	return fmt.Sprintf("%s decided, %s shipped", terminal.Thousands(r.Notifications.Decided), terminal.Thousands(r.Notifications.Shipped)) + figuresNote(r.Figures)
}

// figuresNote says which counts are not of now; "" where all are.
func figuresNote(f *status.Figures) string {
	note := ""
	if f == nil {
		return note
	}
	if !f.AsOf.IsZero() {
		note += ", as of " + momentText(f.AsOf, time.Now())
	}
	if f.LanesMissing > 0 {
		note += fmt.Sprintf(", without lanes that are not taken over yet (%d)", f.LanesMissing)
	}
	return note
}

// eventsHead is the name in front of the events: of the first alone.
func eventsHead(i int) string {
	if i == 0 {
		return "events"
	}
	return ""
}

// eventLine returns an event as text of bounded length; the JSON has the whole.
func eventLine(e *status.Event) string {
	text := e.Text
	if e.Part != "" {
		text = e.Part + ": " + text
	}
	if e.Times > 1 {
		text = fmt.Sprintf("%d times, last: %s", e.Times, text)
	}
	return logging.Bound(text, 240)
}

// recentInStatus is how many of the recent campaigns and events the text shows.
const recentInStatus = 5

// recentText returns one recent campaign as text.
func recentText(c *status.RecentCampaign) string {
	text := fmt.Sprintf("%s %s", c.At.UTC().Format("15:04:05"), c.What)
	switch {
	case c.Reason != "" && c.Campaign != "":
		return fmt.Sprintf("%s: %s: %s", text, c.Campaign, c.Reason)
	case c.Reason != "":
		return fmt.Sprintf("%s lane %d, offset %d: %s", text, c.Lane, c.Offset, c.Reason)
	case c.What == string(stream.RecentParked) && c.Audience != nil:
		text += ", audience " + terminal.Thousands(*c.Audience)
	case c.What == string(stream.RecentFinished) || c.What == string(stream.RecentEnded):
		text += ", " + terminal.Thousands(c.Notified)
		if c.Audience != nil {
			text += " of " + terminal.Thousands(*c.Audience)
		}
		if c.MS > 0 {
			text += fmt.Sprintf(" in %s", time.Duration(c.MS*float64(time.Millisecond)).Round(time.Millisecond))
		}
	}
	return text + ": " + c.Campaign
}

// snapshotText returns the progress of a snapshot and the time that is left.
func snapshotText(s *status.Source) string {
	if s.SnapshotTotal == 0 {
		return fmt.Sprintf("%s rows", terminal.Thousands(s.SnapshotRows))
	}
	text := fmt.Sprintf("%s of about %s rows (%.1f%%), %s rows/s", terminal.Thousands(s.SnapshotRows), terminal.Thousands(s.SnapshotTotal),
		s.SnapshotPercent, terminal.Thousands(int64(s.SnapshotRowsPerSecond)))
	if s.SnapshotSecondsLeft > 0 {
		text += fmt.Sprintf(", %s left", time.Duration(s.SnapshotSecondsLeft*float64(time.Second)).Round(time.Second))
	}
	return text
}

// workText returns the progress of a rebuild or verification as text.
func workText(w *status.Work) string {
	return fmt.Sprintf("%s, %s of about %s rows, since %s", w.Stage, terminal.Thousands(w.Rows), terminal.Thousands(w.Total),
		time.Duration(w.Seconds*float64(time.Second)).Round(time.Second))
}

func printLanes(out io.Writer, lanes []status.Lane) error {
	if len(lanes) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(w, "\nlane\tepoch\tdecided\tshipped\tnext offset\twaiting\toldest campaign\tstate\t\n")
	for _, l := range lanes {
		if l.WaitingForFreshness {
			l.State += ", waits for fresh subscriptions"
		}
		figures := fmt.Sprintf("%d\t%d\t%d\t%d", l.Epoch, l.Decided, l.Shipped, l.NextOffset)
		if l.Epoch == 0 { // it is not taken over yet
			figures = "—\t—\t—\t—"
		}
		_, _ = fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t\n", l.Partition, figures, laneLagText(&l), secondsText(l.OldestCampaignSeconds), orDash(l.State))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}

// sourceLagText says how far the subscriptions are behind; a dash where nobody knows.
func sourceLagText(s *status.Source) string {
	if s.LagBytes == nil {
		return "— behind"
	}
	text := terminal.Bytes(*s.LagBytes) + " behind"
	if *s.LagBytes > 0 && s.LagSeconds != nil {
		text += fmt.Sprintf(" (%s)", secondsText(*s.LagSeconds))
	}
	return text
}

// laneLagText says how many messages wait for the lane and since when; a dash where
// nobody knows.
func laneLagText(l *status.Lane) string {
	switch {
	case l.LagMessages == nil:
		return "—"
	case *l.LagMessages == 0 || l.LagSeconds == nil:
		return terminal.Thousands(*l.LagMessages)
	}
	return fmt.Sprintf("%s, %s", terminal.Thousands(*l.LagMessages), secondsText(*l.LagSeconds))
}

// secondsText returns a duration to the tenth of a second.
func secondsText(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(100 * time.Millisecond).String()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

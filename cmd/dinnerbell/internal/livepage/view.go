package livepage

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"dinnerbell/cdc"
	"dinnerbell/cmd/dinnerbell/internal/status"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/stream"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
)

// view is what the templates show.
type view struct {
	Now         time.Time
	Began       time.Time // of the process
	Status      status.Report
	Head        head
	Rate        float64 // notifications per second, lately
	Median, P99 float32 // milliseconds from message to both sinks, of the last fifteen minutes; 0: none
	Minutes     []minute
	OpenError   error // why the waiting campaigns are not up to date

	Live, Held, Scheduled, Done []campaignRow
}

// head is the sentence at the top.
type head struct {
	Class    string // ok, work, warning, down, halted
	Mark     string // a sign that does not depend on colour
	State    string // one or two words
	Sentence string
	Since    time.Time
	Problems []status.Problem
}

// setHead sums the status up in one sentence.
func (v *view) setHead() {
	h := head{Class: "ok", Mark: "●", State: "Delivering", Since: v.Began, Problems: v.Status.Problems}
	h.Sentence = "All is well: every campaign goes out, and every notification is in both sinks."
	if waiting := v.Waiting(); waiting > 0 {
		h.Sentence = "All is well: campaigns go out, and " + terminal.Thousands(waiting) + " notifications are on their way to Kafka."
	}
	if len(h.Problems) > 0 {
		worst := h.Problems[0]
		h.Since = worst.Since
		h.Sentence = composeSentence(worst)
		switch worst.Level {
		case status.LevelHalted:
			h.Class, h.Mark, h.State = "halted", "■", "Halted"
			if running := v.runningLanes(); running > 0 && worst.Part != "source" {
				h.State = fmt.Sprintf("Partly halted: %d of %d lanes deliver", running, len(v.Status.Lanes))
			}
		case status.LevelDown:
			h.Class, h.Mark, h.State = "down", "■", "Not delivering"
			if running := v.runningLanes(); running > 0 && strings.HasPrefix(worst.Part, "lane") {
				h.State = fmt.Sprintf("Partly delivering: %d of %d lanes", running, len(v.Status.Lanes))
				if running == len(v.Status.Lanes) { // one of them stands still
					h.State = "Partly delivering"
				}
			}
		case status.LevelWarning:
			h.Class, h.Mark, h.State = "warning", "▲", "Delivering, with a warning"
		case status.LevelWork:
			h.Class, h.Mark, h.State = "work", "◐", "Getting ready"
			switch {
			case v.Status.Ready:
				h.State = "Delivering"
			case v.Status.Stopping:
				h.State = "Stopping"
			}
		}
	}
	if len(h.Problems) == 0 && !v.Status.Ready { // a reason that is no known problem
		h.Class, h.Mark, h.State, h.Since = "down", "■", "Not ready", time.Time{}
		h.Sentence = strings.Join(v.Status.Reasons, "; ") + "."
		h.Problems = []status.Problem{{Part: "daemon", Level: status.LevelDown, What: strings.Join(v.Status.Reasons, "; "), Mend: "`dinnerbell doctor`"}}
	}
	v.Head = h
}

func (v *view) runningLanes() (n int) {
	for i := range v.Status.Lanes {
		if v.Status.Lanes[i].State == string(stream.LaneRunning) {
			n++
		}
	}
	return n
}

// composeSentence makes a sentence of a problem.
func composeSentence(p status.Problem) string {
	text := p.What
	switch p.Part {
	case "source", "state", "clock", "campaigns", "lanes", "sink", "kafka", "daemon":
		text = strings.ToUpper(text[:1]) + text[1:]
	default:
		text = strings.ToUpper(p.Part[:1]) + p.Part[1:] + ": " + text
	}
	return strings.TrimSuffix(text, ".") + "."
}

// campaignRow is a line of the table of campaigns. Numbers that are not known are -1.
type campaignRow struct {
	Mark, State, Class string // a sign, a word, a style
	Title, Campaign    string
	Restaurant         string
	Lane               int32
	Start, End         time.Time
	Audience, Passed   int64
	Notified           int64
	Rate               float64
	Left               time.Duration // until it is done, at that rate
	Took               time.Duration
	At                 time.Time // of the news
	Command            string    // that an operator gives next
	Reason             string
}

// Percent is how much of the audience was looked at; -1: not known.
func (c *campaignRow) Percent() float64 {
	switch {
	case c.Audience == 0:
		return 100
	case c.Audience < 0 || c.Passed < 0:
		return -1
	}
	return min(100, float64(c.Passed)/float64(c.Audience)*100)
}

// listLength bounds the lines of each part of the table.
const listLength = 12

// addCampaigns fills in the table: fan-outs under way, campaigns that wait, and those
// that were handled lately.
func (v *view) addCampaigns(fanOuts []stream.FanOut, open []sink.OpenCampaign) {
	live := map[campaign.Key]bool{}
	for i := range fanOuts {
		f := &fanOuts[i]
		live[campaign.Key{Campaign: f.Campaign, Restaurant: f.Restaurant}] = true
		v.Live = append(v.Live, campaignRow{
			Mark: "◐", State: "going out", Class: "live", Title: f.Title, Campaign: f.Campaign, Restaurant: f.Restaurant, Lane: f.Lane, Start: parseUnix(f.Start), End: parseUnix(f.End),
			Audience: f.Audience, Passed: f.Passed, Notified: f.Notified, Rate: f.Rate, Left: f.Left(),
		})
	}
	for i := range open {
		if c := &open[i]; !live[c.Key] && parseUnix(c.End).After(v.Now) {
			v.addOpen(c)
		}
	}
	slices.SortStableFunc(v.Live, func(a, b campaignRow) int { return a.End.Compare(b.End) })
	slices.SortStableFunc(v.Scheduled, func(a, b campaignRow) int { return a.Start.Compare(b.Start) })
	for i := range v.Status.Recent {
		if c := &v.Status.Recent[i]; len(v.Done) < listLength && !isOpen(c.What) {
			v.Done = append(v.Done, doneRow(c))
		}
	}
	v.Live, v.Held, v.Scheduled = firstOf(v.Live), firstOf(v.Held), firstOf(v.Scheduled)
}

func firstOf(list []campaignRow) []campaignRow { return list[:min(len(list), listLength)] }

func isOpen(what string) bool {
	switch stream.RecentKind(what) {
	case stream.RecentAccepted, stream.RecentPaused, stream.RecentResumed, stream.RecentApproved, stream.RecentParked:
		return true
	default:
		return false
	}
}

// addOpen adds a campaign that waits.
func (v *view) addOpen(c *sink.OpenCampaign) {
	row := campaignRow{
		Title: c.Title, Campaign: c.Key.Campaign, Restaurant: c.Key.Restaurant, Lane: c.Lane, Start: parseUnix(c.Start), End: parseUnix(c.End),
		Audience: c.Audience, Passed: -1, Notified: c.Notified, Reason: c.Operator,
	}
	switch c.Phase {
	case sink.PhaseParked:
		row.Mark, row.State, row.Class, row.Command = "▲", "parked", "held", "dinnerbell approve "+quoteArgument(c.Key.Campaign)
		row.Reason = "its audience exceeds limits.max_audience"
		if c.Audience >= 0 {
			row.Reason = "its audience of " + terminal.Thousands(c.Audience) + " exceeds limits.max_audience"
		}
		v.Held = append(v.Held, row)
	case sink.PhasePaused:
		row.Mark, row.State, row.Class, row.Command = "▲", "paused", "held", "dinnerbell resume "+quoteArgument(c.Key.Campaign)
		v.Held = append(v.Held, row)
	case sink.PhaseScheduled:
		row.Mark, row.State, row.Class = "○", "scheduled", "scheduled"
		v.Scheduled = append(v.Scheduled, row)
	case sink.PhaseWaiting:
		row.Mark, row.State, row.Class = "◌", "waiting", "live"
		row.Reason = "its start has come; it waits for fresh subscriptions or for its turn"
		v.Live = append(v.Live, row)
	case sink.PhaseLive:
		row.Mark, row.State, row.Class = "◐", "going out", "live"
		v.Live = append(v.Live, row)
	default:
	}
}

// doneRow describes a campaign, or a message, that was handled lately.
func doneRow(c *status.RecentCampaign) campaignRow {
	row := campaignRow{
		Mark: "–", State: c.What, Class: "done", Title: c.Title, Campaign: c.Campaign, Restaurant: c.Restaurant, Lane: c.Lane, Start: parseUnix(c.Start), End: parseUnix(c.End),
		Audience: -1, Passed: -1, Notified: c.Notified, Took: time.Duration(c.MS * float64(time.Millisecond)), At: c.At, Reason: c.Reason,
	}
	if c.Audience != nil {
		row.Audience, row.Passed = *c.Audience, c.Notified+c.LeftOut
	}
	switch stream.RecentKind(c.What) {
	case stream.RecentFinished:
		row.Mark, row.Passed = "✓", row.Audience
	case stream.RecentRefused:
		row.Mark, row.Class, row.Command = "✗", "refused", "dinnerbell dead-letters list"
		if c.Campaign == "" {
			row.Title, row.Campaign = "a message that is no campaign", fmt.Sprintf("offset %d of lane %d", c.Offset, c.Lane)
		}
	case stream.RecentMetNobody:
		row.Reason = "nobody subscribes to its restaurant"
	case stream.RecentExpired:
		row.Reason = "over when it arrived"
	case stream.RecentEnded:
		row.Reason = "its end came before everybody was looked at"
	case stream.RecentSuperseded:
		row.Reason = "a newer message of the campaign is there"
	default:
	}
	return row
}

// parseUnix returns a time of Unix seconds; 0 is none.
func parseUnix(seconds int64) time.Time {
	if seconds == 0 {
		return time.Time{}
	}
	return time.Unix(seconds, 0).UTC()
}

// quoteArgument quotes an id for a shell, where that is needed.
func quoteArgument(id string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:@%+="
	if id != "" && id[0] != '-' && strings.TrimLeft(id, plain) == "" {
		return id
	}
	quoted := "'" + strings.ReplaceAll(terminal.Escape(id), "'", `'\''`) + "'"
	if strings.HasPrefix(id, "-") {
		return "-- " + quoted
	}
	return quoted
}

// Letter is a class of dead letters with its count.
type Letter struct {
	Reason campaign.ReasonClass
	Count  int64
}

// Letters lists the dead letters of this process by reason, the most frequent first.
func (v *view) Letters() []Letter {
	var list []Letter
	for reason, n := range v.Status.Counters.DeadLetters {
		list = append(list, Letter{reason, n})
	}
	slices.SortFunc(list, func(a, b Letter) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Reason, b.Reason))
	})
	return list
}

// Events returns the last events, as many as the page has room for.
func (v *view) Events() []status.Event {
	return v.Status.Events[:min(len(v.Status.Events), eventsShown)]
}

// eventsShown bounds the events on the page; /api/status has the others.
const eventsShown = 40

// Connected reports whether the figures of the source are those of now.
func (v *view) Connected() bool {
	switch cdc.MirrorState(v.Status.Source.State) {
	case cdc.StateStreaming, cdc.StateCatchingUp, cdc.StateDiskFull:
		return true
	default:
		return false
	}
}

// Waiting is how many notifications are in Postgres and not in Kafka yet; 0: none, or not
// known.
func (v *view) Waiting() int64 {
	n := v.Status.Notifications
	return max(0, n.Decided-n.Shipped)
}

// IfKnown returns a count of campaigns or notifications; nil where nobody knows them yet.
func (v *view) IfKnown(n int64) *int64 {
	if v.Status.FiguresUnknown() {
		return nil
	}
	return &n
}

// FiguresNote says which of the counts of campaigns and notifications are not of now; ""
// where all are, or none is known.
func (v *view) FiguresNote() string {
	f := v.Status.Figures
	switch {
	case f == nil || f.Unknown:
		return ""
	case !f.AsOf.IsZero():
		return "last known, as of " + f.AsOf.UTC().Format("15:04:05")
	}
	return fmt.Sprintf("without %d lanes that are not taken over yet", f.LanesMissing)
}

// LatencySpan is the time that the latencies are of: the window, or less after a start.
func (v *view) LatencySpan() time.Duration { return min(window, v.Now.Sub(v.Began)) }

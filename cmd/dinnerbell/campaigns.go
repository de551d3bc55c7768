package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/control"
	"dinnerbell/cmd/dinnerbell/internal/daemon"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/internal/precondition"
	"dinnerbell/stream"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/explain"
	"dinnerbell/stream/operator"
	"dinnerbell/stream/sink"
)

// campaignsCmd lists the campaigns.
type campaignsCmd struct {
	Live       bool    `help:"Campaigns under way: waiting, live, paused, parked."`
	Scheduled  bool    `help:"Campaigns whose start has not come."`
	Done       bool    `help:"Campaigns that are over: finished, refused, ended, expired, cancelled."`
	Restaurant exactID `placeholder:"ID" help:"Campaigns of this restaurant alone."`
	Limit      int     `default:"50" help:"List at most so many; 0: all."`
	JSON       bool    `help:"One JSON object a line."`
}

// Help shows how it is used.
func (*campaignsCmd) Help() string {
	return `Running campaigns come first, ordered by end; then scheduled campaigns, ordered by start; then ended campaigns, the latest first. The command reads the sink and needs no daemon. If the daemon of this configuration runs, it adds audience, position, rate and time left of its fan-outs. Times are UTC.

Examples:
  dinnerbell campaigns --live
  dinnerbell campaigns --done --restaurant 123e4567-e89b-12d3-a456-426614174000 --json`
}

// campaignItem is one line of the listing with --json. Fields that are not known are
// absent.
type campaignItem struct {
	Campaign   string     `json:"campaign"`
	Restaurant string     `json:"restaurant"`
	Lane       int32      `json:"lane"`
	State      sink.Phase `json:"state"`
	Start      time.Time  `json:"start"`
	End        time.Time  `json:"end"`
	Accepted   time.Time  `json:"accepted"`           // when the newest message was accepted
	Started    *time.Time `json:"started,omitempty"`  // when its first step was decided
	Finished   *time.Time `json:"finished,omitempty"` // when its last step was decided
	Audience   *int64     `json:"audience,omitempty"` // subscribers
	Position   *float64   `json:"position_percent,omitempty"`
	Notified   int64      `json:"notified"`
	LeftOut    int64      `json:"left_out"` // clients who had the campaign already, from another restaurant or another job
	// Rate is in subscribers a second: lately of one under way, on average of a finished
	// one that was looked at once.
	Rate         float64 `json:"rate,omitempty"`
	SecondsLeft  float64 `json:"seconds_left,omitempty"` // at that rate
	Feedback     *int64  `json:"feedback,omitempty"`     // rows with feedback
	FeedbackNote string  `json:"feedback_note,omitempty"`
	Operator     string  `json:"operator,omitempty"` // the last command of an operator, and who gave it
	Refusal      string  `json:"refusal,omitempty"`  // why the feedback table takes no row of a refused one
	Next         string  `json:"next,omitempty"`     // the command that lets a parked, paused or refused one go out
}

// Run lists the campaigns of the sink, and asks the running daemon about those that it
// is delivering.
func (c *campaignsCmd) Run(ctx context.Context, a *invocation) error {
	if c.Limit < 0 {
		return fmt.Errorf("%w: --limit %d is negative", errUsage, c.Limit)
	}
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	q := operator.CampaignQuery{Restaurant: string(c.Restaurant), Limit: c.Limit}
	for group, wanted := range map[sink.PhaseGroup]bool{sink.GroupLive: c.Live, sink.GroupScheduled: c.Scheduled, sink.GroupDone: c.Done} {
		if wanted {
			q.Groups = append(q.Groups, group)
		}
	}
	list, err := operator.ListCampaigns(ctx, daemon.ClaimConfig(cfg, a.newLogger(cfg)).Sink, q)
	if err != nil {
		return err
	}
	fanOuts, err := readFanOuts(ctx, cfg.State.Dir)
	if err != nil {
		_, _ = fmt.Fprintf(a.messages, "dinnerbell: without the rate and the time left of fan-outs under way: %v\n", err) // nowhere to report a failing stderr
	}
	out := bufio.NewWriterSize(a.stdout, 64<<10)
	if err := errors.Join(c.writeList(out, list, fanOuts), out.Flush()); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	if more := list.Matching - int64(len(list.Campaigns)); more > 0 {
		_, _ = fmt.Fprintf(a.messages, "dinnerbell: %s more; --limit 0 lists all\n", terminal.Thousands(more))
	}
	return nil
}

// fanOutKey names a fan-out: of a row that was changed since, the daemon's is over.
type fanOutKey struct {
	campaign.Key
	version int64
}

// readFanOuts asks the running daemon for its fan-outs.
func readFanOuts(ctx context.Context, stateDir string) (map[fanOutKey]stream.FanOut, error) {
	out := map[fanOutKey]stream.FanOut{}
	err := control.Do(ctx, stateDir, "campaigns", nil, control.ReplyHandler{Item: func(v json.RawMessage) error {
		var f stream.FanOut
		if err := json.Unmarshal(v, &f); err != nil {
			return fmt.Errorf("read answer of the daemon: %w", err)
		}
		out[fanOutKey{campaign.Key{Campaign: f.Campaign, Restaurant: f.Restaurant}, f.Version}] = f
		return nil
	}})
	return out, err
}

// listFanOuts is the daemon's side: an Action. It sends the fan-outs under way.
func listFanOuts(_ context.Context, e *daemon.Engine, c *control.Call) (any, error) {
	for _, f := range e.Service.FanOuts() {
		if err := c.Item(f); err != nil {
			return nil, err
		}
	}
	return struct{}{}, nil
}

func (c *campaignsCmd) writeList(out io.Writer, list *operator.CampaignListing, fanOuts map[fanOutKey]stream.FanOut) error {
	lines := json.NewEncoder(out)
	for i := range list.Campaigns {
		found := &list.Campaigns[i]
		item := newCampaignItem(found, fanOuts[fanOutKey{found.Key, found.Version}], list.Now)
		if c.JSON {
			if err := lines.Encode(&item); err != nil {
				return err
			}
			continue
		}
		if i == 0 {
			if _, err := fmt.Fprintf(out, campaignLines, "campaign", "state", "at", "notified", "had it", "feedback", "  restaurant", "window (UTC)", "per s", "left"); err != nil {
				return err
			}
		}
		if err := item.write(out, list.Now); err != nil {
			return err
		}
	}
	return nil
}

// newCampaignItem describes a campaign. of is its fan-out in the running daemon; its
// Campaign is empty where the daemon has none.
func newCampaignItem(c *operator.ListedCampaign, of stream.FanOut, now time.Time) campaignItem {
	item := campaignItem{
		Campaign: c.Key.Campaign, Restaurant: c.Key.Restaurant, Lane: c.Lane, State: c.Phase,
		Start: time.Unix(c.Start, 0).UTC(), End: time.Unix(c.End, 0).UTC(), Accepted: c.Accepted.UTC(), Started: utc(c.Started), Finished: utc(c.Finished),
		Notified: c.Notified, LeftOut: c.Already, FeedbackNote: c.FeedbackNote, Operator: c.Operator, Refusal: c.Refusal,
	}
	item.Next = nextCommand(c, now)
	if c.Feedback >= 0 {
		item.Feedback = &c.Feedback
	}
	if of.Campaign != "" {
		item.addFanOut(&of)
		return item
	}
	if c.Audience < 0 {
		return item
	}
	item.Audience = &c.Audience
	if item.State == sink.PhaseScheduled || item.State == sink.PhaseWaiting || item.State == sink.PhaseParked || c.Audience == 0 {
		return item
	}
	item.setPosition(float64(c.Notified+c.Already) / float64(c.Audience)) // an estimate, without a daemon
	if item.State == sink.PhaseFinished {
		item.setPosition(1)
	}
	if c.Once && c.Started != nil && c.Finished != nil && item.State == sink.PhaseFinished {
		if took := c.Finished.Sub(*c.Started).Seconds(); took > 0 {
			item.Rate = math.Round(float64(c.Audience)/took*10) / 10
		}
	}
	return item
}

// nextCommand returns the command that lets a campaign go out; "" if it needs none, or is
// over.
func nextCommand(c *operator.ListedCampaign, now time.Time) string {
	to := " " + precondition.QuoteArgument(c.Key.Campaign) + " --restaurant " + precondition.QuoteArgument(c.Key.Restaurant)
	switch {
	case c.End <= now.Unix():
	case c.Phase == sink.PhaseParked:
		return "dinnerbell approve" + to
	case c.Phase == sink.PhasePaused:
		return "dinnerbell resume" + to
	case c.Phase == sink.PhaseRefused:
		return explain.ReplayHint(c.Sent)
	}
	return ""
}

// note returns the reason for which the campaign is held, and the command that releases it;
// "" if nothing holds it.
func (item *campaignItem) note() string {
	text := ""
	switch {
	case item.State == sink.PhaseRefused:
		text = item.Refusal
		if item.Next != "" {
			text += "; once the table takes its rows: "
		}
	case item.Next == "":
	case item.State == sink.PhaseParked && item.Audience != nil:
		text = "its audience of " + terminal.Thousands(*item.Audience) + " exceeds limits.max_audience: "
	case item.State == sink.PhaseParked:
		text = "its audience exceeds limits.max_audience: "
	}
	return text + item.Next
}

func (item *campaignItem) addFanOut(f *stream.FanOut) {
	item.Notified, item.LeftOut = max(item.Notified, f.Notified), max(item.LeftOut, f.LeftOut)
	if f.Audience >= 0 {
		item.Audience = &f.Audience
		if f.Passed >= 0 && f.Audience > 0 {
			item.setPosition(float64(f.Passed) / float64(f.Audience))
		}
	}
	item.Rate, item.SecondsLeft = math.Round(f.Rate*10)/10, math.Round(f.Left().Seconds()*10)/10
}

// setPosition sets the share of the audience that was looked at, with one decimal.
func (item *campaignItem) setPosition(share float64) {
	percent := math.Floor(min(share, 1)*1000) / 10
	item.Position = &percent
}

func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	u := t.UTC()
	return &u
}

// campaignLines formats one campaign: two lines of 80 columns with ids of the length of
// a UUID.
const campaignLines = "%-38s %-9s %4s %9s %7s %8s\n%-38s %-25s %7s %7s\n"

func (item *campaignItem) write(out io.Writer, now time.Time) error {
	at, feedback, rate, left := "-", "-", "-", "-"
	if item.Position != nil {
		at = fmt.Sprintf("%.0f%%", math.Floor(*item.Position))
	}
	if item.Feedback != nil {
		feedback = terminal.Thousands(*item.Feedback)
	} else if item.FeedbackNote != "" {
		feedback = "?"
	}
	if item.Rate > 0 {
		rate = terminal.Thousands(int64(math.Round(item.Rate)))
	}
	if item.SecondsLeft > 0 {
		left = time.Duration(math.Ceil(item.SecondsLeft) * float64(time.Second)).String()
	}
	_, err := fmt.Fprintf(out, campaignLines, terminal.Escape(item.Campaign), item.State, at, terminal.Thousands(item.Notified), terminal.Thousands(item.LeftOut), feedback,
		"  "+terminal.Escape(item.Restaurant), windowText(item.Start, item.End, now), rate, left)
	if note := item.note(); err == nil && note != "" {
		_, err = fmt.Fprintf(out, "  %s\n", terminal.Escape(note))
	}
	if err == nil && item.Operator != "" {
		_, err = fmt.Fprintf(out, "  %s\n", terminal.Escape(item.Operator))
	}
	return err
}

// windowText writes when a campaign is valid; the year only where it is another one.
func windowText(start, end, now time.Time) string {
	text := func(t time.Time) string {
		if t.Year() != now.UTC().Year() {
			return t.Format("2006-01-02 15:04")
		}
		return t.Format("01-02 15:04")
	}
	return text(start) + " - " + text(end)
}

package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/failpoint"
	"dinnerbell/stream/sink"
)

// Action is what an operator does with a campaign.
type Action string

// The actions.
const (
	Approve Action = "approve" // lets a campaign go that is parked, or that its start would park
	Cancel  Action = "cancel"  // ends a campaign: nobody is notified any more
	Pause   Action = "pause"   // holds a campaign until it is resumed
	Resume  Action = "resume"  // lets a paused campaign go on
)

// Operated is the effect of an action on a campaign for one restaurant.
type Operated struct {
	Campaign   string `json:"campaign"`
	Restaurant string `json:"restaurant"`
	Lane       int32  `json:"lane"`
	Done       bool   `json:"done"`
	Before     string `json:"before"` // the state before
	State      string `json:"state"`  // the state now
	Notified   int64  `json:"notified"`
	Version    int64  `json:"version"` // of the campaign's row
	Note       string `json:"note"`    // what happens next; if nothing was done, why
	By         string `json:"by,omitempty"`
}

// ErrUnknownCampaign is wrapped by the error for a campaign that has no row.
var ErrUnknownCampaign = errors.New("unknown campaign")

const (
	// operateTries bounds how often a command reads a campaign again because it changed
	// meanwhile: it finishes, or a message replaces it.
	operateTries = 20
	// maxBy bounds the text about who gave a command, in bytes.
	maxBy = 256
)

// Operate does an action on a campaign for a restaurant, or for all its restaurants if
// restaurant is "". It writes the sink itself; no daemon need run. by names the person
// and the machine. It returns one result for each restaurant; the error is not nil if
// nothing was done for any of them.
func Operate(ctx context.Context, cfg sink.Config, action Action, campaign, restaurant, by string) ([]Operated, error) {
	conn, err := cfg.Connect(ctx, "dinnerbell "+string(action))
	if err != nil {
		return nil, err
	}
	defer sink.CloseConn(conn)
	out, err := applyAction(ctx, conn, cfg, action, campaign, restaurant, by)
	return out, sink.ExplainDenied(ctx, conn, cfg, sink.OperatingRights, err)
}

func applyAction(ctx context.Context, conn *pgx.Conn, cfg sink.Config, action Action, campaign, restaurant, by string) ([]Operated, error) {
	if err := sink.CheckLayout(ctx, conn, cfg.Tables()); err != nil {
		return nil, err
	}
	by = fmt.Sprintf("%s by %s", action, strings.ToValidUTF8(strings.ReplaceAll(by[:min(len(by), maxBy)], "\x00", ""), ""))
	for try := 1; ; try++ {
		t := cfg.Tables()
		list, now, err := t.ReadCampaign(ctx, conn, campaign)
		if err != nil {
			return nil, err
		}
		if list, err = pickRestaurants(list, campaign, restaurant); err != nil {
			return nil, err
		}
		out, change, ops := plan(action, list, now, by)
		if len(change) == 0 {
			return out, fmt.Errorf("%s campaign %s: nothing was changed", action, campaign)
		}
		failpoint.Hit("operate/read")
		after, err := t.Operate(ctx, conn, change, ops)
		if (errors.Is(err, sink.ErrStaleRow) || sink.IsLockConflict(err)) && try < operateTries {
			continue
		}
		if err != nil {
			return nil, err
		}
		failpoint.Hit("operate/committed")
		for _, o := range after {
			i := slices.IndexFunc(out, func(r Operated) bool { return r.Restaurant == o.Key.Restaurant })
			out[i].State, out[i].Version, out[i].Notified, out[i].By = o.State, o.Version, o.Notified, o.Operator
		}
		return out, nil
	}
}

// pickRestaurants returns the rows of the restaurant, or all of them.
func pickRestaurants(list []sink.OperatedCampaign, campaign, restaurant string) ([]sink.OperatedCampaign, error) {
	if len(list) == 0 {
		return nil, fmt.Errorf("%w %s: no message of it was accepted. Either its message still waits to be read or was refused (see `dinnerbell status` and `dinnerbell dead-letters list`), or the campaign ended more than seven days ago; ids are compared byte by byte", ErrUnknownCampaign, campaign)
	}
	if restaurant == "" {
		return list, nil
	}
	i := slices.IndexFunc(list, func(o sink.OperatedCampaign) bool { return o.Key.Restaurant == restaurant })
	if i >= 0 {
		return list[i : i+1], nil
	}
	var have []string
	for _, o := range list[:min(len(list), 10)] {
		have = append(have, o.Key.Restaurant)
	}
	more := ""
	if n := len(list) - len(have); n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	return nil, fmt.Errorf("%w %s for restaurant %s: it was accepted for %s%s", ErrUnknownCampaign, campaign, restaurant, strings.Join(have, ", "), more)
}

// plan decides what the action makes of each row. It returns a result for each row, and
// the rows that change with their changes.
func plan(action Action, list []sink.OperatedCampaign, now time.Time, by string) (out []Operated, change []sink.OperatedCampaign, ops []sink.Operation) {
	for _, o := range list {
		op, note, ok := planRow(action, &o, now)
		r := Operated{Campaign: o.Key.Campaign, Restaurant: o.Key.Restaurant, Lane: o.Lane, Before: o.State, State: o.State, Notified: o.Notified, Version: o.Version, Done: ok, Note: note}
		if ok {
			op.By = by
			change, ops = append(change, o), append(ops, op)
		}
		out = append(out, r)
	}
	return out, change, ops
}

// planRow decides what the action makes of one row; ok is false if that is nothing.
func planRow(action Action, o *sink.OperatedCampaign, now time.Time) (op sink.Operation, note string, ok bool) {
	ahead := o.Start > now.Unix()
	switch {
	case o.State == sink.StateCancelled:
		return op, fmt.Sprintf("it was cancelled at %s (%s); a message with other content that is sent after that revives it", o.Time.UTC().Format(time.RFC3339), o.Operator), false
	case o.State == sink.StateExpired, o.End <= now.Unix():
		return op, fmt.Sprintf("it is over since %s", time.Unix(min(o.End, now.Unix()), 0).UTC().Format(time.RFC3339)), false
	}
	switch action {
	case Cancel:
		op.State, op.Cancel = sink.StateCancelled, true
		if o.State == sink.StateFinished {
			return op, noteCancelFinished(o), true
		}
		return op, "nobody is notified of it any more", true
	case Pause:
		return planPause(o)
	case Resume:
		if o.State != sink.StatePaused {
			return op, "it is not paused, " + describeState(o, ahead), false
		}
		op.State, op.Rejoin = sink.StatePending, true
		return op, "it goes on within a second, for everybody who has not been notified" + whenAhead(o, ahead), true
	case Approve:
		return planApprove(o, ahead)
	}
	return op, fmt.Sprintf("there is no action %q", action), false
}

// noteCancelFinished says what the cancel of a finished campaign means for its clients.
func noteCancelFinished(o *sink.OperatedCampaign) string {
	if o.Refusal != "" || o.Met() == 0 {
		return describeFinished(o) + "; nobody is notified of it any more"
	}
	return "everybody who was subscribed when it was sent has it; nobody else gets it"
}

func planPause(o *sink.OperatedCampaign) (op sink.Operation, note string, ok bool) {
	switch o.State {
	case sink.StatePaused:
		return op, "it is paused already (" + o.Operator + ")", false
	case sink.StateParked:
		return op, "it is parked: nobody is notified until it is approved", false
	}
	op.State = sink.StatePaused
	return op, "nobody is notified of it until `dinnerbell resume`", true
}

func planApprove(o *sink.OperatedCampaign, ahead bool) (op sink.Operation, note string, ok bool) {
	op.Approved = true
	switch {
	case o.State == sink.StateParked:
		op.State, op.Rejoin = sink.StatePending, true
		return op, "it goes out within a second, however large its audience is", true
	case o.Approved:
		return op, "it is approved already, and " + describeState(o, ahead), false
	case o.State == sink.StatePending && !o.Begun, o.State == sink.StatePaused:
		op.State = o.State
		return op, "it will not be parked, however large its audience is" + whenAhead(o, ahead), true
	}
	return op, "it is not parked, " + describeState(o, ahead), false
}

// describeState says in words what a campaign is doing.
func describeState(o *sink.OperatedCampaign, ahead bool) string {
	switch {
	case o.State == sink.StatePending && ahead:
		return "it waits for its start at " + time.Unix(o.Start, 0).UTC().Format(time.RFC3339)
	case o.State == sink.StatePending:
		return "it is going out"
	case o.State == sink.StateFinished:
		return describeFinished(o)
	case o.State == sink.StateRejoin:
		return "it went out to everybody who subscribed"
	}
	return "it is " + o.State
}

// describeFinished says in words how a campaign came to its end. A row that was written
// before the tables had layout 4 does not say that the feedback table refused it.
func describeFinished(o *sink.OperatedCampaign) string {
	since := o.Finished.UTC().Format(time.RFC3339)
	switch {
	case o.Refusal != "" && o.Notified > 0:
		return fmt.Sprintf("%d clients have it, and the feedback table takes no more rows of it: %s; once it does, `dinnerbell replay` reaches the others", o.Notified, o.Refusal)
	case o.Refusal != "":
		return fmt.Sprintf("the feedback table refused it at %s: %s; once the table takes its rows, `dinnerbell dead-letters retry` or `dinnerbell replay` sends it", since, o.Refusal)
	case o.Met() == 0 && !o.Begun:
		return "nobody subscribed to its restaurant when it was sent"
	case o.Met() == 0:
		return fmt.Sprintf("it is over since %s and notified nobody, as its row counts; if the feedback table refused it, its dead letter has the reason: `dinnerbell dead-letters list`", since)
	}
	return "it went out to everybody who subscribed"
}

func whenAhead(o *sink.OperatedCampaign, ahead bool) string {
	if !ahead {
		return ""
	}
	return "; it starts at " + time.Unix(o.Start, 0).UTC().Format(time.RFC3339)
}

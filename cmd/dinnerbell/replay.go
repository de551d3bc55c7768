package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/control"
	"dinnerbell/cmd/dinnerbell/internal/daemon"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/state"
	"dinnerbell/stream"
)

// replayCmd has the running daemon read campaigns again.
type replayCmd struct {
	From   filledText `required:"" placeholder:"ID|TIME|earliest" help:"Where to begin: a checkpoint, an RFC 3339 time, a duration ago such as 2h or 7d, or the earliest message that the topic holds."`
	Until  filledText `placeholder:"TIME" help:"Where to end: the first message of this time or later is not read. Default: the position up to which the lanes have read."`
	DryRun bool       `help:"Only count, change nothing."`
	JSON   bool       `help:"The result as JSON."`
}

// replayArguments are the body of the action.
type replayArguments struct {
	Checkpoint string    `json:"checkpoint,omitempty"` // else Time, else the earliest message
	Time       time.Time `json:"time,omitzero"`
	Until      time.Time `json:"until,omitzero"`
	DryRun     bool      `json:"dry_run,omitempty"`
}

// Help shows how it is used.
func (*replayCmd) Help() string {
	return `Examples:
  dinnerbell replay --from 2h --dry-run
  dinnerbell replay --from 2026-11-30T12:00:00Z
  dinnerbell replay --from earliest`
}

// Run prints the result, and fails if lanes were left out.
func (c *replayCmd) Run(ctx context.Context, a *invocation) error {
	args, err := c.parseArguments(time.Now())
	if err != nil {
		return err
	}
	cfg, err := config.Load(a.configFile, a.env)
	if err != nil {
		return err
	}
	var r stream.ReplayReport
	shown := terminal.NewProgress(a.stderr, "messages")
	err = control.Do(ctx, cfg.State.Dir, "replay", args, control.ReplyHandler{Progress: shown.Update, Result: &r})
	shown.Finish()
	if err != nil {
		return err
	}
	if c.JSON {
		err = json.NewEncoder(a.stdout).Encode(&r)
	} else {
		err = printReplay(a.stdout, &r)
	}
	if err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	var left []error
	for _, l := range r.Lanes {
		if l.NotCovered != "" {
			left = append(left, fmt.Errorf("lane %d was not replayed: %s", l.Partition, l.NotCovered))
		}
	}
	return errors.Join(left...)
}

func (c *replayCmd) parseArguments(now time.Time) (args replayArguments, err error) {
	args.DryRun = c.DryRun
	if c.Until != "" {
		var ok bool
		if args.Until, ok = parseTime(string(c.Until), now); !ok {
			return args, fmt.Errorf("%w: --until %q is neither an RFC 3339 time nor a duration ago such as 2h or 7d", errUsage, c.Until)
		}
	}
	if c.From == "earliest" {
		return args, nil
	}
	var ok bool
	if args.Time, ok = parseTime(string(c.From), now); !ok {
		args.Checkpoint = string(c.From)
	}
	return args, nil
}

// parseTime reads an RFC 3339 time, or a duration before now.
func parseTime(text string, now time.Time) (time.Time, bool) {
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return at, true
	}
	if ago, err := config.ParseDuration(text); err == nil {
		return now.Add(-ago), true
	}
	return time.Time{}, false
}

// replayCampaigns is the daemon's side: an Action.
func replayCampaigns(ctx context.Context, e *daemon.Engine, c *control.Call) (any, error) {
	var args replayArguments
	if err := c.Args(&args); err != nil {
		return nil, err
	}
	req := stream.ReplayRequest{From: stream.ReplayStart{Time: args.Time}, Until: args.Until, DryRun: args.DryRun}
	if args.Checkpoint != "" {
		m, err := state.ReadManifest(e.Config.State.Dir, args.Checkpoint)
		if errors.Is(err, state.ErrNoCheckpoint) {
			return nil, fmt.Errorf("%w: --from %q is neither earliest, an RFC 3339 time, a duration ago such as 2h or 7d, nor a checkpoint that is there (see: dinnerbell checkpoint list)", errUsage, args.Checkpoint)
		}
		if err != nil {
			return nil, fmt.Errorf("replay: %w", err)
		}
		if len(m.NextOffsets) == 0 {
			return nil, fmt.Errorf("replay: checkpoint %s does not hold the offsets of the campaigns; use its time: --from %s", m.ID, m.Made.Format(time.RFC3339))
		}
		req.From.Offsets = m.NextOffsets
	}
	r, err := e.Service.Replay(ctx, req, c.Progress)
	if err != nil {
		return nil, fmt.Errorf("replay: %w", err)
	}
	return r, nil
}

// printReplay writes the report as text.
func printReplay(out io.Writer, r *stream.ReplayReport) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	row := func(name string, n int64, what string) {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\n", name, terminal.Thousands(n), what)
	} // Flush reports errors
	row("messages", r.Messages, "")
	row("valid", r.Valid, "")
	row("scheduled", r.Scheduled, "they wait for their start")
	row("expired", r.Expired, "their end has passed")
	row("superseded", r.Superseded, "a newer message of the campaign is there")
	row("held", r.Held, "an operator cancelled or paused the campaign, or it is parked")
	row("dead", r.Dead, "not campaigns; not sent to the dead letters again")
	row("clients who have it", r.Have, "")
	if r.DryRun {
		row("clients missed", r.Notified, "they would be notified; nothing was changed")
	} else {
		row("clients missed", r.Notified, "they are notified")
	}
	if err := w.Flush(); err != nil {
		return err
	}
	w = tabwriter.NewWriter(out, 0, 8, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintf(w, "\nlane\tfrom\tuntil\t\t\n")
	for _, l := range r.Lanes {
		note := ""
		if l.NotCovered != "" {
			note = "not covered"
		}
		_, _ = fmt.Fprintf(w, "%d\t%d\t%d\t%s\t\n", l.Partition, l.From, l.Until, note)
	}
	return w.Flush()
}

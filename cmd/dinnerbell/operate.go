package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/user"

	"dinnerbell/cmd/dinnerbell/internal/daemon"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/stream/operator"
)

// operateArgs are the arguments of the commands that act on a campaign. The commands
// write the sink themselves and need no daemon.
type operateArgs struct {
	Campaign   exactID `arg:"" help:"The campaign's id (adv_campaign_id)."`
	Restaurant exactID `placeholder:"ID" help:"Only for this restaurant (default: all restaurants of the campaign)."`
	JSON       bool    `help:"One JSON object a line, for each restaurant."`
}

type (
	approveCmd struct{ operateArgs }
	cancelCmd  struct{ operateArgs }
	pauseCmd   struct{ operateArgs }
	resumeCmd  struct{ operateArgs }
)

// Help adds what follows, and examples, to the help of the command.
func (*cancelCmd) Help() string {
	return `Once the command has ended, the daemon decides no further notification of the campaign; notifications that were decided before are still shipped. A repeat, an edit that was sent before, and a replay do not revive the campaign; other content that is sent after the cancel does.

Examples:
  dinnerbell cancel summer-offer
  dinnerbell cancel summer-offer --restaurant 123e4567-e89b-12d3-a456-426614174000`
}

// Help adds what follows, and examples, to the help of the command.
func (*pauseCmd) Help() string {
	return `The daemon decides no notification of the campaign until it is resumed, also after restarts and edits. The campaign still ends at its end.

Examples:
  dinnerbell pause summer-offer`
}

// Help adds what follows, and examples, to the help of the command.
func (*resumeCmd) Help() string {
	return `The campaign goes on for everybody who was not notified yet, those included who subscribed meanwhile.

Examples:
  dinnerbell resume summer-offer`
}

// Help adds what follows, and examples, to the help of the command.
func (*approveCmd) Help() string {
	return `The command approves a campaign that is parked, or one whose start has not come. The approval holds for later edits of the campaign too, until it is cancelled.

Examples:
  dinnerbell approve summer-offer
  dinnerbell approve summer-offer --restaurant 123e4567-e89b-12d3-a456-426614174000`
}

// Run lets a campaign go that limits.max_audience has parked.
func (c *approveCmd) Run(ctx context.Context, a *invocation) error {
	return c.operate(ctx, a, operator.Approve)
}

// Run stops a campaign for good.
func (c *cancelCmd) Run(ctx context.Context, a *invocation) error {
	return c.operate(ctx, a, operator.Cancel)
}

// Run holds a campaign.
func (c *pauseCmd) Run(ctx context.Context, a *invocation) error {
	return c.operate(ctx, a, operator.Pause)
}

// Run lets a paused campaign go on.
func (c *resumeCmd) Run(ctx context.Context, a *invocation) error {
	return c.operate(ctx, a, operator.Resume)
}

// operate prints the outcome for each restaurant, and leaves a line in the log for each
// change: who did it, and what.
func (c *operateArgs) operate(ctx context.Context, a *invocation, action operator.Action) error {
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	log := a.newLogger(cfg)
	done, err := operator.Operate(ctx, daemon.ClaimConfig(cfg, log).Sink, action, string(c.Campaign), string(c.Restaurant), whoami())
	lines := json.NewEncoder(a.stdout)
	for i := range done {
		o := &done[i]
		logOperated(log, o)
		write := func() error { return lines.Encode(o) }
		if !c.JSON {
			write = func() error { return c.print(a, o) }
		}
		if err := write(); err != nil {
			return fmt.Errorf("write result: %w", err)
		}
	}
	return err
}

func logOperated(log *slog.Logger, o *operator.Operated) {
	if o.Done {
		log.Info("campaign was changed", "campaign", o.Campaign, "restaurant", o.Restaurant, "command", o.By, "before", o.Before, "state", o.State, "version", o.Version, "lane", o.Lane)
	}
}

func (c *operateArgs) print(a *invocation, o *operator.Operated) error {
	state := o.State
	if o.Before != o.State {
		state = o.Before + " → " + o.State
	}
	out := a.stdout
	if !o.Done {
		out = a.messages
		state = "not changed"
	}
	_, err := fmt.Fprintf(out, "campaign %s of restaurant %s: %s; %s\n", terminal.Escape(o.Campaign), terminal.Escape(o.Restaurant), state, terminal.Escape(o.Note))
	return err
}

// whoami names the user and the machine, as far as the operating system knows them. A
// user behind sudo is named too.
func whoami() string {
	name := fmt.Sprintf("uid %d", os.Getuid())
	if u, err := user.Current(); err == nil && u.Username != "" {
		name = u.Username
	}
	if before := os.Getenv("SUDO_USER"); before != "" && before != name {
		name += " (sudo by " + before + ")"
	}
	host, err := os.Hostname()
	if err != nil {
		host = "an unknown host"
	}
	return name + "@" + host
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/control"
	"dinnerbell/cmd/dinnerbell/internal/daemon"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/stream"
)

// previewCmd reports the outcome that a campaign would have.
type previewCmd struct {
	File string `arg:"" help:"One message of the campaigns topic; - for standard input."`
	JSON bool   `help:"The result as JSON."`
}

// previewArguments are the body of the action. The message need not be UTF-8.
type previewArguments struct {
	Value []byte `json:"value"`
}

// maxPreview is the size limit of the message, which travels to the daemon in
// base64.
const maxPreview = control.MaxArguments / 2

// Help shows how it is used.
func (*previewCmd) Help() string {
	return `The command asks the running daemon. It exits with 1 if the message would go to the dead letters.

Example:
  dinnerbell preview campaign.json`
}

// Run asks the running daemon. A message that would be refused is an error.
func (c *previewCmd) Run(ctx context.Context, a *invocation) error {
	cfg, err := config.Load(a.configFile, a.env)
	if err != nil {
		return err
	}
	value, err := c.readMessage()
	if err != nil {
		return err
	}
	var p stream.Preview
	shown := terminal.NewProgress(a.stderr, "clients")
	err = control.Do(ctx, cfg.State.Dir, "preview", previewArguments{value}, control.ReplyHandler{Progress: shown.Update, Result: &p})
	shown.Finish()
	if err != nil {
		return err
	}
	if c.JSON {
		err = json.NewEncoder(a.stdout).Encode(&p)
	} else if p.Reason == "" {
		err = printPreview(a.stdout, &p)
	}
	if err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	if p.Reason != "" {
		return fmt.Errorf("it would go to the dead letters: %s", p.Reason)
	}
	return nil
}

func (c *previewCmd) readMessage() ([]byte, error) {
	in := os.Stdin
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return nil, fmt.Errorf("%w: read campaign: %w", errUsage, err)
		}
		defer func() { _ = f.Close() }() // it was only read
		in = f
	}
	value, err := io.ReadAll(io.LimitReader(in, maxPreview+1))
	if err != nil {
		return nil, fmt.Errorf("read campaign: %w", err)
	}
	if len(value) > maxPreview {
		return nil, fmt.Errorf("read campaign: %s has more than %s", c.File, terminal.Bytes(maxPreview))
	}
	return value, nil
}

// previewCampaign is the daemon's side: an Action.
func previewCampaign(ctx context.Context, e *daemon.Engine, c *control.Call) (any, error) {
	var args previewArguments
	if err := c.Args(&args); err != nil {
		return nil, err
	}
	p, err := e.Service.Preview(ctx, args.Value)
	if err != nil {
		return nil, fmt.Errorf("preview: %w", err)
	}
	return p, nil
}

// printPreview writes the preview as text.
func printPreview(out io.Writer, p *stream.Preview) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	row := func(name, value string) { _, _ = fmt.Fprintf(w, "%s\t%s\n", name, terminal.Escape(value)) } // Flush reports errors
	row("campaign", p.Campaign)
	row("restaurant", p.Restaurant)
	row("outcome", map[string]string{
		"valid":     "would be sent at once",
		"scheduled": "would be sent at its start",
		"expired":   "its end has passed: nobody would get it",
		"repeat":    "an identical message is there: nothing would happen",
	}[p.Outcome])
	row("audience", terminal.Thousands(p.Audience))
	row("have it", terminal.Thousands(p.Have))
	row("would get it", terminal.Thousands(p.Notified))
	if p.Hint != "" {
		row("hint", p.Hint)
	}
	return w.Flush()
}

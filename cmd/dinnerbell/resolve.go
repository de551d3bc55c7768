package main

import (
	"context"
	"fmt"

	"dinnerbell/cmd/dinnerbell/internal/daemon"
	"dinnerbell/stream/operator"
)

// resolveCmd settles one lane. Nobody can know which records were lost, so the
// operator chooses between repeats and misses.
type resolveCmd struct {
	Lane          int32 `required:"" placeholder:"N" help:"The lane that halted."`
	AcceptRepeats bool  `xor:"accept" required:"" help:"Nobody is missed; some may be notified again."`
	AcceptMissing bool  `xor:"accept" required:"" help:"Nobody is notified again; some may be missed."`
}

// Help shows how it is used.
func (*resolveCmd) Help() string {
	return `Stop every daemon first. docs/operations.md compares the two answers.

Examples:
  dinnerbell resolve --lane 0 --accept-repeats    # nobody is missed, some may be notified again
  dinnerbell resolve --lane 0 --accept-missing    # nobody is notified again, some may be missed`
}

// Run prints each step that it took.
func (c *resolveCmd) Run(ctx context.Context, a *invocation) error {
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	accept := operator.AcceptMissing
	if c.AcceptRepeats {
		accept = operator.AcceptRepeats
	}
	did, err := operator.Resolve(ctx, daemon.ClaimConfig(cfg, a.newLogger(cfg)), c.Lane, accept)
	for _, line := range did {
		if _, err := fmt.Fprintln(a.stdout, line); err != nil {
			return fmt.Errorf("write result: %w", err)
		}
	}
	return err
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"dinnerbell/cmd/dinnerbell/internal/daemon"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/stream/operator"
)

// errAudit reports an invariant that does not hold.
var errAudit = errors.New("the audit found a broken invariant; start the daemon: it halts the lane and names the command that goes on")

// auditCmd checks the invariants of the protocol from the outside.
type auditCmd struct {
	JSON bool `help:"As JSON, one object a line."`
}

// Help shows how it is used.
func (*auditCmd) Help() string {
	return `The command reads both sinks and changes nothing, beside the daemon or without one. It exits with 1 if an invariant does not hold.

Example:
  dinnerbell audit`
}

// Run reads Postgres and Kafka alone: it needs no daemon and does not disturb a
// running one.
func (c *auditCmd) Run(ctx context.Context, a *invocation) error {
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	findings, err := operator.Audit(ctx, daemon.ClaimConfig(cfg, a.newLogger(cfg)))
	sound := true
	for _, f := range findings {
		sound = sound && f.OK
		if err := c.printFinding(a, f); err != nil {
			return fmt.Errorf("write result: %w", err)
		}
	}
	if err != nil {
		return err
	}
	if !sound {
		return errAudit
	}
	return nil
}

func (c *auditCmd) printFinding(a *invocation, f operator.Finding) error {
	if c.JSON {
		return json.NewEncoder(a.stdout).Encode(f)
	}
	word := "ok  "
	if !f.OK {
		word = "FAIL"
	}
	_, err := fmt.Fprintf(a.stdout, "%s lane %d: %s\n", word, f.Lane, terminal.Escape(f.What))
	return err
}

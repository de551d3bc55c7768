package main

import (
	"context"
	"encoding/json"
	"fmt"

	"dinnerbell/cmd/dinnerbell/internal/doctor"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/internal/precondition"
)

// doctorCmd checks everything that run needs.
type doctorCmd struct {
	JSON bool `help:"As JSON, one object for each finding: name, level (ok, warn, unknown, FAIL), object, found, effect, fix, and the fix taken apart: statements (SQL, each for a call of its own) and advice (the rest: a command or a sentence)."`
}

// Help returns what `dinnerbell doctor --help` shows below the options.
func (*doctorCmd) Help() string {
	return `The command checks Postgres, Kafka and this machine: all that setup and run check, and faults that will cause trouble later. It changes nothing, and works before setup, after it, and beside a running daemon. Run it as the daemon's user, on the daemon's machine.

Each line has a level, what was found, and the command or SQL that mends it. The levels are ok, warn (it works now and will cause trouble later), unknown (it could not be checked; the line has the reason) and FAIL (run would refuse it or fail by it). The command exits with 1 if a line has the level FAIL, else with 0.

Examples:
  dinnerbell -c /etc/dinnerbell/dinnerbell.yaml doctor
  dinnerbell doctor --json | jq 'select(.level != "ok")'`
}

// Run makes every check, whatever the outcome of the others.
func (c *doctorCmd) Run(ctx context.Context, a *invocation) error {
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	bar := terminal.NewProgress(a.stderr, "checks")
	bar.Spin("looking at Postgres, Kafka and this machine")
	sections := doctor.Run(ctx, doctor.Options{Config: cfg, File: a.configFile, Env: a.env, Logger: a.newLogger(cfg)})
	bar.Finish()
	if ctx.Err() != nil {
		return ctx.Err() // an interrupted check has no result
	}
	if c.JSON {
		err = c.printJSON(a, sections)
	} else {
		out, style := terminal.OpenStyled(a.stdout, a.env)
		err = doctor.Print(out, style, sections)
	}
	if err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	if n := doctor.Count(sections, precondition.Fail); n > 0 {
		return fmt.Errorf("doctor: %d of the findings must be mended, as their lines say; then look again", n)
	}
	return nil
}

// listedFinding is a finding of --json, with its fix taken apart.
type listedFinding struct {
	precondition.Finding
	precondition.Remedy
}

func (c *doctorCmd) printJSON(a *invocation, sections []doctor.Section) error {
	out := json.NewEncoder(a.stdout)
	for _, s := range sections {
		for _, f := range s.Report {
			if err := out.Encode(listedFinding{f, precondition.SplitRemedy(f.Fix)}); err != nil {
				return err
			}
		}
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5"

	"dinnerbell/cdc"
	"dinnerbell/cdc/source"
	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/daemon"
	"dinnerbell/internal/halt"
	"dinnerbell/internal/postgres"
	"dinnerbell/internal/precondition"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
	"dinnerbell/stream/topic"
)

// setupCmd creates the missing objects that `run` needs.
type setupCmd struct {
	PrintSQL bool `name:"print-sql" help:"Print the statements instead, for somebody with the rights to run them."`
}

// Help shows how it is used.
func (*setupCmd) Help() string {
	return `Examples:
  dinnerbell setup
  dinnerbell setup --print-sql > setup.sql    # for somebody who has the rights`
}

// Run goes on where an earlier setup has failed: each step looks for existing
// objects first.
func (c *setupCmd) Run(ctx context.Context, a *invocation) error {
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	log := a.newLogger(cfg)
	source, claim := daemon.SourceConfig(cfg, log), daemon.ClaimConfig(cfg, log)
	a.again = "; `dinnerbell setup` again goes on with what is missing"
	if c.PrintSQL {
		return printSQL(a.stdout, cfg, source, claim)
	}
	for _, step := range []struct {
		what string
		do   func() ([]string, error)
	}{
		{"check sink and topics", func() ([]string, error) {
			_, err := takeover.CheckPreconditions(ctx, claim, precondition.AtSetup) // the warnings come at the end
			return nil, err
		}},
		{"check source", func() ([]string, error) { return nil, warnOfSource(ctx, a, source) }},
		{"set up source", func() ([]string, error) { return setupSource(ctx, source) }},
		{"set up sink", func() ([]string, error) { return sink.Setup(ctx, claim.Sink) }},
		{"set up topics", func() ([]string, error) { return topic.Setup(ctx, claim.Kafka) }},
		{"check source", func() ([]string, error) { return nil, checkSource(ctx, source) }},
		{"check sink and topics", func() ([]string, error) { return nil, checkStream(ctx, a, claim) }},
	} {
		did, err := step.do()
		for _, line := range did {
			if _, err := fmt.Fprintln(a.stdout, line); err != nil {
				return fmt.Errorf("write result: %w", err)
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", step.what, ofCommand(err))
		}
	}
	return nil
}

// ofCommand returns an error of the command for a halt: no daemon has halted, and the
// exit code is not that of a halt.
func ofCommand(err error) error {
	if halted, ok := errors.AsType[*halt.Error](err); ok {
		return errors.New(halted.Text())
	}
	return err
}

// checkSource makes the checks that the start of `run` makes: the role and the
// publication are those that it finds, also where somebody has narrowed it.
func checkSource(ctx context.Context, cfg cdc.Config) error {
	report, err := source.CheckPreconditions(ctx, cfg.Source(), precondition.AtStart)
	if violation, ok := report.Violation(); ok {
		return &precondition.UnmetError{Finding: violation}
	}
	return err
}

// checkStream makes the checks that the start of `run` makes, but those of its rights in
// Kafka: the user may be another one. Warnings are messages.
func checkStream(ctx context.Context, a *invocation, cfg takeover.Config) error {
	warnings, err := takeover.CheckPreconditions(ctx, cfg, precondition.AfterSetup)
	for _, line := range warnings {
		if _, err := fmt.Fprintln(a.messages, line); err != nil {
			return fmt.Errorf("write warning: %w", err)
		}
	}
	return err
}

// warnOfSource prints the warnings about the source. Violations are not its
// concern: the setup of the source refuses them.
func warnOfSource(ctx context.Context, a *invocation, cfg cdc.Config) error {
	report, err := source.CheckPreconditions(ctx, cfg.Source(), precondition.AtSetup)
	for _, f := range report.At(precondition.Warn) {
		if _, err := fmt.Fprintln(a.messages, "warning: "+f.String()); err != nil {
			return fmt.Errorf("write warning: %w", err)
		}
	}
	if report != nil {
		return nil
	}
	return err
}

// setupSource returns one line for each change, as the other steps do, and one line
// when nothing was missing.
func setupSource(ctx context.Context, cfg cdc.Config) ([]string, error) {
	ran, err := source.Setup(ctx, cfg.Source())
	if err == nil && len(ran) == 0 {
		return []string{fmt.Sprintf("publication %s: there already", cfg.Publication)}, nil
	}
	for i, statement := range ran {
		ran[i] = fmt.Sprintf("publication %s: %s", cfg.Publication, statement)
	}
	return ran, err
}

// printSQL writes a script for psql, which may run repeatedly. A comment names the
// topics, which SQL cannot make. The grants are for the roles of the two URLs, if
// another role owns the tables.
func printSQL(out io.Writer, cfg *config.Config, mirror cdc.Config, claim takeover.Config) error {
	reader, err := roleOf(cfg.SourceURL)
	if err != nil {
		return err
	}
	writer, err := roleOf(cfg.SinkURL)
	if err != nil {
		return err
	}
	reader = pgx.Identifier{reader}.Sanitize()
	lines := []string{"-- in the source database", "-- the role must have REPLICATION: ALTER ROLE " + reader + " REPLICATION;"}
	for _, s := range source.SetupSQL(mirror.Source()) {
		lines = append(lines, "DO $setup$ BEGIN "+s+"; EXCEPTION WHEN duplicate_object THEN NULL; END $setup$;")
	}
	lines = append(lines, "GRANT USAGE ON SCHEMA "+pgx.Identifier{mirror.Schema}.Sanitize()+" TO "+reader+";",
		"GRANT SELECT ON "+pgx.Identifier{mirror.Schema, mirror.Table}.Sanitize()+" TO "+reader+";",
		"", "-- in the sink database, outside of a transaction (CONCURRENTLY, which a partitioned table",
		"-- does not take); without the index where the table has one over the same two columns")
	for _, s := range append(sink.SetupSQL(claim.Sink), sink.GrantSQL(claim.Sink, writer)...) {
		lines = append(lines, s+";")
	}
	k := claim.Kafka
	lines = append(lines, "", fmt.Sprintf("-- topics: %s, %s, %s, and %s (compacted, as many partitions as %s)",
		k.Campaigns, k.Notifications, k.DeadLetters, k.Progress, k.Campaigns))
	for _, l := range lines {
		if _, err := fmt.Fprintln(out, l); err != nil {
			return fmt.Errorf("write result: %w", err)
		}
	}
	return nil
}

// roleOf returns the role that a URL logs in as.
func roleOf(url func() (string, error)) (string, error) {
	raw, err := url()
	if err != nil {
		return "", err
	}
	o, err := postgres.Parse(raw)
	if err != nil {
		return "", err
	}
	return o.User, nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/logging"
	"dinnerbell/cmd/dinnerbell/internal/terminal"

	"github.com/alecthomas/kong"
)

// commandLine is the command line: one field for each command of the contract.
// Commands that are not available yet have one too, so that they are refused and
// not unknown.
type commandLine struct {
	File        string           `name:"config" short:"c" placeholder:"FILE" type:"path" help:"Configuration file (default: $DINNERBELL_CONFIG, then ./dinnerbell.yaml, which may be absent when the environment sets the required keys)."`
	ShowVersion kong.VersionFlag `name:"version" help:"Show the version."`

	Run    runCmd    `cmd:"" group:"run" help:"Run the daemon."`
	Demo   demoCmd   `cmd:"" group:"run" help:"Show dinnerbell at work with its own Postgres and broker."`
	Setup  setupCmd  `cmd:"" group:"run" help:"Create what is missing: publication, tables, index, topics. Safe to repeat."`
	Config configCmd `cmd:"" group:"run" help:"Check the configuration."`

	Status      statusCmd      `cmd:"" group:"look" help:"Show the state of the running daemon."`
	Doctor      doctorCmd      `cmd:"" group:"look" help:"Check everything that run needs, and name what mends each fault. Changes nothing."`
	Health      healthCmd      `cmd:"" group:"look" help:"Report whether the daemon is ready, for health checks."`
	Campaigns   campaignsCmd   `cmd:"" group:"look" help:"List the campaigns: audience, progress, rate, time left."`
	Preview     previewCmd     `cmd:"" group:"look" help:"Show how many clients a campaign would reach; sends nothing."`
	Subscribers subscribersCmd `cmd:"" group:"look" help:"List the clients of a restaurant, as the local state has them."`
	Explain     explainCmd     `cmd:"" group:"look" help:"Show why a client got a campaign, or did not get it, with the evidence."`
	Audit       auditCmd       `cmd:"" group:"look" help:"Check in both sinks that the invariants of every lane hold, read-only."`
	Capacity    capacityCmd    `cmd:"" group:"look" help:"Calculate the machines that a workload needs, from measured unit costs."`

	Cancel  cancelCmd  `cmd:"" group:"act" help:"Stop a campaign now, for good. Needs no daemon."`
	Pause   pauseCmd   `cmd:"" group:"act" help:"Hold a campaign until it is resumed. Needs no daemon."`
	Resume  resumeCmd  `cmd:"" group:"act" help:"Let a paused campaign go on. Needs no daemon."`
	Approve approveCmd `cmd:"" group:"act" help:"Let a campaign go that limits.max_audience has parked. Needs no daemon."`

	Verify      verifyCmd      `cmd:"" group:"mend" help:"Compare the local subscriptions of the running daemon with Postgres, at one position."`
	Rebuild     rebuildCmd     `cmd:"" group:"mend" help:"Take a new snapshot of the subscriptions, while the daemon serves the old ones."`
	Checkpoint  checkpointCmd  `cmd:"" group:"mend" help:"Save the local state, list the saved states, restore one."`
	Replay      replayCmd      `cmd:"" group:"mend" help:"Read campaigns again: clients who were missed are notified, nobody twice."`
	DeadLetters deadLettersCmd `cmd:"" group:"mend" help:"List the refused messages, or send them again."`
	Resolve     resolveCmd     `cmd:"" group:"mend" help:"Settle a lane that halted because a sink was rolled back."`

	Completion completionCmd `cmd:"" group:"other" help:"Print the code for completion in a shell."`
	Version    versionCmd    `cmd:"" group:"other" help:"Show version, commit and Go."`

	Broker   brokerCmd   `cmd:"" hidden:"" help:"Serve the demo's broker."`
	Complete completeCmd `cmd:"" hidden:"" name:"__complete" help:"Complete a command line."`
	Manual   manualCmd   `cmd:"" hidden:"" name:"__manual" help:"Print the manual page."`
}

// commandGroups are the headings of the commands in the help.
var commandGroups = []kong.Group{
	{Key: "run", Title: "Run:"},
	{Key: "look", Title: "Look:"},
	{Key: "act", Title: "Steer campaigns:"},
	{Key: "mend", Title: "Mend:"},
	{Key: "other", Title: "Other:"},
}

// invocation holds the inputs and outputs of one command line. Data goes to stdout,
// messages to stderr.
type invocation struct {
	stdout, stderr io.Writer // stdout escapes controls; stderr is for bars on a terminal and for children
	messages       io.Writer // standard error, controls escaped: log and errors
	env            config.Env
	configFile     string // of -c; "" for the default

	cfg    *config.Config // nil until loadConfig has read it
	daemon bool           // the command is run: its last line goes to the log
	again  string         // what a user does after an interrupt; "": the command again
}

// runCommandLine runs one command line and returns the exit code: 0 done, 1 failed,
// 2 usage or configuration, 3 halted and needs an operator.
func runCommandLine(ctx context.Context, args []string, stdout, stderr io.Writer, env []string) int {
	data, messages := &terminal.EscapingWriter{Out: stdout}, &terminal.EscapingWriter{Out: stderr}
	code := parseAndRun(ctx, args, &invocation{stdout: data, stderr: stderr, messages: messages, env: config.ParseEnv(env)})
	if err := errors.Join(data.Flush(), messages.Flush()); err != nil && code == exitDone {
		return exitFailed // the output is incomplete
	}
	return code
}

// parseAndRun parses and runs one command line.
func parseAndRun(ctx context.Context, args []string, a *invocation) int {
	var c commandLine
	helped := false
	parser, err := newParser(&c,
		kong.Writers(a.stdout, a.messages),
		// After --help kong calls Exit and goes on to parse, which may fail.
		kong.Exit(func(int) { helped = true }),
	)
	if err != nil {
		return a.reportError(err)
	}
	command, err := parser.Parse(args)
	switch {
	case helped:
		return 0
	case err != nil:
		return a.reportError(fmt.Errorf("%w: %w (see %s --help)", errUsage, err, commandOf(err)))
	}
	a.configFile = c.File
	if a.configFile == "" {
		a.configFile = a.env["DINNERBELL_CONFIG"]
	}
	command.BindTo(ctx, (*context.Context)(nil))
	return a.reportError(a.nameInterrupt(ctx, command.Run(a)))
}

// commandOf returns the command to which a wrong command line belongs.
func commandOf(err error) string {
	name := "dinnerbell"
	parse, ok := errors.AsType[*kong.ParseError](err)
	if !ok || parse.Context == nil {
		return name
	}
	for _, p := range parse.Context.Path {
		if p.Command != nil {
			name += " " + p.Command.Name
		}
	}
	return name
}

// newParser returns the parser of the command line, with further options.
func newParser(c *commandLine, options ...kong.Option) (*kong.Kong, error) {
	return kong.New(c, append(options,
		kong.Name("dinnerbell"),
		kong.Description("Notifies the subscribers of a restaurant about its campaigns, exactly once. Commands end with 0 if all is done, 1 if something failed, 2 if the command line or the configuration is wrong, 3 if a part is halted and an operator has to decide."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
		kong.ExplicitGroups(commandGroups),
		kong.Vars{"version": thisBuild().String()},
	)...)
}

// interruptedError is the error of a command that a signal has ended: whatever it was
// waiting for failed because of that, and is not to blame. The exit code is that of the
// error.
type interruptedError struct {
	again string
	err   error
}

// Error names the interruption, and leaves out the error that it caused.
func (e *interruptedError) Error() string { return "interrupted before it was done" + e.again }

// Unwrap returns the error of the interrupted call.
func (e *interruptedError) Unwrap() error { return e.err }

// nameInterrupt returns the error that a command ends with after an interrupt.
func (a *invocation) nameInterrupt(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil || a.daemon {
		return err
	}
	return &interruptedError{a.again, err}
}

// maxError is the largest error text, in bytes, that a command ends with. A
// configuration may have twenty mistakes.
const maxError = 16 << 10

// reportError writes an error for the operator and returns its exit code. A daemon
// that logs JSON writes the error as JSON too.
func (a *invocation) reportError(err error) int {
	code := exitCode(err)
	switch {
	case err == nil:
	case a.daemon && a.cfg != nil && a.cfg.Log.Format == "json":
		a.newLogger(a.cfg).Error("dinnerbell ends", "error", err, "exit", code)
	default:
		text := config.HideUserinfo(err.Error())
		if a.cfg != nil {
			text = a.cfg.Hide(text)
		}
		_, _ = fmt.Fprintln(a.messages, "dinnerbell:", terminal.Indent(logging.Bound(text, maxError))) // nowhere to report a failing stderr
	}
	return code
}

// loadConfig reads and checks the configuration for a command that needs all of it.
func (a *invocation) loadConfig() (*config.Config, error) {
	cfg, err := config.Load(a.configFile, a.env)
	if err != nil {
		return nil, err
	}
	a.cfg = cfg
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return cfg, nil
}

// readConfig reads and checks the configuration again, for a daemon that runs with an
// earlier one.
func (a *invocation) readConfig() (*config.Config, error) {
	cfg, err := config.Load(a.configFile, a.env)
	if err != nil {
		return nil, err
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return cfg, nil
}

// newLogger writes to standard error as log.level and log.format say.
func (a *invocation) newLogger(cfg *config.Config) *slog.Logger {
	return logging.New(a.messages, cfg.Log.Level, cfg.Log.Format, cfg.Hide)
}

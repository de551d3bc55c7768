package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"dinnerbell/cmd/dinnerbell/internal/daemon"
)

// runCmd runs the daemon.
type runCmd struct{}

// Help shows how it is used.
func (*runCmd) Help() string {
	return `On SIGTERM or Ctrl-C the daemon finishes the steps under way and exits with 0. It exits with 2 if the configuration is refused, and with 3 if no part can go on until an operator decides: a restart does not help then.

Example:
  dinnerbell -c /etc/dinnerbell/dinnerbell.yaml run`
}

// Run returns once everything that it started has ended: nil after a signal, when
// the work under way is finished; a halt (exit 3) when nothing can go on without an
// operator.
func (c *runCmd) Run(ctx context.Context, a *invocation) error {
	a.daemon = true
	cfg, err := a.loadConfig()
	if err != nil {
		return err
	}
	daemon.TuneGC(a.env)
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	defer signal.Stop(reload)
	return daemon.Run(ctx, daemon.Options{Config: cfg, Logger: a.newLogger(cfg), Build: thisBuild(), Actions: actions, ExitCode: exitCode,
		Reload: reload, LoadConfig: a.readConfig})
}

// actions are the actions that commands ask the running daemon for, by name.
var actions = map[string]daemon.Action{
	"campaigns":   listFanOuts,
	"checkpoint":  saveCheckpoint,
	"explain":     explainSubscriptions,
	"preview":     previewCampaign,
	"rebuild":     rebuildOnline,
	"replay":      replayCampaigns,
	"subscribers": listSubscribers,
	"verify":      verifyOnline,
}

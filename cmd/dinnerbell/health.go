package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/control"
	"dinnerbell/cmd/dinnerbell/internal/logging"
	"dinnerbell/cmd/dinnerbell/internal/status"
)

// healthCmd reports whether the running daemon is ready, for container health checks.
type healthCmd struct{}

// Help shows how a container uses it.
func (*healthCmd) Help() string {
	return `The command prints nothing and exits with 0 if the daemon is ready. If the daemon is not ready or does not run, the command prints one line with the reason and what mends it, and exits with 1.

Examples:
  dinnerbell health
  HEALTHCHECK CMD ["/dinnerbell", "health"]       # in a Dockerfile`
}

// Run asks over the socket in state.dir, as status does. It ends with 1 if the daemon
// is not ready or does not run.
func (*healthCmd) Run(ctx context.Context, a *invocation) error {
	cfg, err := config.Load(a.configFile, a.env)
	if err != nil {
		return err
	}
	body, err := control.Get(ctx, cfg.State.Dir, "/api/status")
	if err != nil {
		return err
	}
	var r status.Report
	if err := json.Unmarshal(body, &r); err != nil {
		return fmt.Errorf("read answer of the daemon: %w", err)
	}
	if r.Ready {
		return nil
	}
	return errors.New("not ready: " + healthText(&r))
}

// healthText says in one line why the daemon is not ready.
func healthText(r *status.Report) string {
	var all []string
	for i := range r.Problems {
		if p := &r.Problems[i]; p.Level != status.LevelWarning {
			all = append(all, fmt.Sprintf("%s: %s (to mend: %s)", p.Part, p.What, p.Mend))
		}
	}
	if len(all) == 0 {
		all = r.Reasons
	}
	return logging.Line(strings.Join(all, "; "))
}

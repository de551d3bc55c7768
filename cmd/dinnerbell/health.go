package main

import (
	"context"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/control"
)

// healthCmd reports whether the running daemon is ready, for container health checks.
type healthCmd struct{}

// Help shows how a container uses it.
func (*healthCmd) Help() string {
	return `It prints nothing when the daemon is ready, and why not otherwise.

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
	_, err = control.Get(ctx, cfg.State.Dir, "/readyz")
	return err
}

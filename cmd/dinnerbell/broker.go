package main

import (
	"context"

	"dinnerbell/internal/testenv"
)

// brokerCmd is the demo's broker in a process of its own, started by the demo
// and ended by its SIGTERM.
type brokerCmd struct {
	Dir    string `arg:"" help:"Data folder."`
	Listen string `arg:"" help:"host:port on loopback."`
}

// Run serves until ctx ends.
func (c *brokerCmd) Run(ctx context.Context) error {
	return testenv.ServeBroker(ctx, c.Dir, c.Listen)
}

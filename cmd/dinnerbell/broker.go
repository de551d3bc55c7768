//go:build !nodemo

package main

import (
	"context"

	"dinnerbell/internal/testenv"
)

// brokerCmd runs the demo's broker as a separate process. The demo starts it and
// ends it by SIGTERM.
type brokerCmd struct {
	Dir    string `arg:"" help:"Data folder."`
	Listen string `arg:"" help:"host:port on loopback."`
}

// Run serves until ctx ends.
func (c *brokerCmd) Run(ctx context.Context) error {
	return testenv.ServeBroker(ctx, c.Dir, c.Listen)
}

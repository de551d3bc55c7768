//go:build !nodemo

package main

import (
	"context"
	"fmt"
	"os"

	"dinnerbell/cmd/dinnerbell/internal/demo"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
)

// demoCmd shows dinnerbell at work. It reads no configuration: all servers are its
// own.
type demoCmd struct {
	Once  bool `help:"Deliver and check one round of campaigns; exit with 0 if each notification arrived exactly once."`
	Chaos bool `help:"Kill the daemon (kill -9) every ten seconds, and compare both sinks each time. With --once: kill it twice, and exit with 0 if nothing is missing or doubled."`
	JSON  bool `help:"Results as JSON."`

	Subscriptions int `hidden:"" help:"Number of subscriptions."`
	Restaurants   int `hidden:"" help:"Number of restaurants."`
}

// Help shows how it is used.
func (*demoCmd) Help() string {
	return `Examples:
  dinnerbell demo
  dinnerbell demo --chaos     # the daemon is killed now and then: missing 0, doubled 0
  dinnerbell demo --once      # one round of campaigns, checked; exit 0`
}

// Run starts this binary again for the broker and for the daemon.
func (c *demoCmd) Run(ctx context.Context, a *invocation) error {
	if c.Restaurants != 0 && c.Restaurants < demo.MinRestaurants || c.Subscriptions != 0 && c.Subscriptions < c.Restaurants {
		return fmt.Errorf("%w: at least %d restaurants, and a subscription for each", errUsage, demo.MinRestaurants)
	}
	binary, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own binary: %w", err)
	}
	out, style := terminal.OpenStyled(a.stdout, a.env)
	return demo.Run(ctx, demo.Options{
		Once: c.Once, Chaos: c.Chaos, JSON: c.JSON, Style: style, Subscriptions: c.Subscriptions, Restaurants: c.Restaurants,
		Binary: binary, Env: a.env.List(), Stdout: out, Stderr: a.stderr,
	})
}

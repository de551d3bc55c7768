package stream

import (
	"context"
	"time"

	"dinnerbell/stream/takeover"
)

// Barrier waits for fresh subscriptions. It returns once the local subscriptions are as
// fresh as the operator wants them (by default: they hold every change that was
// committed in Postgres before the call), or with an error if ctx ends first. Callers
// are concurrent.
type Barrier interface {
	Barrier(ctx context.Context) error
}

// Config says where campaigns come from, where notifications go, and how much is
// done at once.
type Config struct {
	takeover.Config

	// LiveCampaigns and LiveBytes bound the campaigns that one lane holds in
	// memory; beyond them the intake waits. Defaults 4096 and 8 MiB.
	LiveCampaigns int
	LiveBytes     int
	// DrainTimeout bounds the time in which steps in flight are finished after Run's
	// context has ended. Default 10 s.
	DrainTimeout time.Duration
}

func (c Config) withDefaults() Config {
	c.Config = c.Config.WithDefaults()
	if c.LiveCampaigns <= 0 {
		c.LiveCampaigns = 4096
	}
	if c.LiveBytes <= 0 {
		c.LiveBytes = 8 << 20
	}
	if c.DrainTimeout <= 0 {
		c.DrainTimeout = 10 * time.Second
	}
	return c
}

// bounded runs fn under a timeout.
func bounded[T any](ctx context.Context, limit time.Duration, fn func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return fn(ctx)
}

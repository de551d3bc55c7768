package cdc

import (
	"cmp"
	"time"

	"dinnerbell/cdc/source"
	"dinnerbell/cdc/tablecopy"
)

// Observer records durations in seconds, such as a Prometheus histogram.
type Observer interface{ Observe(seconds float64) }

// Config names the mirrored table and how the mirror follows it.
type Config struct {
	// Config names the table and how to reach it. New appends the id of the store's
	// directory to ApplicationName, which distinguishes this instance from all
	// others. Checkpoints follows from CheckpointEvery.
	source.Config

	// HaltOnLost: where the stream can no longer bring the local state forward, Run
	// returns a *halt.Error instead of taking a new snapshot over a complete one.
	HaltOnLost bool

	// Freshness is what Barrier waits for; default Strict.
	Freshness Freshness
	// MaxStaleness is for Bounded; default DefaultMaxStaleness.
	MaxStaleness time.Duration

	// CheckpointEvery is how often a checkpoint of the state is made. The slot is
	// then acknowledged no further than the newest checkpoint. 0: no checkpoints;
	// every durable change is acknowledged.
	CheckpointEvery time.Duration
	// NextOffsets returns the next offsets of the input, by partition, which
	// checkpoints note beside the rows. It may be nil.
	NextOffsets func() map[int32]int64
	// Delays receives, in seconds, how long after its commit in Postgres the oldest
	// transaction of each applied group became visible here, by the clocks of both
	// machines. nil: nobody wants to know.
	Delays Observer

	copyLimits tablecopy.Limits // for tests
}

// withDefaults fills in the fields that may be left out.
func (c Config) withDefaults() Config {
	c.MaxStaleness = cmp.Or(c.MaxStaleness, DefaultMaxStaleness)
	c.Config = c.Source()
	return c
}

// Source returns the part of the configuration that package source needs.
func (c Config) Source() source.Config {
	s := c.Config
	s.Checkpoints = c.CheckpointEvery > 0
	return s
}

package cdc

import (
	"cmp"
	"time"

	"dinnerbell/cdc/source"
	"dinnerbell/cdc/tablecopy"
)

// Config says which table is mirrored and through what.
type Config struct {
	// The table and how to reach it. New appends the id of the store's directory to
	// ApplicationName, which tells this instance from all others. Its Checkpoints
	// follow from CheckpointEvery.
	source.Config

	// HaltOnLost: where the stream cannot bring the local state forward any more,
	// Run returns a *halt.Error instead of taking a new snapshot over a complete one.
	HaltOnLost bool

	// Freshness is what Barrier waits for; default Strict.
	Freshness Freshness
	// MaxStaleness is for Bounded; default 5 s.
	MaxStaleness time.Duration

	// CheckpointEvery is how often a checkpoint of the state is made. The slot is
	// then acknowledged no further than the newest stands for. 0: none is made,
	// and what is durable is acknowledged.
	CheckpointEvery time.Duration
	// NextOffsets gives what the checkpoints note beside the rows: the next
	// offsets of the input, by partition. It may be nil.
	NextOffsets func() map[int32]int64

	copyLimits tablecopy.Limits // for tests
}

// withDefaults fills in the fields that may be left out.
func (c Config) withDefaults() Config {
	c.MaxStaleness = cmp.Or(c.MaxStaleness, 5*time.Second)
	c.Config = c.Source()
	return c
}

// Source returns the part of the configuration that package source needs.
func (c Config) Source() source.Config {
	s := c.Config
	s.Checkpoints = c.CheckpointEvery > 0
	return s
}

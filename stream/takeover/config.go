package takeover

import (
	"log/slog"
	"time"

	"dinnerbell/stream/sink"
	"dinnerbell/stream/topic"
)

// Config names the two sinks of a deployment and bounds its steps.
type Config struct {
	Sink   sink.Config
	Kafka  topic.Config
	Logger *slog.Logger // default: none

	// Window is w of K ≤ P ≤ K+w: how many steps may be decided and not yet
	// shipped; fewer where they hold more than three times StepBytes. Default 16.
	Window int
	// StepClients bounds the notifications of one step; a small campaign may exceed it
	// by a quarter. Default 2000.
	StepClients int
	// StepBytes bounds the bytes that one step sends to Postgres, and those of one
	// Kafka transaction; a single larger message still passes. Default 4 MiB.
	StepBytes int
	// SinkTimeout bounds each wait of a session for Postgres: nothing else on our side
	// notices a peer that has gone silent. Work that grows with the data gets ten
	// times as much. Default 30 s.
	SinkTimeout time.Duration
}

// WithDefaults returns the configuration with defaults where nothing is set.
func (c Config) WithDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		field *int
		value int
	}{
		{&c.Window, 16}, {&c.StepClients, 2000}, {&c.StepBytes, 4 << 20},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	if c.SinkTimeout <= 0 {
		c.SinkTimeout = 30 * time.Second
	}
	c.Kafka = c.Kafka.WithDefaults()
	return c
}

package daemon

import (
	"log/slog"
	"os"
	"strings"

	"dinnerbell/cdc"
	"dinnerbell/cdc/source"
	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/kafkaconn"
	"dinnerbell/stream"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
	"dinnerbell/stream/topic"

	"github.com/twmb/franz-go/pkg/kgo"
)

// SourceConfig returns the configuration of package cdc.
func SourceConfig(cfg *config.Config, log *slog.Logger) cdc.Config {
	return cdc.Config{
		Config: source.Config{
			URL:              cfg.SourceURL,
			Schema:           cfg.Source.Table.Schema,
			Table:            cfg.Source.Table.Name,
			KeyColumns:       cfg.Source.Columns.ID,
			ClientColumn:     cfg.Source.Columns.Client,
			RestaurantColumn: cfg.Source.Columns.Restaurant,
			Publication:      cfg.Source.Publication,
			Slot:             cfg.Source.Slot,
			ApplicationName:  applicationName(),
			Logger:           log.With("part", "source"),
		},
		HaltOnLost:      cfg.Source.OnLost == "halt",
		Freshness:       cdc.Freshness(cfg.Join.Freshness),
		MaxStaleness:    cfg.Join.MaxStaleness,
		CheckpointEvery: cfg.State.Checkpoint.Every,
	}
}

// streamConfig returns the configuration of package stream.
func streamConfig(cfg *config.Config, log *slog.Logger) stream.Config {
	return stream.Config{Config: ClaimConfig(cfg, log), TrimLog: cfg.State.History.Size == 0}
}

// ClaimConfig returns the part of it that suffices for commands that run no lane.
func ClaimConfig(cfg *config.Config, log *slog.Logger) takeover.Config {
	log = log.With("part", "stream")
	mirror, key := 0, "sink.url"
	if !cfg.Sink.URL.IsSet() {
		mirror, key = source.StreamingConnections, "sink.url (as source.url)"
	}
	return takeover.Config{
		Sink: sink.Config{
			URL:          cfg.SinkURL,
			URLKey:       key,
			Schema:       cfg.Sink.Table.Schema,
			Table:        cfg.Sink.Table.Name,
			DaemonSchema: cfg.Sink.Schema,

			MaxConnections:    cfg.Sink.MaxConnections,
			MirrorConnections: mirror,
			LateSubscribers:   cfg.Join.LateSubscribers,
		},
		Kafka: topic.Config{
			ClientOptions: func() ([]kgo.Opt, error) { return kafkaconn.Options(cfg.Kafka, log), nil },
			Principal:     kafkaconn.Principal(cfg.Kafka),
			IAM:           strings.EqualFold(cfg.Kafka.SASL.Mechanism, config.AWSMSKIAM),
			Campaigns:     cfg.Kafka.Campaigns,
			Notifications: cfg.Kafka.Notifications,
			DeadLetters:   cfg.Kafka.DeadLetters,
			Progress:      cfg.Kafka.Progress,
			Group:         cfg.Kafka.Group,
			// Every daemon of a group has its own slot, on every machine.
			InstanceID: "dinnerbell-" + cfg.Source.Slot,
			Start:      cfg.Kafka.Start,
		},
		Logger: log,
	}
}

// withHook adds a hook to the options of Kafka clients.
func withHook(options func() ([]kgo.Opt, error), hook kgo.Hook) func() ([]kgo.Opt, error) {
	return func() ([]kgo.Opt, error) {
		opts, err := options()
		return append(opts, kgo.WithHooks(hook)), err
	}
}

// applicationName returns the name that the database shows for this daemon, before
// the id of its state directory.
func applicationName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return "dinnerbell@" + host
}

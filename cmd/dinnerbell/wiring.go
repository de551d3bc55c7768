package main

import (
	"fmt"
	"hash/fnv"
	"log/slog"
	"os"
	"path/filepath"

	"dinnerbell/cdc"
	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/stream"

	"github.com/twmb/franz-go/pkg/kgo"
)

// sourceConfig is what package cdc needs to know.
func sourceConfig(cfg *config.Config, log *slog.Logger) cdc.Config {
	return cdc.Config{
		URL:              cfg.SourceURL,
		Schema:           cfg.Source.Table.Schema,
		Table:            cfg.Source.Table.Name,
		KeyColumns:       cfg.Source.Columns.ID,
		ClientColumn:     cfg.Source.Columns.Client,
		RestaurantColumn: cfg.Source.Columns.Restaurant,
		Publication:      cfg.Source.Publication,
		Slot:             cfg.Source.Slot,
		ApplicationName:  instanceName(cfg.State.Dir),
		HaltOnLost:       cfg.Source.OnLost == "halt",
		Freshness:        cdc.Freshness(cfg.Join.Freshness),
		MaxStaleness:     cfg.Join.MaxStaleness,
		CheckpointEvery:  cfg.State.Checkpoint.Every,
		Logger:           log.With("part", "source"),
	}
}

// streamConfig is what package stream needs to know.
func streamConfig(cfg *config.Config, log *slog.Logger) stream.Config {
	log = log.With("part", "stream")
	return stream.Config{
		Sink: stream.SinkConfig{
			URL:          cfg.SinkURL,
			Table:        cfg.Sink.Table.Schema + "." + cfg.Sink.Table.Name,
			DaemonSchema: cfg.Sink.Schema,
		},
		Kafka: stream.KafkaConfig{
			Client:        func() ([]kgo.Opt, error) { return kafkaOptions(cfg.Kafka, log), nil },
			Campaigns:     cfg.Kafka.Campaigns,
			Notifications: cfg.Kafka.Notifications,
			DeadLetters:   cfg.Kafka.DeadLetters,
			Progress:      cfg.Kafka.Progress,
			Group:         cfg.Kafka.Group,
			// Every daemon of a group has a slot of its own, wherever it runs.
			InstanceID: "dinnerbell-" + cfg.Source.Slot,
			Start:      cfg.Kafka.Start,
		},
		Logger: log,
	}
}

// instanceName tells this daemon from every other one to the database: a
// replication connection that bears it and outlived a crash may be ended, and
// nobody else's ever. It stays the same over restarts in the same place.
func instanceName(stateDir string) string {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	if abs, err := filepath.Abs(stateDir); err == nil {
		stateDir = abs
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(host + "\x00" + stateDir)) // never fails
	return fmt.Sprintf("dinnerbell@%.40s-%08x", host, h.Sum32())
}

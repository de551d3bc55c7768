// Package config reads the daemon's configuration: one YAML file, overridden
// key by key by the environment.
//
// Each property of a key is defined once, by its struct field: its name in the file
// and in the environment come from the yaml tags (source.columns.id is
// DINNERBELL_SOURCE_COLUMNS_ID), its default from Defaults, its bounds, its
// meaning and its documentation from the table in rules.go. Nothing is accepted and then ignored: an unknown key, an unknown
// variable and a key for something this version cannot do are errors.
package config

import (
	"time"

	"dinnerbell/cdc"
	"dinnerbell/state"
	"dinnerbell/stream/topic"
)

// Config is the whole configuration, with the keys of the YAML file.
type Config struct {
	Source Source `yaml:"source"`
	Sink   Sink   `yaml:"sink"`
	Kafka  Kafka  `yaml:"kafka"`
	State  State  `yaml:"state"`
	Join   Join   `yaml:"join"`
	Limits Limits `yaml:"limits"`
	HTTP   HTTP   `yaml:"http"`
	Log    Log    `yaml:"log"`

	Tracing Tracing `yaml:"tracing"`

	// missing is the path of the default file if it is absent, for the errors about
	// keys without a value.
	missing string
	seen    *revealedSecrets

	sourceRuns, sinkRuns *sharedRuns
}

// Source is the Postgres that subscriptions are read from.
type Source struct {
	URL         Secret  `yaml:"url"`         // no default; needs REPLICATION
	Table       Table   `yaml:"table"`       // schema.table; default public.subscribers_restaurants
	Columns     Columns `yaml:"columns"`     // names in that table
	Publication string  `yaml:"publication"` // default dinnerbell
	Slot        string  `yaml:"slot"`        // default dinnerbell; one for each daemon
	OnLost      string  `yaml:"on_lost"`     // rebuild (default) or halt, where the stream is lost
	// PasswordCommand is a program and its arguments, without a shell between. It prints
	// the password of URL; ask SourceURL.
	PasswordCommand []string `yaml:"password_command"`
}

// Columns are the names of the columns that make a subscription.
type Columns struct {
	ID         []string `yaml:"id"`         // default id; several for a composite key
	Client     string   `yaml:"client"`     // default client_id
	Restaurant string   `yaml:"restaurant"` // default restaurant_id
}

// Sink is the Postgres that holds the feedback rows and the daemon's own tables.
type Sink struct {
	URL    Secret `yaml:"url"`    // default: source.url; ask SinkURL
	Table  Table  `yaml:"table"`  // default public.subscribers_feedback
	Schema string `yaml:"schema"` // the daemon's own tables; default dinnerbell
	// MaxConnections bounds the connections for lanes; 0: one a lane, and four.
	MaxConnections int `yaml:"max_connections"`
	// PasswordCommand is that of the source, for URL; ask SinkURL.
	PasswordCommand []string `yaml:"password_command"`
}

// Kafka is the cluster, its topics and the way in.
type Kafka struct {
	Brokers       []string `yaml:"brokers"`       // host:port; no default
	Campaigns     string   `yaml:"campaigns"`     // default campaigns
	Notifications string   `yaml:"notifications"` // default notifications
	DeadLetters   string   `yaml:"dead_letters"`  // default campaigns.dead
	Progress      string   `yaml:"progress"`      // default dinnerbell.progress
	Group         string   `yaml:"group"`         // default dinnerbell
	TLS           TLS      `yaml:"tls"`
	SASL          SASL     `yaml:"sasl"`
	Start         string   `yaml:"start"` // earliest (default), latest or an RFC 3339 time
}

// State is the local store.
type State struct {
	Dir        string     `yaml:"dir"`     // default ./data, relative to the working directory
	Reserve    Reserve    `yaml:"reserve"` // of the disk; default 512MB or 5%, whichever is less
	Checkpoint Checkpoint `yaml:"checkpoint"`
	History    History    `yaml:"history"`
}

// Checkpoint is when the local state is saved in its own folder. The slot is
// acknowledged no further than the newest checkpoint stands for.
type Checkpoint struct {
	Every time.Duration `yaml:"every"` // default 5m; 0: only when asked for, and the slot does not wait
	Keep  int           `yaml:"keep"`  // default 3, at least 1; applies to timed and to requested checkpoints separately
}

// Join is how fresh the subscriptions must be that a campaign is joined with;
// package cdc defines the words.
type Join struct {
	Freshness       string        `yaml:"freshness"`        // strict (default), bounded, off
	MaxStaleness    time.Duration `yaml:"max_staleness"`    // for bounded; default 5s
	LateSubscribers bool          `yaml:"late_subscribers"` // default false; true: a client who subscribes while a campaign is live gets it
}

// Limits keep a mistake, or a flood, from reaching everybody. They can change without a
// restart, on SIGHUP.
type Limits struct {
	MaxAudience            int `yaml:"max_audience"`             // clients; a larger campaign is parked; default 0: none
	NotificationsPerSecond int `yaml:"notifications_per_second"` // over all lanes of this daemon; default 0: none
}

// Log selects the messages on standard error.
type Log struct {
	Level  string `yaml:"level"`  // debug, info (default), warn, error
	Format string `yaml:"format"` // text (default), json
}

// Tracing sends the traces of campaigns to a collector.
type Tracing struct {
	Endpoint      string `yaml:"endpoint"`       // URL for OTLP over HTTP; default "": no traces
	SamplePercent int    `yaml:"sample_percent"` // of the campaigns; default 100
}

// Defaults returns the configuration of an empty file. The source's address and
// the brokers have no default: guessing them could reach the wrong system.
func Defaults() *Config {
	return &Config{
		Source: Source{
			Table:       Table{"public", "subscribers_restaurants"},
			Columns:     Columns{ID: []string{"id"}, Client: "client_id", Restaurant: "restaurant_id"},
			Publication: "dinnerbell",
			Slot:        "dinnerbell",
			OnLost:      "rebuild",
		},
		Sink: Sink{
			Table:  Table{"public", "subscribers_feedback"},
			Schema: "dinnerbell",
		},
		Kafka: Kafka{
			Campaigns:     "campaigns",
			Notifications: "notifications",
			DeadLetters:   "campaigns.dead",
			Progress:      "dinnerbell.progress",
			Group:         "dinnerbell",
			Start:         topic.StartEarliest,
			SASL:          SASL{runs: newSharedRuns(), tokens: &oidcTokens{sharedRuns: newSharedRuns()}},
		},
		State: State{
			Dir:        "./data",
			Checkpoint: Checkpoint{Every: 5 * time.Minute, Keep: state.DefaultKeepCheckpoints},
			History:    History{Age: Age(7 * 24 * time.Hour), Size: 256_000_000},
		},
		Join: Join{Freshness: string(cdc.Strict), MaxStaleness: cdc.DefaultMaxStaleness},
		HTTP: HTTP{Listen: "127.0.0.1:8420"},
		Log:  Log{Level: "info", Format: "text"},

		sourceRuns: newSharedRuns(), sinkRuns: newSharedRuns(),

		Tracing: Tracing{SamplePercent: 100},
	}
}

// SourceURL returns the address of the source. It looks every reference in the address up
// anew, and runs source.password_command, so call it for each connection.
func (c *Config) SourceURL() (string, error) {
	source, _ := c.passwordCommands()
	return source.reveal()
}

// SinkURL returns the address of the sink, the source's when sink.url is not set.
// Like SourceURL it looks references up anew and runs the command.
func (c *Config) SinkURL() (string, error) {
	if !c.Sink.URL.IsSet() {
		return c.SourceURL()
	}
	_, sink := c.passwordCommands()
	return sink.reveal()
}

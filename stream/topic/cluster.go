package topic

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/stream/topic/fetch"
)

// DefaultMaxMessage is Kafka's default of max.message.bytes. It is used for a topic
// whose setting may not be read.
const DefaultMaxMessage = 1048588

// allTopics lists the four topics, each name once.
func (c Config) allTopics() []string {
	return slices.Compact(slices.Sorted(slices.Values([]string{c.Campaigns, c.Notifications, c.DeadLetters, c.Progress})))
}

// Cluster is the metadata of a Kafka cluster, and the settings of the four topics.
type Cluster struct {
	ID        string
	Bootstrap string // a broker's address as the cluster advertises it
	brokers   kadm.BrokerDetails
	Topics    kadm.TopicDetails
	Settings  map[string]Settings
}

// Settings are a topic's settings by name; nil where the settings may not be read or
// the topic is missing.
type Settings map[string]kadm.Config

// readNumber returns a setting as a number, and fallback for a setting that is not
// known.
func (t Settings) readNumber(name string, fallback int64) int64 {
	c, ok := t[name]
	if !ok {
		return fallback
	}
	if n, err := strconv.ParseInt(c.MaybeValue(), 10, 64); err == nil {
		return n
	}
	return fallback
}

// maxMessage returns the largest batch that the topic accepts and dinnerbell sends.
func (t Settings) maxMessage() int {
	return int(min(t.readNumber("max.message.bytes", DefaultMaxMessage), fetch.MaxBatch))
}

// ReadCluster reads the metadata, then the settings. A missing topic carries its
// error in Topics; without the right to read a topic's settings, Settings lacks it.
func ReadCluster(ctx context.Context, client *kgo.Client, cfg Config) (*Cluster, error) {
	c, err := readMetadata(ctx, client, cfg)
	if err != nil {
		return nil, err
	}
	if c.Settings, err = ReadSettings(ctx, kadm.NewClient(client), cfg.allTopics()...); err != nil {
		return nil, err
	}
	return c, nil
}

// readMetadata reads the metadata alone.
func readMetadata(ctx context.Context, client *kgo.Client, cfg Config) (*Cluster, error) {
	meta, err := readMetadataOf(kadm.WithAuthorizedOps(ctx), client, cfg.allTopics())
	if err != nil {
		return nil, err
	}
	c := &Cluster{ID: meta.Cluster, Topics: meta.Topics, brokers: meta.Brokers}
	if len(meta.Brokers) > 0 {
		c.Bootstrap = net.JoinHostPort(meta.Brokers[0].Host, strconv.Itoa(int(meta.Brokers[0].Port)))
	}
	return c, nil
}

// metadataError names the addresses, which an error about an answer does not.
func metadataError(client *kgo.Client, err error) error {
	brokers, _ := client.OptValue(kgo.SeedBrokers).([]string) // the option always has them
	return fmt.Errorf("read kafka metadata from kafka.brokers (%s): %w", strings.Join(brokers, ", "), explainConnect(err))
}

// NameBrokers adds to the error of a request the addresses that the client was given, and
// the key they are from, unless the error has them.
func NameBrokers(client *kgo.Client, err error) error {
	if err == nil || strings.Contains(err.Error(), "kafka.brokers (") {
		return err
	}
	brokers, _ := client.OptValue(kgo.SeedBrokers).([]string) // the option always has them
	return fmt.Errorf("kafka.brokers (%s): %w", strings.Join(brokers, ", "), explainConnect(err))
}

// readMetadataOneByOne asks for each topic alone, so that the error of a topic that
// may not be described stays with that topic.
func readMetadataOneByOne(ctx context.Context, adm *kadm.Client, topics []string) (kadm.Metadata, error) {
	all, err := adm.BrokerMetadata(ctx) // the brokers, where no topic may be described
	if err != nil {
		return all, err
	}
	all.Topics = kadm.TopicDetails{}
	for _, topic := range topics {
		meta, err := adm.Metadata(ctx, topic)
		switch {
		case errors.Is(err, kerr.TopicAuthorizationFailed):
			all.Topics[topic] = kadm.TopicDetail{Topic: topic, Err: kerr.TopicAuthorizationFailed}
		case err != nil:
			return all, err
		default:
			all.Topics[topic] = meta.Topics[topic]
		}
	}
	return all, nil
}

// ReadSettings reads the settings of the topics that exist. It asks for one topic at a
// time: in a request for several, a missing right on one topic hides all of them.
func ReadSettings(ctx context.Context, adm *kadm.Client, topics ...string) (map[string]Settings, error) {
	out := make(map[string]Settings, len(topics))
	for _, topic := range topics {
		described, err := adm.DescribeTopicConfigs(ctx, topic)
		for _, d := range described {
			err = errors.Join(err, d.Err)
		}
		switch {
		case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed), errors.Is(err, kerr.UnknownTopicOrPartition):
			continue
		case err != nil:
			return nil, fmt.Errorf("read settings of topic %s: %w", topic, err)
		}
		settings := Settings{}
		for _, d := range described {
			for _, c := range d.Configs {
				settings[c.Key] = c
			}
		}
		out[topic] = settings
	}
	return out, nil
}

// Identity names the logs that a lane's positions count in: the ids of the cluster
// and of three topics, as the lane row in Postgres has them.
type Identity struct{ Cluster, Campaigns, Notifications, Progress string }

// IDs are the identity of the present cluster, and the ids of the topics that a lane
// reads as fetch requests need them.
type IDs struct {
	Identity

	ProgressID, CampaignsID kadm.TopicID
}

// IDs returns the ids of the cluster and of the topics that a lane counts in.
func (c *Cluster) IDs(cfg Config) IDs {
	campaigns, progress := c.Topics[cfg.Campaigns].ID, c.Topics[cfg.Progress].ID
	return IDs{
		Identity:    Identity{Cluster: c.ID, Campaigns: campaigns.String(), Notifications: c.Topics[cfg.Notifications].ID.String(), Progress: progress.String()},
		CampaignsID: campaigns, ProgressID: progress,
	}
}

// readMetadataOf reads the metadata of topics. A topic that is missing or may not be
// described carries its error.
func readMetadataOf(ctx context.Context, client *kgo.Client, topics []string) (kadm.Metadata, error) {
	adm := kadm.NewClient(client)
	meta, err := adm.Metadata(ctx, topics...)
	if errors.Is(err, kerr.TopicAuthorizationFailed) { // of one of them: the error does not name it
		meta, err = readMetadataOneByOne(ctx, adm, topics)
	}
	if err != nil {
		return meta, metadataError(client, err)
	}
	return meta, nil
}

// DescribeTopics returns the metadata of topics. A topic that is missing or may not be
// described carries its error.
func DescribeTopics(ctx context.Context, client *kgo.Client, topics ...string) (kadm.TopicDetails, error) {
	meta, err := readMetadataOf(ctx, client, topics)
	return meta.Topics, err
}

// ReadIDs reads the ids and the topics' metadata, without the settings. The operation is
// what the caller does with the notifications topic.
func ReadIDs(ctx context.Context, client *kgo.Client, cfg Config, operation string) (IDs, kadm.TopicDetails, error) {
	meta, err := readMetadataOf(ctx, client, []string{cfg.Campaigns, cfg.Notifications, cfg.Progress})
	if err != nil {
		return IDs{}, nil, err
	}
	operations := map[string]string{cfg.Notifications: operation}
	for _, topic := range slices.Sorted(maps.Keys(meta.Topics)) {
		if err := meta.Topics[topic].Err; err != nil {
			return IDs{}, nil, cfg.ExplainUndescribed(err, client, cmp.Or(operations[topic], "Read"), topic)
		}
	}
	return (&Cluster{ID: meta.Cluster, Topics: meta.Topics}).IDs(cfg), meta.Topics, nil
}

// Limits are the sizes of batches that the output topics accept.
type Limits struct {
	Notification int      // bytes per batch of the notifications topic
	DeadLetter   int      // bytes per batch of the dead-letter topic
	guessed      []string // those of the two topics whose limit may not be read
	Bootstrap    string   // a broker's address, for the commands in errors
}

// NewLimits returns the limits of a cluster's output topics.
func NewLimits(c *Cluster, cfg Config) Limits {
	return Limits{
		Notification: c.Settings[cfg.Notifications].maxMessage(), DeadLetter: c.Settings[cfg.DeadLetters].maxMessage(), Bootstrap: c.Bootstrap,
		guessed: slices.DeleteFunc([]string{cfg.Notifications, cfg.DeadLetters}, func(topic string) bool { return c.Settings[topic] != nil }),
	}
}

// MaxCampaign returns the size up to which a campaign message is read whole. JSON
// escapes make a text at most six times as long as in the notification.
func (l *Limits) MaxCampaign() int { return min(6*l.Notification, fetch.MaxBatch) }

// RaiseHint returns the command that mends a topic that does not accept the records of
// a decided step.
func (l *Limits) RaiseHint(c Config) string {
	raise := "restore the topics' former max.message.bytes, or set a higher one"
	if len(l.guessed) == 0 {
		return raise
	}
	return fmt.Sprintf("let max.message.bytes of topic %s be read, which is taken for %d: %s; where it was lowered, %s",
		strings.Join(l.guessed, " and "), DefaultMaxMessage, c.grantFix(l.Bootstrap, "DescribeConfigs", onTopics(l.guessed...)), raise)
}

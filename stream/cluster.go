package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/stream/topic"
)

// defaultMaxMessage is Kafka's default of max.message.bytes, used where the
// topic's own cannot be read.
const defaultMaxMessage = 1048588

// topics lists the four, each once.
func (c KafkaConfig) topics() []string {
	return slices.Compact(slices.Sorted(slices.Values([]string{c.Campaigns, c.Notifications, c.DeadLetters, c.Progress})))
}

// cluster is what the metadata and the topics' settings say of a Kafka cluster.
type cluster struct {
	id        string
	bootstrap string // a broker's address as the cluster advertises it
	brokers   kadm.BrokerDetails
	topics    kadm.TopicDetails
	settings  map[string]topicSettings
}

// topicSettings are a topic's settings by name; nil where they may not be read,
// or the topic is missing.
type topicSettings map[string]kadm.Config

// number reads a setting; fallback where it is not known.
func (t topicSettings) number(name string, fallback int64) int64 {
	c, ok := t[name]
	if !ok {
		return fallback
	}
	if n, err := strconv.ParseInt(c.MaybeValue(), 10, 64); err == nil {
		return n
	}
	return fallback
}

// maxMessage is the largest batch that the topic accepts and we send.
func (t topicSettings) maxMessage() int {
	return int(min(t.number("max.message.bytes", defaultMaxMessage), topic.MaxBatch))
}

// readCluster reads both in one go. A topic that is missing carries its error; a
// right that is missing leaves settings out.
func readCluster(ctx context.Context, client *kgo.Client, cfg KafkaConfig) (*cluster, error) {
	adm := kadm.NewClient(client)
	ctx = kadm.WithAuthorizedOps(ctx)
	meta, err := adm.Metadata(ctx, cfg.topics()...)
	if errors.Is(err, kerr.TopicAuthorizationFailed) { // of one of them: which is not said
		meta, err = readMetadataOneByOne(ctx, adm, cfg.topics())
	}
	if err != nil {
		return nil, fmt.Errorf("read kafka metadata: %w", explainConnect(err))
	}
	c := &cluster{id: meta.Cluster, topics: meta.Topics, brokers: meta.Brokers}
	if len(meta.Brokers) > 0 {
		c.bootstrap = net.JoinHostPort(meta.Brokers[0].Host, strconv.Itoa(int(meta.Brokers[0].Port)))
	}
	c.settings, err = readSettings(ctx, adm, cfg.topics()...)
	return c, err
}

// readMetadataOneByOne leaves the error with the topic that may not be described.
func readMetadataOneByOne(ctx context.Context, adm *kadm.Client, topics []string) (kadm.Metadata, error) {
	all := kadm.Metadata{Topics: kadm.TopicDetails{}}
	for _, topic := range topics {
		meta, err := adm.Metadata(ctx, topic)
		switch {
		case errors.Is(err, kerr.TopicAuthorizationFailed):
			all.Topics[topic] = kadm.TopicDetail{Topic: topic, Err: kerr.TopicAuthorizationFailed}
		case err != nil:
			return all, err
		default:
			all.Topics[topic], all.Cluster, all.Brokers = meta.Topics[topic], meta.Cluster, meta.Brokers
		}
	}
	return all, nil
}

// readSettings reads the settings of topics that exist, one by one: of several, a
// right that is missing on one hides all.
func readSettings(ctx context.Context, adm *kadm.Client, topics ...string) (map[string]topicSettings, error) {
	out := make(map[string]topicSettings, len(topics))
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
		settings := topicSettings{}
		for _, d := range described {
			for _, c := range d.Configs {
				settings[c.Key] = c
			}
		}
		out[topic] = settings
	}
	return out, nil
}

// topicIDs are what the lane's positions count in, as text for Postgres, and
// the ids of the topics that are read as fetch requests need them.
type topicIDs struct {
	cluster, campaigns, notifications string
	progressText                      string
	progress, input                   kadm.TopicID
}

// expectedIDs are those that the lane row was made with.
type expectedIDs struct{ cluster, campaigns, notifications, progress string }

// ids gives the identity of the cluster and of the three topics that a lane
// counts in.
func (c *cluster) ids(cfg KafkaConfig) topicIDs {
	return topicIDs{
		cluster:       c.id,
		campaigns:     c.topics[cfg.Campaigns].ID.String(),
		notifications: c.topics[cfg.Notifications].ID.String(),
		progressText:  c.topics[cfg.Progress].ID.String(),
		progress:      c.topics[cfg.Progress].ID,
		input:         c.topics[cfg.Campaigns].ID,
	}
}

// readTopicIDs reads the metadata alone, for those who own no lane.
func readTopicIDs(ctx context.Context, client *kgo.Client, cfg KafkaConfig) (topicIDs, kadm.TopicDetails, error) {
	meta, err := kadm.NewClient(client).Metadata(ctx, cfg.Campaigns, cfg.Notifications, cfg.Progress)
	if err != nil {
		return topicIDs{}, nil, fmt.Errorf("read kafka metadata: %w", explainConnect(err))
	}
	for _, topic := range slices.Sorted(maps.Keys(meta.Topics)) {
		if err := meta.Topics[topic].Err; err != nil {
			return topicIDs{}, nil, fmt.Errorf("topic %s: %w; `dinnerbell setup` creates topics that are missing", topic, err)
		}
	}
	return (&cluster{id: meta.Cluster, topics: meta.Topics}).ids(cfg), meta.Topics, nil
}

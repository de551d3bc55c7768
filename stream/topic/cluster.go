package topic

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
)

// DefaultMaxMessage is Kafka's default of max.message.bytes, used where the
// topic's own cannot be read.
const DefaultMaxMessage = 1048588

// allTopics lists the four, each once.
func (c Config) allTopics() []string {
	return slices.Compact(slices.Sorted(slices.Values([]string{c.Campaigns, c.Notifications, c.DeadLetters, c.Progress})))
}

// Cluster is what the metadata and the topics' settings say of a Kafka cluster.
type Cluster struct {
	ID        string
	Bootstrap string // a broker's address as the cluster advertises it
	brokers   kadm.BrokerDetails
	Topics    kadm.TopicDetails
	Settings  map[string]Settings
}

// Settings are a topic's settings by name; nil where they may not be read,
// or the topic is missing.
type Settings map[string]kadm.Config

// readNumber reads a setting; fallback where it is not known.
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

// maxMessage is the largest batch that the topic accepts and we send.
func (t Settings) maxMessage() int {
	return int(min(t.readNumber("max.message.bytes", DefaultMaxMessage), MaxBatch))
}

// ReadCluster reads both in one go. A topic that is missing carries its error; a
// right that is missing leaves settings out.
func ReadCluster(ctx context.Context, client *kgo.Client, cfg Config) (*Cluster, error) {
	adm := kadm.NewClient(client)
	ctx = kadm.WithAuthorizedOps(ctx)
	meta, err := adm.Metadata(ctx, cfg.allTopics()...)
	if errors.Is(err, kerr.TopicAuthorizationFailed) { // of one of them: which is not said
		meta, err = readMetadataOneByOne(ctx, adm, cfg.allTopics())
	}
	if err != nil {
		return nil, fmt.Errorf("read kafka metadata: %w", explainConnect(err))
	}
	c := &Cluster{ID: meta.Cluster, Topics: meta.Topics, brokers: meta.Brokers}
	if len(meta.Brokers) > 0 {
		c.Bootstrap = net.JoinHostPort(meta.Brokers[0].Host, strconv.Itoa(int(meta.Brokers[0].Port)))
	}
	c.Settings, err = ReadSettings(ctx, adm, cfg.allTopics()...)
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

// ReadSettings reads the settings of topics that exist, one by one: of several, a
// right that is missing on one hides all.
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

// IDs are what the lane's positions count in, as text for Postgres, and
// the ids of the topics that are read as fetch requests need them.
type IDs struct {
	Cluster, Campaigns, Notifications string
	Progress                          string
	ProgressID, CampaignsID           kadm.TopicID
}

// Identity are those that the lane row was made with.
type Identity struct{ Cluster, Campaigns, Notifications, Progress string }

// IDs gives the identity of the cluster and of the three topics that a lane
// counts in.
func (c *Cluster) IDs(cfg Config) IDs {
	return IDs{
		Cluster:       c.ID,
		Campaigns:     c.Topics[cfg.Campaigns].ID.String(),
		Notifications: c.Topics[cfg.Notifications].ID.String(),
		Progress:      c.Topics[cfg.Progress].ID.String(),
		ProgressID:    c.Topics[cfg.Progress].ID,
		CampaignsID:   c.Topics[cfg.Campaigns].ID,
	}
}

// ReadIDs reads the metadata alone, for those who own no lane.
func ReadIDs(ctx context.Context, client *kgo.Client, cfg Config) (IDs, kadm.TopicDetails, error) {
	meta, err := kadm.NewClient(client).Metadata(ctx, cfg.Campaigns, cfg.Notifications, cfg.Progress)
	if err != nil {
		return IDs{}, nil, fmt.Errorf("read kafka metadata: %w", explainConnect(err))
	}
	for _, topic := range slices.Sorted(maps.Keys(meta.Topics)) {
		if err := meta.Topics[topic].Err; err != nil {
			return IDs{}, nil, fmt.Errorf("topic %s: %w; `dinnerbell setup` creates topics that are missing", topic, err)
		}
	}
	return (&Cluster{ID: meta.Cluster, Topics: meta.Topics}).IDs(cfg), meta.Topics, nil
}

package topic

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Setup creates the missing topics and gives the progress topic as many partitions as
// the campaigns topic has. It returns one line for each thing done. Safe to repeat.
func Setup(ctx context.Context, cfg Config) ([]string, error) {
	// By default the client caches metadata for five seconds, and does not see a new
	// topic for so long.
	client, err := cfg.NewClient(kgo.MetadataMinAge(createdPollInterval))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	s := topicSetup{client: client, adm: kadm.NewClient(client), cfg: cfg}
	for _, step := range []func(context.Context) error{s.setUpCampaigns, s.setUpOutputs, s.setUpProgress} {
		if err := step(ctx); err != nil {
			return s.report, NameBrokers(client, err)
		}
	}
	return s.report, nil
}

// createdPollInterval is the time between two requests for a topic that was just
// created.
const createdPollInterval = 100 * time.Millisecond

type topicSetup struct {
	client *kgo.Client
	adm    *kadm.Client
	cfg    Config
	lanes  int32
	report []string
}

// explainDenied adds what grants the right that a refused request needs.
func (s *topicSetup) explainDenied(err error, operation, topic string) error {
	return s.cfg.ExplainDenied(err, s.client, operation, topic)
}

func (s *topicSetup) setUpCampaigns(ctx context.Context) error {
	if err := s.ensureTopic(ctx, s.cfg.Campaigns, -1, deletePolicy()); err != nil {
		return err
	}
	var err error
	s.lanes, err = s.countPartitions(ctx, s.cfg.Campaigns)
	return err
}

// setUpOutputs creates the output topics. A dead letter carries the refused value and
// headers, so its topic accepts larger messages than the campaigns topic.
func (s *topicSetup) setUpOutputs(ctx context.Context) error {
	settings, err := ReadSettings(ctx, s.adm, s.cfg.Campaigns)
	if err != nil {
		return err
	}
	if err := s.ensureTopic(ctx, s.cfg.Notifications, s.lanes, nil); err != nil {
		return err
	}
	larger := strconv.FormatInt(settings[s.cfg.Campaigns].readNumber("max.message.bytes", DefaultMaxMessage)+64<<10, 10)
	configs := deletePolicy()
	configs["max.message.bytes"] = &larger
	return s.ensureTopic(ctx, s.cfg.DeadLetters, s.lanes, configs)
}

// deletePolicy returns the settings of a topic that must not be compacted, whatever the
// broker's default.
func deletePolicy() map[string]*string {
	policy := "delete"
	return map[string]*string{"cleanup.policy": &policy}
}

// setUpProgress creates the progress topic: compacted, because only the last seq of
// each lane matters, and with small segments, so that a takeover reads few records.
func (s *topicSetup) setUpProgress(ctx context.Context) error {
	compact, segment := "compact", strconv.Itoa(16<<20)
	if err := s.ensureTopic(ctx, s.cfg.Progress, s.lanes, map[string]*string{"cleanup.policy": &compact, "segment.bytes": &segment}); err != nil {
		return err
	}
	if err := s.compactUntouched(ctx); err != nil {
		return err
	}
	have, err := s.countPartitions(ctx, s.cfg.Progress)
	if err != nil || have >= s.lanes {
		return err
	}
	resp, err := s.adm.UpdatePartitions(ctx, int(s.lanes), s.cfg.Progress)
	if err == nil {
		err = resp.Error()
	}
	if errors.Is(err, kerr.InvalidPartitions) && s.awaitPartitions(ctx, s.cfg.Progress, s.lanes) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("give topic %s %d partitions: %w", s.cfg.Progress, s.lanes, s.explainDenied(err, "Alter", s.cfg.Progress))
	}
	s.report = append(s.report, fmt.Sprintf("topic %s: grown from %d to %d partitions", s.cfg.Progress, have, s.lanes))
	return nil
}

// compactUntouched sets the policy of a progress topic that somebody made with the
// broker's defaults and nobody has written to. The policy of any other topic is for its
// owner to change: see the precondition kafka.progress.cleanup_policy.
func (s *topicSetup) compactUntouched(ctx context.Context) error {
	settings, err := ReadSettings(ctx, s.adm, s.cfg.Progress)
	if err != nil {
		return err
	}
	now, ok := settings[s.cfg.Progress]
	if !ok || now.HasPolicy("compact") && !now.HasPolicy("delete") {
		return nil
	}
	if untouched, err := isUntouched(ctx, s.adm, s.cfg.Progress, now); err != nil || !untouched {
		return err
	}
	compact := "compact"
	resp, err := s.adm.AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "cleanup.policy", Value: &compact}}, s.cfg.Progress)
	if err == nil && len(resp) > 0 {
		err = resp[0].Err
	}
	if err != nil {
		return fmt.Errorf("set cleanup.policy=compact of topic %s: %w", s.cfg.Progress, s.explainDenied(err, "AlterConfigs", s.cfg.Progress))
	}
	s.report = append(s.report, fmt.Sprintf("topic %s: cleanup.policy set to compact; it was empty and had the broker's default", s.cfg.Progress))
	return nil
}

// ensureTopic creates a topic with the broker's default replication factor (and
// partition count where partitions is -1), and waits until the topic can be used.
func (s *topicSetup) ensureTopic(ctx context.Context, topic string, partitions int32, configs map[string]*string) error {
	// A client without the right to create topics may have them already.
	there, err := s.adm.ListTopics(ctx, topic)
	if err != nil {
		return fmt.Errorf("look for topic %s: %w", topic, s.explainDenied(err, "Describe", topic))
	}
	if there[topic].Err == nil && len(there[topic].Partitions) > 0 {
		s.report = append(s.report, fmt.Sprintf("topic %s: there already", topic))
		return nil
	}
	_, err = s.adm.CreateTopic(ctx, partitions, -1, configs, topic)
	switch {
	case errors.Is(err, kerr.TopicAlreadyExists):
		s.report = append(s.report, fmt.Sprintf("topic %s: there already", topic))
	case err != nil:
		return fmt.Errorf("create topic %s: %w", topic, s.explainDenied(err, "Create", topic))
	default:
		s.report = append(s.report, fmt.Sprintf("topic %s: created", topic))
		_, err = s.countPartitions(ctx, topic)
		return err
	}
	return nil
}

// awaitPartitions waits for a topic to have that many partitions, and reports whether it
// has: another setup may have grown it a moment ago, which some broker may not know yet.
func (s *topicSetup) awaitPartitions(ctx context.Context, topic string, want int32) bool {
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		have, err := s.countPartitions(ctx, topic)
		if err == nil && have < want {
			err = fmt.Errorf("topic %s has %d partitions", topic, have)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(backoff.NewConstantBackOff(createdPollInterval)), backoff.WithMaxElapsedTime(10*time.Second))
	return err == nil
}

// countPartitions counts a topic's partitions. It waits for a topic that was created a
// moment ago, which some broker may not know yet.
func (s *topicSetup) countPartitions(ctx context.Context, topic string) (int32, error) {
	n, err := backoff.Retry(ctx, func() (int32, error) {
		details, err := s.adm.ListTopics(ctx, topic)
		if err == nil {
			err = details.Error()
		}
		if err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition) {
			err = backoff.Permanent(err)
		}
		return int32(len(details[topic].Partitions)), err
	}, backoff.WithBackOff(backoff.NewConstantBackOff(createdPollInterval)), backoff.WithMaxElapsedTime(10*time.Second))
	if err != nil {
		return 0, fmt.Errorf("describe topic %s: %w", topic, s.explainDenied(err, "Describe", topic))
	}
	return n, nil
}

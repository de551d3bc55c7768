package topic

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"dinnerbell/internal/precondition"
)

// Preconditions are the checks of the cluster and its topics, and behind them the
// facts that `doctor` alone reports.
var Preconditions = slices.Concat([]precondition.Check[*Facts]{
	{Name: "kafka.rights", At: precondition.Always, Read: checkRights},
	{Name: "kafka.group", At: precondition.Always, Read: checkGroupRight},
	{Name: "kafka.internal_topics", At: precondition.AtSetup | precondition.AtStart, Read: checkInternalTopics},
	{Name: "kafka.timeouts", At: precondition.AtSetup | precondition.AtStart, Read: checkTimeouts},
	{Name: "kafka.topics", At: precondition.AtStart | precondition.AtSession, Read: checkTopicsExist, Show: (*Facts).showTopics},
	{Name: "kafka.progress.partitions", At: precondition.AtStart | precondition.AtSession, Read: checkProgressPartitions},
	{Name: "kafka.settings", At: precondition.AtStart, Read: checkSettingsVisible},
	{Name: "kafka.progress.cleanup_policy", At: precondition.Always, Read: checkProgressPolicy},
	{Name: "kafka.campaigns.cleanup_policy", At: precondition.Always, Read: checkCampaignsPolicy},
	{Name: "kafka.dead_letters.cleanup_policy", At: precondition.Always, Read: checkDeadLettersPolicy},
	{Name: "kafka.max_message_bytes", At: precondition.Always, Read: checkMessageLimits},
	{Name: "kafka.min_insync_replicas", At: precondition.Always, Read: checkInsyncReplicas},
	{Name: "kafka.replicas", At: precondition.AtStart, Read: checkReplicas},
	{Name: "kafka.retention", At: precondition.AtStart, Read: checkRetention},
}, doctorChecks)

// Facts are the inputs of the checks.
type Facts struct {
	Config  Config
	Moment  precondition.Moment
	Admin   *kadm.Client // for a check that reads more than Cluster
	Cluster *Cluster     // read before the checks
	// ForDoctor is how `doctor` reaches the brokers; nil at every other moment.
	ForDoctor *Access
	client    *kgo.Client // of Admin, for requests that it does not have; for ForDoctor alone
	// unread is why the settings of all topics could not be read; for ForDoctor alone.
	unread error
}

// ReadFacts reads the facts for the checks of a moment. The checks use the client
// too: the caller closes it after them.
func ReadFacts(ctx context.Context, client *kgo.Client, cfg Config, moment precondition.Moment) (*Facts, error) {
	cluster, err := ReadCluster(ctx, client, cfg)
	if err != nil {
		return nil, err
	}
	return &Facts{Config: cfg, Moment: moment, Admin: kadm.NewClient(client), Cluster: cluster}, nil
}

// alterHint returns the command that changes a setting of a topic.
func (f *Facts) alterHint(topic, setting string) string {
	return fmt.Sprintf("kafka-configs.sh --bootstrap-server %s --alter --entity-type topics --entity-name %s --add-config %s", f.Cluster.Bootstrap, topic, setting)
}

// topicSettings returns the settings of a topic; ok is false where the topic is missing
// or its settings may not be read. The checks kafka.topics and kafka.settings report
// those two.
func (f *Facts) topicSettings(topic string) (s Settings, ok bool) {
	s, ok = f.Cluster.Settings[topic]
	return s, ok
}

// checkTopicsExist requires the four topics.
func checkTopicsExist(_ context.Context, f *Facts) ([]precondition.Finding, error) {
	var found []precondition.Finding
	for _, topic := range f.Config.allTopics() {
		if err := f.Cluster.Topics[topic].Err; err != nil && !errors.Is(err, kerr.TopicAuthorizationFailed) {
			what := err.Error()
			if errors.Is(err, kerr.UnknownTopicOrPartition) {
				what = "it does not exist"
			}
			found = append(found, precondition.Finding{Level: precondition.Fail, Object: "topic " + topic,
				Found: what, Effect: "no lane can work", Fix: "dinnerbell setup"})
		}
	}
	return found, nil
}

// checkProgressPartitions compares the partition counts: each lane has its
// progress in the partition of its own number.
func checkProgressPartitions(_ context.Context, f *Facts) ([]precondition.Finding, error) {
	k := f.Config
	lanes, have := len(f.Cluster.Topics[k.Campaigns].Partitions), len(f.Cluster.Topics[k.Progress].Partitions)
	if have >= lanes {
		return nil, nil
	}
	return []precondition.Finding{{Level: precondition.Fail, Object: "topic " + k.Progress,
		Found:  fmt.Sprintf("it has %d partitions, fewer than the %d of topic %s", have, lanes, k.Campaigns),
		Effect: "the lanes without a partition have no progress",
		Fix:    "dinnerbell setup"}}, nil
}

// checkSettingsVisible reports the topics whose settings may not be read.
func checkSettingsVisible(_ context.Context, f *Facts) ([]precondition.Finding, error) {
	if f.unread != nil {
		return nil, f.unread
	}
	var found []precondition.Finding
	for _, topic := range f.Config.allTopics() {
		if _, ok := f.topicSettings(topic); !ok && f.Cluster.Topics[topic].Err == nil {
			found = append(found, precondition.Finding{Level: precondition.Unknown, Object: "topic " + topic,
				Found:  "its settings may not be read (DescribeConfigs)",
				Effect: fmt.Sprintf("they are taken for Kafka's defaults: max.message.bytes=%d, and the right cleanup.policy", DefaultMaxMessage),
				Fix:    f.grantFix("DescribeConfigs", onTopics(topic))})
		}
	}
	return found, nil
}

// keepsForever reports whether retention deletes nothing from a topic.
func (t Settings) keepsForever() bool {
	return t.readNumber("retention.ms", 0) < 0 && t.readNumber("retention.bytes", -1) < 0
}

// HasPolicy reports whether the topic's cleanup.policy contains a policy.
func (t Settings) HasPolicy(policy string) bool {
	value := t["cleanup.policy"]
	return slices.ContainsFunc(strings.Split(value.MaybeValue(), ","), func(p string) bool { return strings.TrimSpace(p) == policy })
}

// checkProgressPolicy requires that the last record of each lane stays for ever. If
// retention deletes it, the next takeover does not know which steps were shipped.
func checkProgressPolicy(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	topic := f.Config.Progress
	s, ok := f.topicSettings(topic)
	if !ok || s.HasPolicy("compact") && !s.HasPolicy("delete") {
		return nil, nil
	}
	finding := precondition.Finding{Level: precondition.Fail, Object: "topic " + topic,
		Found:  "cleanup.policy is " + f.cleanupPolicy(topic) + ", not compact",
		Effect: "retention deletes the lanes' progress, and the next takeover does not know which steps were shipped",
		Fix:    f.alterHint(topic, "cleanup.policy=compact")}
	if s.keepsForever() {
		finding.Level, finding.Effect = precondition.Warn, "the topic grows without end and takeovers take longer; shorter retention would delete the lanes' progress"
	}
	if f.Moment == precondition.AtSetup || f.ForDoctor != nil {
		// Setup mends the policy of a topic that nobody has used or configured.
		untouched, err := isUntouched(ctx, f.Admin, topic, s)
		switch {
		case err != nil:
			return nil, err
		case untouched && f.ForDoctor == nil:
			return nil, nil
		case untouched:
			finding.Fix = "dinnerbell setup"
		}
	}
	return []precondition.Finding{finding}, nil
}

func (f *Facts) cleanupPolicy(topic string) string {
	c := f.Cluster.Settings[topic]["cleanup.policy"]
	return c.MaybeValue()
}

// isUntouched reports whether a topic never had a record and has no setting of its own:
// a broker or a script made it with the defaults.
func isUntouched(ctx context.Context, adm *kadm.Client, topic string, s Settings) (bool, error) {
	for _, c := range s {
		if c.Source == kmsg.ConfigSourceDynamicTopicConfig {
			return false, nil
		}
	}
	ends, err := adm.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return false, fmt.Errorf("list offsets of topic %s: %w", topic, err)
	}
	untouched := true
	ends.Each(func(o kadm.ListedOffset) { untouched = untouched && o.Offset == 0 })
	return untouched, nil
}

// minCompactionLag is the min.compaction.lag.ms from which on a compacted campaigns
// topic leaves enough time to read a message.
const minCompactionLag = 24 * time.Hour

// checkCampaignsPolicy refuses a compacted campaigns topic: the record key has no
// meaning, so two campaigns may share a key, and compaction deletes the older one.
func checkCampaignsPolicy(_ context.Context, f *Facts) ([]precondition.Finding, error) {
	topic := f.Config.Campaigns
	s, ok := f.topicSettings(topic)
	if !ok || !s.HasPolicy("compact") {
		return nil, nil
	}
	finding := precondition.Finding{Level: precondition.Fail, Object: "topic " + topic,
		Found:  "cleanup.policy is " + f.cleanupPolicy(topic),
		Effect: "compaction deletes a campaign that was not read yet where another one has the same record key, and no message without a key is accepted",
		Fix:    f.alterHint(topic, "cleanup.policy=delete")}
	if lag := time.Duration(s.readNumber("min.compaction.lag.ms", 0)) * time.Millisecond; lag >= minCompactionLag {
		finding.Level, finding.Effect = precondition.Warn, fmt.Sprintf("a campaign that is not read within %s (min.compaction.lag.ms) is deleted where another one has the same record key", lag)
	}
	return []precondition.Finding{finding}, nil
}

// checkDeadLettersPolicy refuses a compacted dead-letter topic: it accepts no record
// without a key, and a dead letter has the key of its message, if any.
func checkDeadLettersPolicy(_ context.Context, f *Facts) ([]precondition.Finding, error) {
	topic := f.Config.DeadLetters
	s, ok := f.topicSettings(topic)
	if !ok || !s.HasPolicy("compact") {
		return nil, nil
	}
	return []precondition.Finding{{Level: precondition.Fail, Object: "topic " + topic,
		Found:  "cleanup.policy is " + f.cleanupPolicy(topic),
		Effect: "it accepts no refused message without a key, which stops the lane, and drops all but the last of one key",
		Fix:    f.alterHint(topic, "cleanup.policy=delete")}}, nil
}

// Batch sizes that a topic must accept.
const (
	minBatchBytes        = 2 << 10  // a progress record, or the headers of a dead letter
	minNotificationBytes = 16 << 10 // an ordinary one takes less than 1 kB
)

// checkMessageLimits compares max.message.bytes of the topics with the records that
// they must accept.
func checkMessageLimits(_ context.Context, f *Facts) ([]precondition.Finding, error) {
	const setting = "max.message.bytes"
	k := f.Config
	var found []precondition.Finding
	for _, c := range []struct {
		topic  string
		least  int64
		level  precondition.Level
		effect string
	}{
		{k.Progress, minBatchBytes, precondition.Fail, "the lanes cannot write their progress"},
		{k.DeadLetters, minBatchBytes, precondition.Fail, "it accepts no refused message, which stops the lane"},
		{k.Notifications, minBatchBytes, precondition.Fail, "it accepts no notification"},
		{k.Notifications, minNotificationBytes, precondition.Warn, "campaigns of an ordinary size are refused"},
		{k.DeadLetters, f.Cluster.Settings[k.Campaigns].readNumber(setting, 0), precondition.Warn,
			"topic " + k.Campaigns + " accepts more; a refused message of that size is cut, and cannot be sent again"},
	} {
		s, ok := f.topicSettings(c.topic)
		if have := s.readNumber(setting, DefaultMaxMessage); ok && have < c.least {
			found = append(found, precondition.Finding{Level: c.level, Object: "topic " + c.topic,
				Found: fmt.Sprintf("%s is %d", setting, have), Effect: c.effect,
				Fix: f.alterHint(c.topic, fmt.Sprintf("%s=%d", setting, max(c.least, DefaultMaxMessage)+64<<10))})
		}
	}
	return found, nil
}

// outputTopics lists the topics that a lane writes.
func (c Config) outputTopics() []string {
	return []string{c.Notifications, c.Progress, c.DeadLetters}
}

// minReplicas returns the smallest number of replicas of a topic's partitions.
func (c *Cluster) minReplicas(topic string) int {
	least := 0
	for _, p := range c.Topics[topic].Partitions {
		if n := len(p.Replicas); least == 0 || n < least {
			least = n
		}
	}
	return least
}

// checkInsyncReplicas requires at least min.insync.replicas replicas: every record is
// written with acks=all, which a topic with fewer replicas refuses for ever.
func checkInsyncReplicas(_ context.Context, f *Facts) ([]precondition.Finding, error) {
	var found []precondition.Finding
	for _, topic := range f.Config.outputTopics() {
		s, ok := f.topicSettings(topic)
		least, have := s.readNumber("min.insync.replicas", 1), f.Cluster.minReplicas(topic)
		if !ok || have == 0 || least <= int64(have) {
			continue
		}
		found = append(found, precondition.Finding{Level: precondition.Fail, Object: "topic " + topic,
			Found:  fmt.Sprintf("min.insync.replicas is %d, and a partition has %d replicas", least, have),
			Effect: "it accepts no record",
			Fix:    f.alterHint(topic, fmt.Sprintf("min.insync.replicas=%d", max(1, have-1)))})
	}
	return found, nil
}

// checkReplicas warns where one broker's disk, or an election, can lose acknowledged
// records. A lane notices the loss and halts; it cannot restore them.
func checkReplicas(_ context.Context, f *Facts) ([]precondition.Finding, error) {
	var found []precondition.Finding
	warn := func(object, what, effect, fix string) {
		found = append(found, precondition.Finding{Level: precondition.Warn, Object: object, Found: what, Effect: effect, Fix: fix})
	}
	var single []string
	for _, topic := range f.Config.outputTopics() {
		s, ok := f.topicSettings(topic)
		switch copies := f.Cluster.minReplicas(topic); {
		case copies == 0:
		case copies == 1:
			single = append(single, topic)
		case ok && s.readNumber("min.insync.replicas", 1) < 2:
			warn("topic "+topic, "min.insync.replicas is 1", "a record may be acknowledged that one broker alone has", f.alterHint(topic, "min.insync.replicas=2"))
		}
		if c := s["unclean.leader.election.enable"]; c.MaybeValue() == "true" {
			warn("topic "+topic, "unclean.leader.election.enable is true", "an election may lose records that were acknowledged", f.alterHint(topic, "unclean.leader.election.enable=false"))
		}
	}
	if len(single) > 0 {
		warn("topics "+strings.Join(single, ", "), "they have one replica", "records that a broker's disk loses are lost for good, and the lanes halt; Apache Kafka 4.3 and 4.4 may lose the end of a transaction while their only broker stops",
			"three brokers, and kafka-reassign-partitions.sh with three replicas a partition")
	}
	return found, nil
}

// minRetention is the least time that a message should stay: a daemon may be down for
// so long.
const minRetention = time.Hour

// checkRetention warns of topics that delete a campaign before a daemon that was down
// has read it, or a notification or dead letter before anybody has.
func checkRetention(_ context.Context, f *Facts) ([]precondition.Finding, error) {
	k := f.Config
	var found []precondition.Finding
	for _, c := range []struct{ topic, effect string }{
		{k.Campaigns, "a campaign that is not read within it is gone, and its lane halts"},
		{k.Notifications, "a notification that is not read within it is gone"},
		{k.DeadLetters, "a refused message that is not read within it is gone"},
	} {
		s, ok := f.topicSettings(c.topic)
		ms := s.readNumber("retention.ms", -1)
		if !ok || !s.HasPolicy("delete") || ms < 0 || time.Duration(ms)*time.Millisecond >= minRetention {
			continue
		}
		found = append(found, precondition.Finding{Level: precondition.Warn, Object: "topic " + c.topic,
			Found: "retention.ms is " + fmt.Sprint(ms), Effect: c.effect, Fix: f.alterHint(c.topic, "retention.ms=604800000")})
	}
	return found, nil
}

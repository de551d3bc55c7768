package topic

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"dinnerbell/internal/precondition"
)

// Settings that hurt later are warned of, and stop nothing.
func TestTopicSettingsThatHurtLaterAreWarnedOf(t *testing.T) {
	t.Parallel()
	cluster, cfg := newConfig(t, 1)
	cluster.Configure(cfg.Campaigns, "retention.ms", "60000")
	cluster.Configure(cfg.Campaigns, "max.message.bytes", "4000000")
	cluster.Configure(cfg.Progress, "cleanup.policy", "delete")
	cluster.Configure(cfg.Progress, "retention.ms", "-1")
	report, err := checkPreconditions(t, cfg, precondition.AtStart)
	if err != nil {
		t.Fatal(err)
	}
	all := fmt.Sprint(report.At(precondition.Warn))
	for _, want := range []string{
		cfg.Campaigns + ": retention.ms is 60000", cfg.DeadLetters + ": max.message.bytes is",
		cfg.Progress + ": cleanup.policy is delete", "one replica",
	} {
		if !strings.Contains(strings.ReplaceAll(all, "} {", "\n"), want) {
			t.Errorf("%q is not in the warnings:\n%s", want, all)
		}
	}
}

// goodFacts are the facts of a cluster without any finding.
func goodFacts() *Facts {
	cfg := Config{Campaigns: "in", Notifications: "out", DeadLetters: "dead", Progress: "progress", Group: "g"}.WithDefaults()
	c := &Cluster{Bootstrap: "b:9092", Topics: kadm.TopicDetails{}, Settings: map[string]Settings{}}
	for _, name := range cfg.allTopics() {
		policy := "delete"
		if name == cfg.Progress {
			policy = "compact"
		}
		c.Topics[name] = kadm.TopicDetail{Topic: name, Partitions: kadm.PartitionDetails{0: {Replicas: []int32{1, 2, 3}}, 1: {Replicas: []int32{1, 2, 3}}}}
		c.Settings[name] = Settings{}
		f := &Facts{Cluster: c}
		f.changeSetting(name, "cleanup.policy", policy)
		f.changeSetting(name, "min.insync.replicas", "2")
		f.changeSetting(name, "retention.ms", "604800000")
	}
	return &Facts{Config: cfg, Moment: precondition.AtStart, Cluster: c}
}

func (f *Facts) changeSetting(name, setting, value string) {
	f.Cluster.Settings[name][setting] = kadm.Config{Key: setting, Value: &value}
}

// The checks that need the facts alone find each violation, and nothing else.
func TestChecksOfTheFacts(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*Facts)
		check  string // that finds it; "" for none
		level  precondition.Level
		found  string // in the finding
	}{
		"nothing": {func(*Facts) {}, "", 0, ""},
		"missing topic": {func(f *Facts) {
			f.Cluster.Topics["out"] = kadm.TopicDetail{Err: kerr.UnknownTopicOrPartition}
			delete(f.Cluster.Settings, "out")
		}, "kafka.topics", precondition.Fail, "topic out"},
		"few progress partitions": {func(f *Facts) { delete(f.Cluster.Topics["progress"].Partitions, 1) }, "kafka.progress.partitions", precondition.Fail, "fewer than the 2"},
		"hidden settings":         {func(f *Facts) { delete(f.Cluster.Settings, "dead") }, "kafka.settings", precondition.Unknown, "DescribeConfigs"},
		"progress deleted":        {func(f *Facts) { f.changeSetting("progress", "cleanup.policy", "delete") }, "kafka.progress.cleanup_policy", precondition.Fail, "cleanup.policy is delete"},
		"progress with both":      {func(f *Facts) { f.changeSetting("progress", "cleanup.policy", "compact, delete") }, "kafka.progress.cleanup_policy", precondition.Fail, "cleanup.policy is compact, delete"},
		"progress kept": {func(f *Facts) {
			f.changeSetting("progress", "cleanup.policy", "delete")
			f.changeSetting("progress", "retention.ms", "-1")
		}, "kafka.progress.cleanup_policy", precondition.Warn, "grows without end"},
		"campaigns compacted": {func(f *Facts) { f.changeSetting("in", "cleanup.policy", "compact") }, "kafka.campaigns.cleanup_policy", precondition.Fail, "cleanup.policy is compact"},
		"campaigns compacted late": {func(f *Facts) {
			f.changeSetting("in", "cleanup.policy", "compact")
			f.changeSetting("in", "min.compaction.lag.ms", "86400000")
		}, "kafka.campaigns.cleanup_policy", precondition.Warn, "24h0m0s"},
		"dead letters compacted":  {func(f *Facts) { f.changeSetting("dead", "cleanup.policy", "compact") }, "kafka.dead_letters.cleanup_policy", precondition.Fail, "topic dead"},
		"tiny progress":           {func(f *Facts) { f.changeSetting("progress", "max.message.bytes", "100") }, "kafka.max_message_bytes", precondition.Fail, "topic progress: max.message.bytes is 100"},
		"small notifications":     {func(f *Facts) { f.changeSetting("out", "max.message.bytes", "4096") }, "kafka.max_message_bytes", precondition.Warn, "topic out: max.message.bytes is 4096"},
		"small dead letters":      {func(f *Facts) { f.changeSetting("in", "max.message.bytes", "4000000") }, "kafka.max_message_bytes", precondition.Warn, "topic dead"},
		"too few replicas":        {func(f *Facts) { f.changeSetting("out", "min.insync.replicas", "4") }, "kafka.min_insync_replicas", precondition.Fail, "a partition has 3 replicas"},
		"acknowledged by one":     {func(f *Facts) { f.changeSetting("out", "min.insync.replicas", "1") }, "kafka.replicas", precondition.Warn, "one broker alone"},
		"unclean election":        {func(f *Facts) { f.changeSetting("progress", "unclean.leader.election.enable", "true") }, "kafka.replicas", precondition.Warn, "topic progress"},
		"short retention":         {func(f *Facts) { f.changeSetting("in", "retention.ms", "60000") }, "kafka.retention", precondition.Warn, "retention.ms is 60000"},
		"retention of a day":      {func(f *Facts) { f.changeSetting("in", "retention.ms", "86400000") }, "kafka.downtime", precondition.Warn, "keeps messages for 24h0m0s"},
		"retention by size":       {func(f *Facts) { f.changeSetting("in", "retention.bytes", "1000000") }, "kafka.downtime", precondition.Warn, "keeps 1000000 bytes a partition"},
		"short retention, unused": {func(f *Facts) { f.changeSetting("progress", "retention.ms", "60000") }, "", 0, ""},
		"no right to write": {func(f *Facts) {
			d := f.Cluster.Topics["out"]
			d.AuthorizedOperations = []kadm.ACLOperation{kmsg.ACLOperationDescribe}
			f.Cluster.Topics["out"] = d
		}, "kafka.rights", precondition.Fail, "topic out: User:NAME lacks the right Write"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			facts := goodFacts()
			c.change(facts)
			for _, check := range Preconditions {
				if slices.Contains([]string{"kafka.group", "kafka.internal_topics", "kafka.version", "kafka.encryption", "kafka.transactional_ids", "kafka.id_expiration"}, check.Name) {
					continue // they ask the cluster
				}
				found, err := check.Read(t.Context(), facts)
				found = slices.DeleteFunc(found, func(f precondition.Finding) bool { return f.Level == precondition.OK })
				switch {
				case err != nil:
					t.Errorf("%s: %v", check.Name, err)
				case check.Name != c.check:
					for _, f := range found {
						t.Errorf("%s finds %s", check.Name, f)
					}
				case len(found) != 1 || found[0].Level != c.level || !strings.Contains(found[0].String(), c.found):
					t.Errorf("%s finds %v, want one of level %v with %q", check.Name, found, c.level, c.found)
				}
			}
		})
	}
}

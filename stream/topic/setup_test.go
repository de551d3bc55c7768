package topic

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"dinnerbell/internal/precondition"
	"dinnerbell/internal/testenv/envtest"
)

// newConfig returns a cluster and a configuration with its four topics.
func newConfig(t *testing.T, lanes int32) (*envtest.Cluster, Config) {
	t.Helper()
	cluster := envtest.Kafka(t)
	return cluster, Config{
		ClientOptions: func() ([]kgo.Opt, error) { return []kgo.Opt{kgo.SeedBrokers(cluster.Brokers...)}, nil },
		Campaigns:     cluster.Topic("campaigns", lanes, nil),
		Notifications: cluster.Topic("notifications", 3, nil),
		DeadLetters:   cluster.Topic("dead", 1, map[string]string{"max.message.bytes": fmt.Sprint(DefaultMaxMessage + 64<<10)}),
		Progress:      cluster.Topic("progress", lanes, map[string]string{"cleanup.policy": "compact"}),
		Group:         envtest.Name("group"),
	}.WithDefaults()
}

// checkPreconditions makes the checks of a moment.
func checkPreconditions(t *testing.T, cfg Config, moment precondition.Moment) (precondition.Report, error) {
	t.Helper()
	client, err := cfg.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	facts, err := ReadFacts(t.Context(), client, cfg, moment)
	if err != nil {
		t.Fatal(err)
	}
	report, err := precondition.Run(t.Context(), Preconditions, moment, facts)
	return report, report.Unmet(err)
}

// Setup compacts a progress topic that somebody made with the broker's defaults,
// once, and makes the other topics uncompacted whatever the default is.
func TestSetupCompactsAnUntouchedProgressTopic(t *testing.T) {
	t.Parallel()
	cluster, cfg := newConfig(t, 2)
	cfg.Progress = cluster.Topic("plain", 1, nil)
	cfg.DeadLetters = envtest.Name("dead")
	cluster.DeleteAfter(cfg.DeadLetters)
	if _, err := checkPreconditions(t, cfg, precondition.AtSetup); err != nil {
		t.Errorf("setup refuses a topic that it can mend: %v", err)
	}
	for i, want := range []string{"cleanup.policy set to compact", "there already"} {
		did, err := Setup(t.Context(), cfg)
		if err != nil || !strings.Contains(strings.Join(did, "\n"), "topic "+cfg.Progress+": "+want) {
			t.Errorf("setup %d: %q, %v", i, did, err)
		}
	}
	if report, err := checkPreconditions(t, cfg, precondition.AtStart); err != nil {
		t.Errorf("after setup: %v, %v", report, err)
	}
	settings, err := ReadSettings(t.Context(), kadm.NewClient(cluster.Client()), cfg.DeadLetters)
	if s := settings[cfg.DeadLetters]; err != nil || !s.HasPolicy("delete") {
		t.Errorf("dead letters: %v, %v", s["cleanup.policy"], err)
	}
}

// Setup creates four topics in a moment: with the client's cached metadata it would
// wait five seconds for each of them.
func TestSetupDoesNotWaitForCachedMetadata(t *testing.T) {
	t.Parallel()
	cluster, cfg := newConfig(t, 1)
	for _, name := range []*string{&cfg.Campaigns, &cfg.Notifications, &cfg.DeadLetters, &cfg.Progress} {
		*name = envtest.Name("new")
		cluster.DeleteAfter(*name)
	}
	began := time.Now()
	did, err := Setup(t.Context(), cfg)
	if err != nil || strings.Count(strings.Join(did, "\n"), ": created") != 4 {
		t.Fatalf("setup: %q, %v", did, err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("setup of four topics took %s", took)
	}
}

// Two setups that grow the progress topic side by side both succeed: the later one waits
// until it sees what the other has done.
func TestSetupBesideAnotherOne(t *testing.T) {
	t.Parallel()
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, "campaigns"), kfake.SeedTopics(1, "notifications", "dead", "progress"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	client, err := kgo.NewClient(kgo.SeedBrokers(cluster.ListenAddrs()...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	other := make(chan error, 1)
	cluster.ControlKey(int16(kmsg.CreatePartitions), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		go func() {
			_, err := kadm.NewClient(client).UpdatePartitions(t.Context(), 2, "progress")
			other <- err
		}()
		req, _ := kreq.(*kmsg.CreatePartitionsRequest)
		resp, _ := req.ResponseKind().(*kmsg.CreatePartitionsResponse)
		for _, topic := range req.Topics {
			one := kmsg.NewCreatePartitionsResponseTopic()
			one.Topic, one.ErrorCode = topic.Topic, kerr.InvalidPartitions.Code
			resp.Topics = append(resp.Topics, one)
		}
		return resp, nil, true
	})
	seeds := func() ([]kgo.Opt, error) { return []kgo.Opt{kgo.SeedBrokers(cluster.ListenAddrs()...)}, nil }
	cfg := Config{ClientOptions: seeds, Campaigns: "campaigns", Notifications: "notifications", DeadLetters: "dead", Progress: "progress", Group: "group"}.WithDefaults()
	if did, err := Setup(t.Context(), cfg); err != nil || strings.Contains(strings.Join(did, "\n"), "grown") {
		t.Errorf("setup: %q, %v", did, err)
	}
	if err := <-other; err != nil {
		t.Error(err)
	}
}

package envtest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Cluster is the Kafka cluster of a test.
type Cluster struct {
	Brokers []string

	t testing.TB
}

// Kafka returns the cluster of $KAFKA_BROKERS (host:port, comma-separated), or
// the kfake broker that all tests of the package share.
func Kafka(t testing.TB) *Cluster {
	t.Helper()
	if list := os.Getenv("KAFKA_BROKERS"); list != "" {
		return &Cluster{Brokers: strings.Split(list, ","), t: t}
	}
	return &Cluster{Brokers: []string{servers.sharedBroker(t).Addr()}, t: t}
}

// KafkaAt is Kafka for a broker of the test.
func KafkaAt(t testing.TB, brokers ...string) *Cluster {
	t.Helper()
	return &Cluster{Brokers: brokers, t: t}
}

// RealKafka reports whether Kafka returns a cluster of $KAFKA_BROKERS.
func RealKafka() bool { return os.Getenv("KAFKA_BROKERS") != "" }

// sharedBroker starts the shared broker if necessary.
func (s *sharedServers) sharedBroker(t testing.TB) *testenv.Broker {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broker == nil {
		dir, err := s.folderLocked()
		if err != nil {
			t.Fatal(err)
		}
		s.broker = StartBroker(t, filepath.Join(dir, "broker"))
	}
	return s.broker
}

// StartBroker starts a kfake broker in dir for tests that stop it; the caller
// stops it.
func StartBroker(t testing.TB, dir string) *testenv.Broker {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	broker, err := testenv.StartBroker(context.Background(), testenv.BrokerOptions{
		Dir: dir, Command: []string{self, brokerChild},
	})
	if err != nil {
		t.Fatal(err)
	}
	return broker
}

// StartKafka starts an Apache Kafka server in dir for tests that kill the
// broker or need special settings; the caller stops it. It needs Java 17 and
// Maven.
func StartKafka(t testing.TB, dir string, settings ...string) *testenv.Kafka {
	t.Helper()
	kafka, err := testenv.StartKafka(context.Background(), testenv.KafkaOptions{
		Script: filepath.Join(Root(t), "scripts", "kafka.sh"), Dir: dir, Settings: settings,
	})
	if err != nil {
		t.Fatal(err)
	}
	return kafka
}

// Name returns a name that starts with base and is unique among all test
// processes, for topics, groups and slots: lower case, digits and _.
func Name(base string) string {
	servers.mu.Lock()
	defer servers.mu.Unlock()
	servers.topics++
	return fmt.Sprintf("%s_%d_%x_%d", base, os.Getpid(), time.Now().UnixMilli(), servers.topics)
}

// Topic creates a topic with a unique name and deletes it after the test.
// configs are topic settings, such as "cleanup.policy": "compact".
func (c *Cluster) Topic(base string, partitions int32, configs map[string]string) string {
	c.t.Helper()
	name := Name(base)
	c.TopicNamed(name, partitions, configs)
	return name
}

// TopicNamed is Topic with a given name.
func (c *Cluster) TopicNamed(name string, partitions int32, configs map[string]string) {
	c.t.Helper()
	settings := make(map[string]*string, len(configs))
	for k, v := range configs {
		settings[k] = &v
	}
	adm := kadm.NewClient(c.Client())
	if _, err := adm.CreateTopic(c.t.Context(), partitions, 1, settings, name); err != nil {
		c.t.Fatalf("create topic %s: %v", name, err)
	}
	c.t.Cleanup(func() { deleteTopic(c.t, c.Brokers, name) })
	AwaitTopic(c.t, adm, name)
}

// AwaitTopic waits until a new topic can be used: KRaft's controller answers
// before the brokers know the topic.
func AwaitTopic(t testing.TB, adm *kadm.Client, name string) {
	t.Helper()
	Until(t, 30*time.Second, func() error {
		details, err := adm.ListTopics(t.Context(), name)
		if err != nil {
			return err
		}
		if err := details.Error(); err != nil {
			return err
		}
		for _, p := range details[name].Partitions {
			if p.Err != nil || p.Leader < 0 {
				return fmt.Errorf("partition %d of %s has no leader: %w", p.Partition, name, p.Err)
			}
		}
		return nil
	})
}

// Configure changes a setting of a topic and waits until the broker reports the
// new value: KRaft's controller answers before the brokers know it.
func (c *Cluster) Configure(topic, name, value string) {
	c.t.Helper()
	adm := kadm.NewClient(c.Client())
	if _, err := adm.AlterTopicConfigs(c.t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: name, Value: &value}}, topic); err != nil {
		c.t.Fatalf("configure topic %s: %v", topic, err)
	}
	Until(c.t, 30*time.Second, func() error {
		configs, err := adm.DescribeTopicConfigs(c.t.Context(), topic)
		if err != nil {
			return err
		}
		described, err := configs.On(topic, nil)
		if err != nil {
			return err
		}
		for _, setting := range described.Configs {
			if setting.Key == name && setting.MaybeValue() == value {
				return nil
			}
		}
		return fmt.Errorf("%s of topic %s is not %s", name, topic, value)
	})
}

// DeleteAfter deletes topics that the test's daemon creates, after the test.
func (c *Cluster) DeleteAfter(names ...string) {
	c.t.Cleanup(func() {
		for _, name := range names {
			deleteTopic(c.t, c.Brokers, name)
		}
	})
}

// deleteTopic deletes a topic from a cluster that outlives the tests. The
// test's context has ended.
func deleteTopic(t testing.TB, brokers []string, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Errorf("delete topic %s: %v", name, err)
		return
	}
	defer client.Close()
	if _, err := kadm.NewClient(client).DeleteTopics(ctx, name); err != nil {
		t.Errorf("delete topic %s: %v", name, err)
	}
}

// Client returns a client that is closed after the test.
func (c *Cluster) Client(opts ...kgo.Opt) *kgo.Client {
	c.t.Helper()
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(c.Brokers...)}, opts...)...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(client.Close)
	return client
}

// ReadAll is the package's ReadAll on this cluster.
func (c *Cluster) ReadAll(topic string) []*kgo.Record {
	c.t.Helper()
	return ReadAll(c.t, c.Brokers, topic)
}

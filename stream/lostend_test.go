package stream

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/record"
)

// pairedKafka is a cluster of two brokers of Apache Kafka. The first one holds all topics
// but the progress topic, and coordinates all transactions and groups.
type pairedKafka struct{ first, second *testenv.Kafka }

// movePaired gives the deployment a cluster of two brokers.
func (w *deployment) movePaired(t *testing.T) *pairedKafka {
	t.Helper()
	k, dir := &pairedKafka{}, t.TempDir()
	start := func(node string, settings ...string) *testenv.Kafka {
		broker := envtest.StartKafka(t, filepath.Join(dir, node), settings...)
		t.Cleanup(func() {
			if err := broker.Stop(); err != nil {
				t.Error(err)
			}
		})
		return broker
	}
	k.first = start("1")
	w.kafka = envtest.KafkaAt(t, k.first.Addr())
	for _, topic := range []string{w.cfg.Kafka.Campaigns, w.cfg.Kafka.Notifications, w.cfg.Kafka.DeadLetters} {
		w.kafka.TopicNamed(topic, 1, nil)
	}
	// The first request about a transaction or a group makes the topic of all of them.
	for kind := range int8(2) {
		envtest.Until(t, patience, func() error {
			req := kmsg.NewPtrFindCoordinatorRequest()
			req.CoordinatorType, req.CoordinatorKeys = kind, []string{"any"}
			resp, err := req.RequestWith(t.Context(), w.kafka.Client())
			if err != nil {
				return err
			}
			return kerr.ErrorForCode(resp.Coordinators[0].ErrorCode)
		})
	}
	k.second = start("2", k.joinSettings(t, dir)...)
	req := kmsg.NewPtrCreateTopicsRequest()
	req.Topics = []kmsg.CreateTopicsRequestTopic{{
		Topic: w.cfg.Kafka.Progress, NumPartitions: -1, ReplicationFactor: -1,
		ReplicaAssignment: []kmsg.CreateTopicsRequestTopicReplicaAssignment{{Partition: 0, Replicas: []int32{2}}},
		Configs:           []kmsg.CreateTopicsRequestTopicConfig{{Name: "cleanup.policy", Value: new("compact")}},
	}}
	resp, err := req.RequestWith(t.Context(), w.kafka.Client())
	if err == nil {
		err = kerr.ErrorForCode(resp.Topics[0].ErrorCode)
	}
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// joinSettings returns the settings with which a second broker joins the first one's
// cluster, and gives it the folder of a formatted one.
func (k *pairedKafka) joinSettings(t *testing.T, dir string) []string {
	t.Helper()
	read := func(file, pattern string) string {
		text, err := os.ReadFile(filepath.Join(dir, "1", file))
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(`(?m)^` + pattern + `=(.*)$`).FindSubmatch(text)
		if found == nil {
			t.Fatalf("%s has no %s", file, pattern)
		}
		return string(found[1])
	}
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "2", "data")
	if err := os.MkdirAll(data, 0o755); err != nil {
		t.Fatal(err)
	}
	meta := fmt.Sprintf("version=1\ncluster.id=%s\nnode.id=2\ndirectory.id=%s\n", read("data/meta.properties", "cluster.id"), "A"+base64.RawURLEncoding.EncodeToString(id)[1:])
	if err := os.WriteFile(filepath.Join(data, "meta.properties"), []byte(meta), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"process.roles=broker", "node.id=2", "controller.quorum.voters=" + read("server.properties", "controller.quorum.voters"), "listeners=PLAINTEXT://127.0.0.1:@PORT@"}
}

// Apache Kafka 4.3 and later lose the end of a transaction in a partition that has no
// leader when the transaction ends: here the progress partition, while the notifications
// get their marker. The coordinator reports the transaction as complete. The next takeover
// ends it as the coordinator has ended it, so that no client gets a notification twice and
// none gets none.
func TestLostEndOfATransaction(t *testing.T) {
	t.Parallel()
	if !envtest.RealKafka() {
		t.Skip("it needs two brokers of Apache Kafka: make test-kafka")
	}
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 30)})
	k := w.movePaired(t)
	want := map[string][]string{}
	for n, end := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort} {
		c := w.campaign(fmt.Sprintf("c%d", n), "r1")
		st, former := w.stepFor(&c, w.subs["r1"]...), w.owner()
		if err := commitSteps(t, former, st); err != nil {
			t.Fatal(err)
		}
		payload, out := (<-former.toShip).p, &recordBuffers{}
		batch := []*record.Payload{payload}
		out.prepareRecords(batch, payload.RecordBytes(), 1<<20)
		if _, err := former.newShipper().produceAll(t.Context(), batch, out); err != nil {
			t.Fatal(err)
		}
		if err := k.second.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := former.claim.Client.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
		if err := k.second.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		lines := &logLines{}
		w.cfg.Logger = slog.New(slog.NewTextHandler(lines, nil))
		_, stop := w.start()
		envtest.Until(t, patience, func() error {
			if ended := fmt.Sprintf("committed=%t", bool(end)); len(lines.with("the brokers had lost the end of a transaction", ended)) != 1 {
				return fmt.Errorf("%s: no line in the log: %s", ended, lines.with("WARN"))
			}
			return nil
		})
		want[c.ID] = w.subs["r1"]
		w.expect(want)
		stop()
	}
}

// A commit that the broker acknowledges and does not carry out is not taken for shipped:
// the step is sent again after the transaction was aborted.
func TestCommitThatDoesNotShowIsNotShipped(t *testing.T) {
	t.Parallel()
	if envtest.RealKafka() {
		t.Skip("it has a broker of its own")
	}
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 30)})
	broker, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(broker.Close)
	w.moveTo(t, broker.ListenAddrs()...)
	broker.ControlKey(int16(kmsg.EndTxn), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		req, ok := kreq.(*kmsg.EndTxnRequest)
		if !ok || !req.Commit {
			broker.KeepControl()
			return nil, nil, false //nolint:nilnil // so kfake answers itself
		}
		resp, ok := req.ResponseKind().(*kmsg.EndTxnResponse)
		if !ok {
			return nil, nil, false //nolint:nilnil // as above
		}
		resp.ProducerID, resp.ProducerEpoch = req.ProducerID, req.ProducerEpoch+1
		return resp, nil, true
	})
	svc, stop := w.start()
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")), encodeCampaign(w.campaign("c2", "r1")))
	w.expect(map[string][]string{"c1": w.subs["r1"], "c2": w.subs["r1"]})
	if l := svc.Status().Lanes[0]; l.Epoch < 2 {
		t.Errorf("epoch %d: the session has not noticed", l.Epoch)
	}
	stop()
	if findings := w.audit(); len(findings) > 0 {
		t.Errorf("audit: %v", findings)
	}
}

// A right on the transactional id that is taken away while a session runs is named with the
// line that grants it, as a takeover names it.
func TestTransactionRightLostInASession(t *testing.T) {
	t.Parallel()
	if envtest.RealKafka() {
		t.Skip("it has a broker of its own")
	}
	w := newDeployment(t, 1, map[string][]string{"r1": {"a"}})
	broker, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(broker.Close)
	w.moveTo(t, broker.ListenAddrs()...)
	broker.ControlKey(int16(kmsg.EndTxn), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
		broker.KeepControl()
		resp, ok := kreq.ResponseKind().(*kmsg.EndTxnResponse)
		if ok {
			resp.ErrorCode = kerr.TransactionalIDAuthorizationFailed.Code
		}
		return resp, nil, ok
	})
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
	envtest.Until(t, patience, func() error {
		for _, l := range svc.Status().Lanes {
			if strings.Contains(l.LastError, "kafka-acls.sh") && strings.Contains(l.LastError, "--transactional-id") && strings.Contains(l.LastError, "commit: outcome unknown") {
				return nil
			}
		}
		return fmt.Errorf("%+v", svc.Status().Lanes)
	})
}

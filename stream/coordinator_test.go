package stream

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"dinnerbell/internal/halt"
	"dinnerbell/internal/precondition"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/takeover"
	"dinnerbell/stream/topic"
)

// moveTo gives the deployment another cluster, with its topics.
func (w *deployment) moveTo(t *testing.T, brokers ...string) {
	t.Helper()
	w.kafka = envtest.KafkaAt(t, brokers...)
	k := w.cfg.Kafka
	for topic, configs := range map[string]map[string]string{k.Campaigns: nil, k.Notifications: nil, k.DeadLetters: nil, k.Progress: {"cleanup.policy": "compact"}} {
		w.kafka.TopicNamed(topic, 1, configs)
	}
}

// A coordinator that never answers is tried again inside the client, for half a
// minute: meanwhile status and log name the cause, and the work begins once it
// answers.
func TestCoordinatorThatIsNotAvailableIsShown(t *testing.T) {
	t.Parallel()
	if envtest.RealKafka() {
		t.Skip("its broker is a kfake of its own")
	}
	for kind, tc := range map[int8]struct {
		setting string
		shown   func(Status) string
	}{
		0: {"offsets.topic.replication.factor", func(s Status) string { return s.LastError }},
		1: {"transaction.state.log.replication.factor", func(s Status) string {
			if len(s.Lanes) == 0 || s.Lanes[0].State != "takeover" {
				return ""
			}
			return s.Lanes[0].LastError
		}},
	} {
		t.Run(tc.setting, func(t *testing.T) {
			t.Parallel()
			w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 3)})
			broker, err := kfake.NewCluster(kfake.NumBrokers(1))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(broker.Close)
			w.moveTo(t, broker.ListenAddrs()...)
			var there atomic.Bool
			broker.ControlKey(int16(kmsg.FindCoordinator), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
				broker.KeepControl()
				req, ok := kreq.(*kmsg.FindCoordinatorRequest)
				if !ok || there.Load() || req.CoordinatorType != kind {
					return nil, nil, false //nolint:nilnil // so kfake answers itself
				}
				return refuseCoordinator(req), nil, true
			})
			svc := New(w.cfg, w.store, w.barrier)
			svc.stepPatience = 100 * time.Millisecond
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- svc.Run(ctx) }()
			defer func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}()
			envtest.Until(t, patience, func() error {
				if text := tc.shown(svc.Status()); !strings.Contains(text, "COORDINATOR_NOT_AVAILABLE") || !strings.Contains(text, tc.setting) {
					return fmt.Errorf("status %+v", svc.Status())
				}
				return nil
			})
			there.Store(true)
			w.produce(0, encodeCampaign(w.campaign("c", "r1")))
			w.expect(map[string][]string{"c": w.subs["r1"]})
			if st := svc.Status(); st.LastError != "" || st.Lanes[0].LastError != "" {
				t.Errorf("once it works: %+v", st)
			}
		})
	}
}

func refuseCoordinator(req *kmsg.FindCoordinatorRequest) kmsg.Response {
	resp := kmsg.NewPtrFindCoordinatorResponse()
	resp.Version, resp.ErrorCode = req.Version, kerr.CoordinatorNotAvailable.Code
	for _, key := range req.CoordinatorKeys {
		one := kmsg.NewFindCoordinatorResponseCoordinator()
		one.Key, one.ErrorCode = key, kerr.CoordinatorNotAvailable.Code
		resp.Coordinators = append(resp.Coordinators, one)
	}
	return resp
}

// One broker with Kafka's defaults for the transactions' topic, three replicas of
// which two are in sync, begins no transaction.
func TestSingleBrokerWithKafkasDefaults(t *testing.T) {
	t.Parallel()
	if !envtest.RealKafka() {
		t.Skip("needs Java and Maven: run by make test-kafka")
	}
	kafka := envtest.StartKafka(t, filepath.Join(t.TempDir(), "kafka"), "transaction.state.log.replication.factor=3", "transaction.state.log.min.isr=2")
	t.Cleanup(func() {
		if err := kafka.Stop(); err != nil {
			t.Error(err)
		}
	})
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 3)})
	w.moveTo(t, kafka.Addr())

	_, err := takeover.CheckPreconditions(t.Context(), w.cfg.Config, precondition.AtSetup)
	halt, ok := errors.AsType[*halt.Error](err)
	if !ok || !strings.Contains(halt.What, "topic __transaction_state: transaction.state.log.replication.factor is 3, and there is room for 1") ||
		!strings.Contains(halt.Hint, "transaction.state.log.replication.factor=1 transaction.state.log.min.isr=1") {
		t.Errorf("setup: %v", err)
	}

	// A takeover without that check, as by a daemon that may not read the brokers' settings.
	svc := New(w.cfg, w.store, w.barrier)
	svc.stepPatience = 100 * time.Millisecond
	l := &lane{svc: svc}
	svc.lanes[0] = &laneHandle{lane: l}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := l.takeOver(ctx)
		done <- err
	}()
	envtest.Until(t, patience, func() error {
		if text := svc.Status().Lanes[0].LastError; !strings.Contains(text, "fence the former producer of lane 0: topic __transaction_state: transaction.state.log.replication.factor is 3") {
			return fmt.Errorf("last error %q", text)
		}
		return nil
	})
	cancel()
	if err := <-done; err == nil {
		t.Error("the lane was taken over")
	}
	client := w.kafka.Client()
	if err := topic.TransactionCoordinator("x").Find(t.Context(), client); !errors.Is(err, kerr.CoordinatorNotAvailable) {
		t.Errorf("the broker says of the coordinator: %v", err)
	}
}

package stream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"dinnerbell/internal/halt"
	"dinnerbell/internal/precondition"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/operator"
	"dinnerbell/stream/takeover"
	"dinnerbell/stream/topic/fetch"
)

// deleteRecords empties a partition, as retention does.
func (w *deployment) deleteRecords(name string, partition int32) {
	w.Helper()
	adm := kadm.NewClient(w.kafka.Client())
	end, err := fetch.ListOffset(w.Context(), name, partition, adm.ListEndOffsets)
	if err != nil {
		w.Fatal(err)
	}
	var upTo kadm.Offsets
	upTo.Add(kadm.Offset{Topic: name, Partition: partition, At: end.Offset})
	deleted, err := adm.DeleteRecords(w.Context(), upTo)
	if err == nil {
		err = deleted.Error()
	}
	if err != nil {
		w.Fatal(err)
	}
}

// A progress partition whose records are gone is never "no progress": the lane
// halts, and after either choice it goes on.
func TestProgressThatWasDeletedHalts(t *testing.T) {
	t.Parallel()
	for _, accept := range []operator.Choice{operator.AcceptRepeats, operator.AcceptMissing} {
		t.Run(string(accept), func(t *testing.T) {
			t.Parallel()
			w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 50), "r2": clients("0001", 3)})
			_, stop := w.start()
			w.produce(0, encodeCampaign(w.campaign("c1", "r1")), []byte("no campaign"))
			w.expect(map[string][]string{"c1": w.subs["r1"]})
			w.awaitOffset(0, 2)
			stop()
			w.kafka.Configure(w.cfg.Kafka.Progress, "cleanup.policy", "delete")
			w.deleteRecords(w.cfg.Kafka.Progress, 0)
			w.kafka.Configure(w.cfg.Kafka.Progress, "cleanup.policy", "compact")
			halted := w.halted()
			for _, want := range []string{w.cfg.Kafka.Progress + " partition 0", "cleanup.policy"} {
				if !strings.Contains(halted.What, want) {
					t.Errorf("the halt does not name %q: %v", want, halted)
				}
			}
			t.Log(w.resolve(accept))
			_, stop = w.start() // once more than the choice is needed for
			stop()
			w.start()
			w.produce(0, encodeCampaign(w.campaign("c2", "r2")))
			envtest.Until(t, patience, func() error {
				return matches(w.rows(), map[string][]string{"c1": w.subs["r1"], "c2": w.subs["r2"]})
			})
			records := map[string][]string{"c1": w.subs["r1"], "c2": w.subs["r2"]}
			if accept == operator.AcceptRepeats {
				records["c1"] = append(records["c1"], records["c1"]...)
			}
			envtest.Until(t, patience, func() error { return matches(w.records(), records) })
		})
	}
}

// Setup and run refuse a topic whose settings break a guarantee, name the command that
// mends it, and leave the topic as it is.
func TestTopicsThatBreakAGuaranteeAreRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		topic         func(w *deployment) string
		setting       string
		value, mended string
	}{
		"progress":           {func(w *deployment) string { return w.cfg.Kafka.Progress }, "cleanup.policy", "delete", "compact"},
		"progress with both": {func(w *deployment) string { return w.cfg.Kafka.Progress }, "cleanup.policy", "compact,delete", "compact"},
		"campaigns":          {func(w *deployment) string { return w.cfg.Kafka.Campaigns }, "cleanup.policy", "compact", "delete"},
		"dead letters":       {func(w *deployment) string { return w.cfg.Kafka.DeadLetters }, "cleanup.policy", "compact", "delete"},
		"small output":       {func(w *deployment) string { return w.cfg.Kafka.Notifications }, "max.message.bytes", "300", "1048588"},
		"small progress":     {func(w *deployment) string { return w.cfg.Kafka.Progress }, "max.message.bytes", "100", "1048588"},
		"replicas":           {func(w *deployment) string { return w.cfg.Kafka.Notifications }, "min.insync.replicas", "2", "1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 5)})
			w.kafka.Configure(c.topic(w), c.setting, c.value)
			names := func(err error) error {
				for _, want := range []string{"kafka-configs.sh", "--entity-name " + c.topic(w), c.setting} {
					if err == nil || !strings.Contains(err.Error(), want) {
						return fmt.Errorf("%q is not in: %w", want, err)
					}
				}
				return nil
			}
			_, err := takeover.CheckPreconditions(t.Context(), w.cfg.Config, precondition.AtSetup)
			if _, ok := errors.AsType[*halt.Error](err); !ok || names(err) != nil {
				t.Errorf("setup: %v", err)
			}
			svc := New(w.cfg, w.store, w.barrier)
			svc.unmetPatience = time.Nanosecond
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := svc.Run(ctx); names(err) != nil {
				t.Errorf("run: %v", err)
			}
			w.kafka.Configure(c.topic(w), c.setting, c.mended)
			w.start()
			w.produce(0, encodeCampaign(w.campaign("c", "r1")))
			w.expect(map[string][]string{"c": w.subs["r1"]})
		})
	}
}

// The next takeover notices a progress topic whose policy has changed while the daemon
// runs.
func TestTakeoverSeesThePolicy(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 5)})
	svc := New(w.cfg, w.store, w.barrier)
	svc.unmetPatience = time.Nanosecond
	ended := make(chan error, 1)
	go func() { ended <- svc.Run(t.Context()) }()
	w.produce(0, encodeCampaign(w.campaign("c", "r1")))
	w.expect(map[string][]string{"c": w.subs["r1"]})
	w.kafka.Configure(w.cfg.Kafka.Progress, "cleanup.policy", "delete")
	w.db.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'dinnerbell % lane 0 %' AND datname = current_database()`)
	w.produce(0, encodeCampaign(w.campaign("c2", "r1")))
	select {
	case err := <-ended:
		if halted, ok := errors.AsType[*halt.Error](err); !ok || halted.Lane != 0 || !strings.Contains(halted.Hint, "cleanup.policy=compact") {
			t.Errorf("the service ended with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the lane goes on with a progress topic that is not compacted")
	}
}

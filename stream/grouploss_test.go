package stream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"dinnerbell/internal/testenv/envtest"
)

// refuseGroup makes a broker refuse each request about a consumer group while refused is
// set, as brokers do without the right Read on the group.
func refuseGroup(broker *kfake.Cluster, refused *atomic.Bool) {
	code := kerr.GroupAuthorizationFailed.Code
	for _, key := range []kmsg.Key{kmsg.Heartbeat, kmsg.JoinGroup, kmsg.SyncGroup} {
		broker.ControlKey(int16(key), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
			broker.KeepControl()
			if !refused.Load() {
				return nil, nil, false //nolint:nilnil // so kfake answers itself
			}
			resp := kreq.ResponseKind()
			switch r := resp.(type) {
			case *kmsg.HeartbeatResponse:
				r.ErrorCode = code
			case *kmsg.JoinGroupResponse:
				r.ErrorCode = code
			case *kmsg.SyncGroupResponse:
				r.ErrorCode = code
			}
			return resp, nil, true
		})
	}
}

// newGroupDeployment returns a deployment on a broker that refuses the consumer group while
// the returned flag is set.
func newGroupDeployment(t *testing.T, subs map[string][]string) (*deployment, *atomic.Bool) {
	t.Helper()
	if envtest.RealKafka() {
		t.Skip("it has a broker of its own")
	}
	w := newDeployment(t, 1, subs)
	broker, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(broker.Close)
	w.moveTo(t, broker.ListenAddrs()...)
	w.cfg.Kafka.Principal = "User:bell"
	refused := &atomic.Bool{}
	refuseGroup(broker, refused)
	return w, refused
}

// namesGroupRight checks that a text names the missing right on the group with the line
// that grants it, and no other daemon.
func (w *deployment) namesGroupRight(what, text string) error {
	for _, want := range []string{"consumer group " + w.cfg.Kafka.Group + ": User:bell lacks the right Read", "--operation Read --group " + w.cfg.Kafka.Group} {
		if !strings.Contains(text, want) {
			return fmt.Errorf("%s does not name %q: %q", what, want, text)
		}
	}
	if strings.Contains(text, "another daemon") {
		return fmt.Errorf("%s speaks of another daemon: %q", what, text)
	}
	return nil
}

// A daemon that loses the right on its group loses its lanes, and nobody else gets them.
// Status, the log, and a replay name the right, and all goes on once it is granted.
func TestLanesLostWithTheRightOnTheGroup(t *testing.T) {
	t.Parallel()
	w, refused := newGroupDeployment(t, map[string][]string{"r1": {"a"}})
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("c", "r1")))
	w.expect(map[string][]string{"c": {"a"}})
	refused.Store(true)
	envtest.Until(t, patience, func() error {
		if s := svc.Status(); len(s.Lanes) > 0 {
			return fmt.Errorf("the lane is not lost: %+v", s.Lanes)
		}
		return nil
	})
	for _, req := range []ReplayRequest{{}, {DryRun: true}} { // at once, and before the error of the group has come
		r, err := svc.Replay(t.Context(), req, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.namesGroupRight("replay", r.Lanes[0].NotCovered); err != nil {
			t.Error(err)
		}
	}
	envtest.Until(t, patience, func() error { return w.namesGroupRight("status", svc.Status().LastError) })
	refused.Store(false)
	w.awaitReady(svc)
	if got := w.replayAll(svc, ReplayRequest{}); got.Have != 1 {
		t.Errorf("replay, with the right: %+v", got)
	}
}

// The lane is lost in the middle of a replay.
func TestReplayWhoseLaneIsLostWithTheRightOnTheGroup(t *testing.T) {
	t.Parallel()
	all := clients("0000", 10_000)
	w, refused := newGroupDeployment(t, map[string][]string{"r1": all[:10]})
	w.cfg.StepClients = 50
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("c", "r1")))
	w.expect(map[string][]string{"c": all[:10]})
	w.subscribe(map[string][]string{"r1": all})
	w.slowSteps("0.05")
	ended := make(chan error, 1)
	go func() {
		r, err := svc.Replay(t.Context(), ReplayRequest{}, nil)
		if err == nil {
			err = w.namesGroupRight("replay", r.Lanes[0].NotCovered)
		}
		ended <- err
	}()
	w.decided(svc, 100)
	refused.Store(true)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	refused.Store(false)
}

// The service ends in the middle of a replay: nobody was given the lane.
func TestReplayOfAServiceThatEnds(t *testing.T) {
	t.Parallel()
	all := clients("0000", 10_000)
	w := newDeployment(t, 1, map[string][]string{"r1": all})
	w.cfg.StepClients = 50
	svc, stop := w.start()
	w.produce(0, encodeCampaign(w.campaign("c", "r1")))
	w.slowSteps("0.05")
	w.decided(svc, 100)
	ended := make(chan error, 1)
	go func() {
		r, err := svc.Replay(t.Context(), ReplayRequest{}, nil)
		if err == nil && !strings.Contains(r.Lanes[0].NotCovered, "the daemon is being stopped") {
			err = fmt.Errorf("not covered: %q", r.Lanes[0].NotCovered)
		}
		ended <- err
	}()
	envtest.Until(t, patience, func() error {
		svc.mu.Lock()
		defer svc.mu.Unlock()
		if svc.lanes[0].lane.replay.Load() == nil {
			return fmt.Errorf("the replay has not begun")
		}
		return nil
	})
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// The caller leaves while a replay waits for the group's error: its end is no reason of a
// lane.
func TestReplayThatEndsBeforeTheGroupsErrorIsKnown(t *testing.T) {
	t.Parallel()
	svc := New(Config{}, nil, noBarrier{})
	svc.beginGroupLoss()
	r := &replay{svc: svc, report: &ReplayReport{Lanes: []ReplayLane{{}}}, ranges: []laneRange{{until: 1}}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.replayRange(ctx, nil); !errors.Is(err, context.Canceled) || r.report.Lanes[0].NotCovered != "" {
		t.Errorf("error %v, not covered: %q", err, r.report.Lanes[0].NotCovered)
	}
}

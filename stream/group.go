package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/halt"
	"dinnerbell/stream/takeover"
	"dinnerbell/stream/topic"
)

// joinGroup makes the client of the consumer group. The client fetches nothing: each
// lane has its own. The process is a static member (KIP-345), so that after a
// restart the group hands back the same lanes at once.
func (s *Service) joinGroup(ctx context.Context) (*kgo.Client, error) {
	client, err := s.cfg.Kafka.NewClient(
		kgo.ConsumerGroup(s.cfg.Kafka.Group),
		kgo.InstanceID(s.cfg.Kafka.InstanceID),
		kgo.ConsumeTopics(s.cfg.Kafka.Campaigns),
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.SessionTimeout(topic.SessionTimeout),
		kgo.RebalanceTimeout(s.cfg.DrainTimeout+topic.SessionTimeout), // a lane that is taken away drains first
		kgo.HeartbeatInterval(topic.SessionTimeout/10),
		kgo.MetadataMaxAge(time.Minute), // new partitions are seen within it
		kgo.DisableAutoCommit(),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, m map[string][]int32) {
			s.startLanes(ctx, m[s.cfg.Kafka.Campaigns])
		}),
		kgo.OnPartitionsRevoked(func(_ context.Context, _ *kgo.Client, m map[string][]int32) {
			s.stopLanes(m[s.cfg.Kafka.Campaigns], laneEnding{given: true})
		}),
		kgo.OnPartitionsLost(func(_ context.Context, _ *kgo.Client, m map[string][]int32) {
			s.stopLanes(m[s.cfg.Kafka.Campaigns], laneEnding{loss: s.beginGroupLoss()})
		}),
	)
	if err != nil {
		return nil, err
	}
	client.PauseFetchTopics(s.cfg.Kafka.Campaigns)
	return client, nil
}

// watchGroup polls the group's client for errors; it never returns records.
func (s *Service) watchGroup(ctx context.Context, client *kgo.Client) error {
	for {
		fetches := client.PollFetches(ctx)
		if fetches.IsClientClosed() || ctx.Err() != nil {
			return nil //nolint:nilerr // an orderly end
		}
		for _, e := range fetches.Errors() {
			err := s.cfg.Kafka.ExplainGroupDenied(s.cfg.Kafka.ExplainDenied(e.Err, client, "Read", s.cfg.Kafka.Campaigns), client)
			s.noteGroupError(err)
			if errors.Is(err, kerr.FencedInstanceID) {
				return &halt.Error{Part: halt.Stream, Lane: halt.AllLanes, What: fmt.Sprintf("another daemon has joined group %s as %q", s.cfg.Kafka.Group, s.cfg.Kafka.InstanceID),
					Hint: "stop one of the two, or give each its own source.slot"}
			}
			attributes := []any{"group", s.cfg.Kafka.Group, "error", err}
			if !lacksRight(err) { // else the error says what grants it
				attributes = append(attributes, "to_mend", topic.MendConnection(err))
			}
			s.cfg.Logger.Warn("cannot take part in the consumer group, trying again", attributes...)
		}
	}
}

// watchJoin shows in status and log why the group's first answer takes long.
func (s *Service) watchJoin(ctx context.Context, client *kgo.Client) error {
	var step takeover.PhaseWatch
	step.Enter("join consumer group "+s.cfg.Kafka.Group, func(ctx context.Context) error {
		return topic.GroupCoordinator(s.cfg.Kafka.Group).Diagnose(ctx, s.cfg.Kafka, client)
	})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer step.Watch(ctx, s.stepPatience, func(name string, why error) {
		s.mu.Lock()
		assigned := s.assigned
		if !assigned && !errors.Is(why, takeover.ErrNoAnswer) {
			s.lastError = fmt.Sprintf("%s: %v", name, why)
			s.cfg.Logger.Warn("the consumer group has not answered yet", "group", s.cfg.Kafka.Group, "error", why, "to_mend", topic.MendConnection(why))
		}
		s.mu.Unlock()
		if assigned {
			cancel()
		}
	})()
	<-ctx.Done()
	return nil
}

// groupLoss is the loss of all lanes because of an error of the consumer group. Nobody else
// need have got the lanes.
type groupLoss struct {
	err   error         // the newest; nil: not known yet. Service.mu guards it
	known chan struct{} // closed once err is known, or the group has assigned lanes again
}

// beginGroupLoss notes that the group has ended this daemon's membership. The client
// delivers the group's error after that, to watchGroup.
func (s *Service) beginGroupLoss() *groupLoss {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.loss == nil { // else an attempt to join again has failed
		s.loss = &groupLoss{known: make(chan struct{})}
		s.lastError = "the consumer group has ended this daemon's membership, and the lanes are lost; joining again"
	}
	return s.loss
}

// noteGroupError shows an error of the group's client in the status, and makes it the
// reason of a loss of the lanes.
func (s *Service) noteGroupError(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastError = err.Error()
	if _, ended := errors.AsType[*kgo.ErrGroupSession](err); !ended || s.loss == nil {
		return
	}
	if s.loss.err == nil {
		close(s.loss.known)
	}
	s.loss.err = err
}

// endGroupLossLocked notes that the group has assigned lanes again.
func (s *Service) endGroupLossLocked() {
	if s.loss != nil && s.loss.err == nil {
		close(s.loss.known)
	}
	s.loss = nil
}

// explainNotOwned returns why this daemon does not have a lane.
func (s *Service) explainNotOwned(ctx context.Context) error {
	s.mu.Lock()
	loss, assigned := s.loss, s.assigned
	s.mu.Unlock()
	switch {
	case loss != nil:
		return s.explainLoss(ctx, loss)
	case !assigned:
		return errors.New("the consumer group has not assigned the lanes yet; see `dinnerbell status`, then run this again")
	}
	return errors.New("another daemon of the group has it: run the same command there")
}

// explainLoss returns why the lanes were lost, once the group's error is known. It returns
// ctx's error if ctx ends before that.
func (s *Service) explainLoss(ctx context.Context, loss *groupLoss) error {
	select {
	case <-loss.known:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if loss.err == nil {
		return errors.New("the consumer group had ended this daemon's membership; run this again")
	}
	return fmt.Errorf("the consumer group has ended this daemon's membership: %w; then run this again", loss.err)
}

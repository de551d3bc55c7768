package stream

import (
	"context"
	"slices"
	"time"

	"dinnerbell/internal/halt"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/topic"
)

const (
	// reachEvery is how often both systems are asked while lanes do not run.
	reachEvery = 3 * time.Second
	// reachPatience bounds one question.
	reachPatience = 3 * time.Second
)

// Unreached are the systems that do not answer, with the error of the last attempt; ""
// for one that answers, and while nobody asks because all lanes run.
type Unreached struct{ Sink, Kafka string }

// watchReach asks, while lanes that should run do not, whether Postgres and Kafka
// answer, until ctx ends. The lanes name only the system that they ask first: with both
// dead an operator would mend one, and learn of the other then.
func (s *Service) watchReach(ctx context.Context) {
	tick := time.NewTicker(s.reachEvery)
	defer tick.Stop()
	for {
		var found Unreached
		if st := s.Status(); st.isHeldUp() {
			found = s.askSystems(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		s.mu.Lock()
		s.unreached = found
		s.mu.Unlock()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// isHeldUp reports whether an error keeps lanes from running that is no halt.
func (s *Status) isHeldUp() bool {
	return len(s.Lanes) == 0 && s.LastError != "" || slices.ContainsFunc(s.Lanes, func(l LaneStatus) bool {
		return l.LastError != "" && (l.State == LaneTakeover || l.State == LaneStopped)
	})
}

// askSystems asks both systems at once.
func (s *Service) askSystems(ctx context.Context) Unreached {
	ctx, cancel := context.WithTimeout(ctx, reachPatience)
	defer cancel()
	kafka := make(chan string, 1)
	go func() { kafka <- errorText(s.askKafka(ctx)) }()
	return Unreached{Sink: errorText(s.askSink(ctx)), Kafka: <-kafka}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (s *Service) askSink(ctx context.Context) error {
	conn, err := s.cfg.Sink.Connect(ctx, "dinnerbell reach")
	if err != nil {
		return err
	}
	sink.CloseConn(conn)
	return nil
}

func (s *Service) askKafka(ctx context.Context) error {
	client, err := s.cfg.Kafka.NewClient()
	if err != nil {
		return err
	}
	defer topic.CloseClient(client, s.cfg.Logger, halt.AllLanes)
	return client.Ping(ctx)
}

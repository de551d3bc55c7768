package stream

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	// inputWatch is how often the ends of the campaigns topic are read.
	inputWatch = 2 * time.Second
	// inputPatience is how long an open transaction may hold campaigns back before
	// that is shown. A producer's ordinary transactions are shorter.
	inputPatience = 5 * time.Second
)

// heldInput is a lane's partition of which not everything may be read: somebody's
// transaction is open, and what is behind its first record is not delivered to
// anybody who reads committed records.
type heldInput struct {
	stable int64     // the last stable offset
	since  time.Time // it stands there; zero: nothing is held
	shown  bool
}

// watchInput notices transactions of other producers that hang on the campaigns
// topic, until ctx ends. Nothing else shows that campaigns wait for them.
func (s *Service) watchInput(ctx context.Context, client *kgo.Client) error {
	adm := kadm.NewClient(client)
	tick := time.NewTicker(inputWatch)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		topic := s.cfg.Kafka.Campaigns
		stable, err := bounded(ctx, s.cfg.SinkTimeout, func(ctx context.Context) (kadm.ListedOffsets, error) { return adm.ListCommittedOffsets(ctx, topic) })
		if err != nil {
			continue // the lanes say what is wrong
		}
		ends, err := bounded(ctx, s.cfg.SinkTimeout, func(ctx context.Context) (kadm.ListedOffsets, error) { return adm.ListEndOffsets(ctx, topic) })
		if err != nil {
			continue
		}
		s.mu.Lock()
		lanes := make([]*lane, 0, len(s.lanes))
		for _, h := range s.lanes {
			lanes = append(lanes, h.lane)
		}
		s.mu.Unlock()
		for _, l := range lanes {
			at, ok := stable.Lookup(topic, l.id)
			end, ok2 := ends.Lookup(topic, l.id)
			if ok && ok2 && at.Err == nil && end.Err == nil {
				l.noteHeldInput(at.Offset, end.Offset, time.Now())
			}
		}
	}
}

// noteHeldInput notes how far a lane's partition can be read, and logs a transaction
// that holds it back, once, and its end.
func (l *lane) noteHeldInput(stable, end int64, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := &l.held
	if stable >= end || stable != h.stable {
		if h.shown {
			l.svc.cfg.Logger.Info("the transaction that held campaigns back has ended", "lane", l.id, "offset", h.stable)
		}
		*h = heldInput{stable: stable}
	}
	if stable >= end {
		return
	}
	if h.since.IsZero() {
		h.since = now
	}
	if !h.shown && now.Sub(h.since) >= l.svc.inputPatience {
		h.shown = true
		l.svc.cfg.Logger.Warn("an open transaction of another producer holds campaigns back", "lane", l.id, "offset", stable, "waiting", end-stable,
			"to_mend", "end it, or wait for its transaction.timeout.ms; kafka-transactions.sh find-hanging names it")
	}
}

// describe says what holds the lane's campaigns back; "" if nothing does.
func (h *heldInput) describe(topic string, partition int32) string {
	if !h.shown {
		return ""
	}
	return fmt.Sprintf("an open transaction of another producer on %s/%d holds back what is behind offset %d, since %s; end it, or wait for its transaction.timeout.ms (kafka-transactions.sh find-hanging names it)",
		topic, partition, h.stable, h.since.UTC().Format(time.RFC3339))
}

package stream

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
)

// A lane halts where Postgres and Kafka contradict each other: one of them was
// rolled back, cut or made anew behind our progress. Going on would repeat or
// miss notifications, and which of the two is for the operator to choose
// (resolve.go). These checks are step 4 of TAKEOVER.

// halt makes the error of a contradiction that `dinnerbell resolve` can settle.
func (s *session) halt(what string) *HaltError {
	return &HaltError{Lane: s.lane.id, What: what, Hint: fmt.Sprintf(
		"put back what was lost and start again; or stop every daemon and choose: `dinnerbell resolve --lane %d --accept-repeats` or `dinnerbell resolve --lane %d --accept-missing`",
		s.lane.id, s.lane.id)}
}

// checkTopics halts where the cluster or a topic is another one than the lane
// counts in: an old offset must not be applied to a new log.
func (s *session) checkTopics() error {
	if err := s.checkSinkTopics(); err != nil {
		return err
	}
	return s.checkInputTopic()
}

func (s *session) checkSinkTopics() error {
	for _, c := range []struct{ what, have, want string }{
		{"the Kafka cluster is another one", s.ids.cluster, s.known.cluster},
		{"topic " + s.cfg.Kafka.Notifications + " was deleted and made again", s.ids.notifications, s.known.notifications},
		{"topic " + s.cfg.Kafka.Progress + " was deleted and made again", s.ids.progressText, s.known.progress},
	} {
		if c.have != c.want {
			return s.halt(fmt.Sprintf("%s: its id is %s, the lane counts in %s; what the former one held may be missing to its consumers", c.what, c.have, c.want))
		}
	}
	return nil
}

func (s *session) checkInputTopic() error {
	if s.newInput() {
		return s.halt(fmt.Sprintf("topic %s was deleted and made again: its id is %s, the lane counts in %s; campaigns that were not read are gone, and offset %d means nothing there",
			s.cfg.Kafka.Campaigns, s.ids.campaigns, s.known.campaigns, s.nextOffset))
	}
	return nil
}

// newInput tells that the lane's offsets are of another log.
func (s *session) newInput() bool {
	return s.ids.campaigns != s.known.campaigns || s.ids.cluster != s.known.cluster
}

// checkSinks compares K and P, and Kafka with what it had acknowledged.
func (s *session) checkSinks(ctx context.Context) error {
	if s.progressLost != nil {
		return s.halt(fmt.Sprintf("%v. Steps up to %d are decided, and how many of those after %d are shipped is not known", s.progressLost, s.seq, s.shippedBefore))
	}
	k := s.shipped.Load()
	if k > s.seq {
		return s.halt(fmt.Sprintf("Postgres was rolled back: topic %s says that steps up to %d are shipped, %s says that only %d were decided. The feedback rows of the steps between are gone; their records in topic %s are not",
			s.cfg.Kafka.Progress, k, s.t.lane, s.seq, s.cfg.Kafka.Notifications))
	}
	if k < s.shippedBefore {
		return s.halt(fmt.Sprintf("Kafka was rolled back: topic %s says that steps up to %d are shipped, it had said %d. Records of topic %s may be gone with it",
			s.cfg.Kafka.Progress, k, s.shippedBefore, s.cfg.Kafka.Notifications))
	}
	offsets, err := kadm.NewClient(s.client).ListEndOffsets(ctx, s.cfg.Kafka.Notifications)
	if err != nil {
		return fmt.Errorf("list offsets of topic %s: %w", s.cfg.Kafka.Notifications, err)
	}
	for p, end := range s.topicEnds {
		o, ok := offsets.Lookup(s.cfg.Kafka.Notifications, int32(p))
		if !ok || o.Err != nil {
			return fmt.Errorf("list offsets of %s/%d: %w", s.cfg.Kafka.Notifications, p, errors.Join(o.Err))
		}
		if o.Offset < end {
			return s.halt(fmt.Sprintf("Kafka was rolled back: %s/%d ends at offset %d, it had reached %d; notifications are gone from it", s.cfg.Kafka.Notifications, p, o.Offset, end))
		}
	}
	return nil
}

// loadOutbox decodes what is decided and not shipped: all of (K, P], or a halt.
func (s *session) loadOutbox(ctx context.Context, k int64) ([]*payload, error) {
	rows, err := s.sink.Query(ctx, `SELECT seq, payload FROM `+s.t.outbox+` WHERE lane = $1 AND seq > $2 ORDER BY seq`, s.lane.id, k)
	if err != nil {
		return nil, fmt.Errorf("read outbox of lane %d: %w", s.lane.id, err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*payload, error) {
		var seq int64
		var b []byte
		if err := row.Scan(&seq, &b); err != nil {
			return nil, err
		}
		return decodePayload(seq, b)
	})
	if errors.Is(err, ErrOutboxCorrupt) {
		return nil, s.halt(fmt.Sprintf("%s: %v", s.t.outbox, err))
	}
	if err != nil {
		return nil, fmt.Errorf("read outbox of lane %d: %w", s.lane.id, err)
	}
	for i, p := range out {
		if p.seq != k+1+int64(i) {
			return nil, s.outboxGap(k, k+1+int64(i))
		}
	}
	if last := k + int64(len(out)); last < s.seq {
		return nil, s.outboxGap(k, last+1)
	}
	return out, nil
}

func (s *session) outboxGap(k, missing int64) *HaltError {
	return s.halt(fmt.Sprintf("Kafka was rolled back: topic %s says that steps up to %d are shipped, %d are decided, and %s no longer holds step %d. Its notifications may be missing in topic %s",
		s.cfg.Kafka.Progress, k, s.seq, s.t.outbox, missing, s.cfg.Kafka.Notifications))
}

// checkInput halts where the input no longer holds what was not read yet: a
// campaign that vanished is never jumped over in silence.
func (s *session) checkInput(ctx context.Context) error {
	start, end, err := s.inputRange(ctx)
	if err != nil {
		return err
	}
	if s.nextOffset < start || s.nextOffset > end {
		return s.halt(fmt.Sprintf("topic %s partition %d holds offsets %d to %d, the lane reads on at %d: campaigns were deleted before they were read, or the log was cut", s.cfg.Kafka.Campaigns, s.lane.id, start, end, s.nextOffset))
	}
	return nil
}

// inputRange is the lane's partition of the campaigns topic: first offset, and
// one more than the last.
func (s *session) inputRange(ctx context.Context) (start, end int64, err error) {
	adm := kadm.NewClient(s.client)
	first, err := listOffset(ctx, s.cfg.Kafka.Campaigns, s.lane.id, adm.ListStartOffsets)
	if err != nil {
		return 0, 0, err
	}
	last, err := listOffset(ctx, s.cfg.Kafka.Campaigns, s.lane.id, adm.ListEndOffsets)
	if err != nil {
		return 0, 0, err
	}
	return first.Offset, last.Offset, nil
}

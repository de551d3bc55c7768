package stream

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"

	"dinnerbell/internal/halt"
	"dinnerbell/stream/record"
	"dinnerbell/stream/topic"
)

// A lane halts where Postgres and Kafka contradict each other: one of them was rolled
// back, cut or made anew behind our progress. Going on would repeat or miss
// notifications; the operator chooses which (`dinnerbell resolve`). These checks are
// step 4 of TAKEOVER.

// newHalt makes the halt of a contradiction that `dinnerbell resolve` can end.
func (c *claim) newHalt(what string) *halt.Error {
	return &halt.Error{Part: halt.Stream, Lane: c.lane, What: what, Hint: fmt.Sprintf(
		"put back what was lost and start again; or stop every daemon and choose: `dinnerbell resolve --lane %d --accept-repeats` or `dinnerbell resolve --lane %d --accept-missing`",
		c.lane, c.lane)}
}

// checkTopics halts if the cluster or a topic is not the one in which the lane counts:
// an old offset must not be applied to a new log.
func (c *claim) checkTopics() error {
	if err := c.checkSinkTopics(); err != nil {
		return err
	}
	return c.checkInputTopic()
}

func (c *claim) checkSinkTopics() error {
	for _, id := range []struct{ what, have, want string }{
		{"the Kafka cluster is another one", c.ids.Cluster, c.expected.Cluster},
		{"topic " + c.cfg.Kafka.Notifications + " was deleted and made again", c.ids.Notifications, c.expected.Notifications},
		{"topic " + c.cfg.Kafka.Progress + " was deleted and made again", c.ids.Progress, c.expected.Progress},
	} {
		if id.have != id.want {
			return c.newHalt(fmt.Sprintf("%s: its id is %s, the lane counts in %s; what the former one held may be missing to its consumers", id.what, id.have, id.want))
		}
	}
	return nil
}

func (c *claim) checkInputTopic() error {
	if c.hasNewInput() {
		return c.newHalt(fmt.Sprintf("topic %s was deleted and made again: its id is %s, the lane counts in %s; campaigns that were not read are gone, and offset %d means nothing there",
			c.cfg.Kafka.Campaigns, c.ids.Campaigns, c.expected.Campaigns, c.nextOffset))
	}
	return nil
}

// hasNewInput reports whether the lane's offsets belong to another log.
func (c *claim) hasNewInput() bool {
	return c.ids.Campaigns != c.expected.Campaigns || c.ids.Cluster != c.expected.Cluster
}

// compareSinks compares K with P, and the ends of the notifications topic with those
// that Kafka had acknowledged.
func (c *claim) compareSinks(ctx context.Context) error {
	if err := c.compareSteps(); err != nil {
		return err
	}
	notifications := c.cfg.Kafka.Notifications
	offsets, err := kadm.NewClient(c.client).ListEndOffsets(ctx, notifications)
	if err != nil {
		return fmt.Errorf("list offsets of topic %s: %w", notifications, err)
	}
	ends := make([]int64, len(c.endsBefore))
	for p := range ends {
		o, ok := offsets.Lookup(notifications, int32(p))
		if !ok || o.Err != nil {
			return fmt.Errorf("list offsets of %s/%d: %w", notifications, p, errors.Join(o.Err))
		}
		ends[p] = o.Offset
	}
	return c.compareEnds(ends)
}

// compareSteps halts if K is unknown, above P, or below a K that Kafka had reported.
func (c *claim) compareSteps() error {
	if c.progressLost != nil {
		return c.newHalt(fmt.Sprintf("%v. Steps up to %d are decided, and how many of those after %d are shipped is not known", c.progressLost, c.seq, c.shippedBefore))
	}
	k := c.shipped
	if k > c.seq {
		return c.newHalt(fmt.Sprintf("Postgres was rolled back: topic %s says that steps up to %d are shipped, %s says that only %d were decided. The feedback rows of the steps between are gone; their records in topic %s are not",
			c.cfg.Kafka.Progress, k, c.t.Lane, c.seq, c.cfg.Kafka.Notifications))
	}
	if k < c.shippedBefore {
		return c.newHalt(fmt.Sprintf("Kafka was rolled back: topic %s says that steps up to %d are shipped, it had said %d. Records of topic %s may be gone with it",
			c.cfg.Kafka.Progress, k, c.shippedBefore, c.cfg.Kafka.Notifications))
	}
	return nil
}

// compareEnds halts if a partition of the notifications topic ends before the end that
// Kafka had acknowledged. ends has the present ones, by partition.
func (c *claim) compareEnds(ends []int64) error {
	for p, before := range c.endsBefore {
		if ends[p] < before {
			return c.newHalt(fmt.Sprintf("Kafka was rolled back: %s/%d ends at offset %d, it had reached %d; notifications are gone from it", c.cfg.Kafka.Notifications, p, ends[p], before))
		}
	}
	return nil
}

// loadOutbox reads and decodes the steps that are decided and not shipped: all of
// (K, P], or a halt.
func (c *claim) loadOutbox(ctx context.Context, k int64) ([]*record.Payload, error) {
	rows, err := c.conn.Query(ctx, `SELECT seq, payload FROM `+c.t.Outbox+` WHERE lane = $1 AND seq > $2 ORDER BY seq`, c.lane, k)
	if err != nil {
		return nil, fmt.Errorf("read outbox of lane %d: %w", c.lane, err)
	}
	out, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*record.Payload, error) {
		var seq int64
		var b []byte
		if err := row.Scan(&seq, &b); err != nil {
			return nil, err
		}
		return record.DecodePayload(seq, b)
	})
	if errors.Is(err, record.ErrCorrupt) {
		return nil, c.newHalt(fmt.Sprintf("%s: %v", c.t.Outbox, err))
	}
	if err != nil {
		return nil, fmt.Errorf("read outbox of lane %d: %w", c.lane, err)
	}
	return out, c.checkContiguous(k, out)
}

// checkContiguous halts if the outbox does not hold all of (K, P].
func (c *claim) checkContiguous(k int64, pending []*record.Payload) error {
	for i, p := range pending {
		if p.Seq != k+1+int64(i) {
			return c.outboxGapHalt(k, k+1+int64(i))
		}
	}
	if last := k + int64(len(pending)); last < c.seq {
		return c.outboxGapHalt(k, last+1)
	}
	return nil
}

func (c *claim) outboxGapHalt(k, missing int64) *halt.Error {
	return c.newHalt(fmt.Sprintf("Kafka was rolled back: topic %s says that steps up to %d are shipped, %d are decided, and %s no longer holds step %d. Its notifications may be missing in topic %s",
		c.cfg.Kafka.Progress, k, c.seq, c.t.Outbox, missing, c.cfg.Kafka.Notifications))
}

// checkInput halts if campaigns were deleted from the input before they were read: a
// lost campaign is never skipped in silence.
func (c *claim) checkInput(ctx context.Context) error {
	start, end, err := c.readInputRange(ctx)
	if err != nil {
		return err
	}
	if c.nextOffset < start || c.nextOffset > end {
		return c.newHalt(fmt.Sprintf("topic %s partition %d holds offsets %d to %d, the lane reads on at %d: campaigns were deleted before they were read, or the log was cut", c.cfg.Kafka.Campaigns, c.lane, start, end, c.nextOffset))
	}
	return nil
}

// readInputRange returns the offsets of the lane's partition of the campaigns topic: the
// first one, and one more than the last.
func (c *claim) readInputRange(ctx context.Context) (start, end int64, err error) {
	adm := kadm.NewClient(c.client)
	first, err := topic.ListOffset(ctx, c.cfg.Kafka.Campaigns, c.lane, adm.ListStartOffsets)
	if err != nil {
		return 0, 0, err
	}
	last, err := topic.ListOffset(ctx, c.cfg.Kafka.Campaigns, c.lane, adm.ListEndOffsets)
	if err != nil {
		return 0, 0, err
	}
	return first.Offset, last.Offset, nil
}

// checkSinkSide makes the checks of a TAKEOVER on the two sinks. It returns the first
// halt, or nil.
func (s *claim) checkSinkSide(ctx context.Context) error {
	if err := s.checkSinkTopics(); err != nil {
		return err
	}
	if err := s.compareSinks(ctx); err != nil {
		return err
	}
	_, err := s.loadOutbox(ctx, s.shipped)
	return err
}

// checkInputSide makes the checks of a TAKEOVER on the input.
func (s *claim) checkInputSide(ctx context.Context) error {
	if err := s.checkInputTopic(); err != nil {
		return err
	}
	return s.checkInput(ctx)
}

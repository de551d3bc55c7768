package takeover

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"

	"dinnerbell/internal/halt"
	"dinnerbell/stream/record"
	"dinnerbell/stream/topic/fetch"
)

// A lane halts where Postgres and Kafka contradict each other: one of them was rolled
// back, cut or made anew behind our progress. Going on would repeat or miss
// notifications; the operator chooses which (`dinnerbell resolve`). These checks are
// step 4 of TAKEOVER.

// newHalt makes the halt of a contradiction that `dinnerbell resolve` can end.
func (c *Claim) newHalt(what string) *halt.Error {
	return &halt.Error{Part: halt.Stream, Lane: c.Lane, What: what, Hint: fmt.Sprintf(
		"put back what was lost and start again; or stop every daemon and choose: `dinnerbell resolve --lane %d --accept-repeats` or `dinnerbell resolve --lane %d --accept-missing`",
		c.Lane, c.Lane)}
}

// checkTopics halts if the cluster or a topic is not the one in which the lane counts:
// an old offset must not be applied to a new log.
func (c *Claim) checkTopics() error {
	if err := c.checkSinkTopics(); err != nil {
		return err
	}
	return c.checkInputTopic()
}

func (c *Claim) checkSinkTopics() error {
	for _, id := range []struct{ what, have, want string }{
		{"the Kafka cluster is another one", c.IDs.Cluster, c.expected.Cluster},
		{"topic " + c.Config.Kafka.Notifications + " was deleted and made again", c.IDs.Notifications, c.expected.Notifications},
		{"topic " + c.Config.Kafka.Progress + " was deleted and made again", c.IDs.Progress, c.expected.Progress},
	} {
		if id.have != id.want {
			return c.newHalt(fmt.Sprintf("%s: its id is %s, the lane counts in %s; what the former one held may be missing to its consumers", id.what, id.have, id.want))
		}
	}
	return nil
}

func (c *Claim) checkInputTopic() error {
	if c.HasNewInput() {
		return c.newHalt(fmt.Sprintf("topic %s was deleted and made again: its id is %s, the lane counts in %s; campaigns that were not read are gone, and offset %d means nothing there",
			c.Config.Kafka.Campaigns, c.IDs.Campaigns, c.expected.Campaigns, c.NextOffset))
	}
	return nil
}

// HasNewInput reports whether the lane's offsets belong to another log.
func (c *Claim) HasNewInput() bool {
	return c.IDs.Campaigns != c.expected.Campaigns || c.IDs.Cluster != c.expected.Cluster
}

// compareSinks compares K with P, and the ends of the notifications topic with those
// that Kafka had acknowledged.
func (c *Claim) compareSinks(ctx context.Context) error {
	if err := c.compareSteps(); err != nil {
		return err
	}
	notifications := c.Config.Kafka.Notifications
	offsets, err := kadm.NewClient(c.Client).ListEndOffsets(ctx, notifications)
	if err != nil {
		return fmt.Errorf("list offsets of topic %s: %w", notifications, c.Config.Kafka.ExplainDenied(err, c.Client, "Write", notifications))
	}
	ends := make([]int64, len(c.EndsBefore))
	for p := range ends {
		o, ok := offsets.Lookup(notifications, int32(p))
		if !ok || o.Err != nil {
			return fmt.Errorf("list offsets of %s/%d: %w", notifications, p, c.Config.Kafka.ExplainDenied(errors.Join(o.Err), c.Client, "Write", notifications))
		}
		ends[p] = o.Offset
	}
	return c.compareEnds(ends)
}

// compareSteps halts if K is unknown, above P, or below a K that Kafka had reported.
func (c *Claim) compareSteps() error {
	if c.ProgressLost != nil {
		return c.newHalt(fmt.Sprintf("%v. Steps up to %d are decided, and how many of those after %d are shipped is not known", c.ProgressLost, c.Decided, c.ShippedBefore))
	}
	k := c.Shipped
	if k > c.Decided {
		return c.newHalt(fmt.Sprintf("Postgres was rolled back: topic %s says that steps up to %d are shipped, %s says that only %d were decided. The feedback rows of the steps between are gone; their records in topic %s are not",
			c.Config.Kafka.Progress, k, c.Tables.Lane, c.Decided, c.Config.Kafka.Notifications))
	}
	if k < c.ShippedBefore {
		return c.newHalt(fmt.Sprintf("Kafka was rolled back: topic %s says that steps up to %d are shipped, it had said %d. Records of topic %s may be gone with it",
			c.Config.Kafka.Progress, k, c.ShippedBefore, c.Config.Kafka.Notifications))
	}
	return nil
}

// compareEnds halts if a partition of the notifications topic ends before the end that
// Kafka had acknowledged. ends has the present ones, by partition.
func (c *Claim) compareEnds(ends []int64) error {
	for p, before := range c.EndsBefore {
		if ends[p] < before {
			return c.newHalt(fmt.Sprintf("Kafka was rolled back: %s/%d ends at offset %d, it had reached %d; notifications are gone from it", c.Config.Kafka.Notifications, p, ends[p], before))
		}
	}
	return nil
}

// loadOutbox reads and decodes the steps that are decided and not shipped: all of
// (K, P], or a halt.
func (c *Claim) loadOutbox(ctx context.Context, k int64) ([]*record.Payload, error) {
	out, err := c.Tables.ReadOutbox(ctx, c.Conn, c.Lane, k)
	if errors.Is(err, record.ErrCorrupt) {
		return nil, c.newHalt(err.Error())
	}
	if err != nil {
		return nil, fmt.Errorf("lane %d: %w", c.Lane, err)
	}
	return out, c.checkContiguous(k, out)
}

// checkContiguous halts if the outbox does not hold all of (K, P].
func (c *Claim) checkContiguous(k int64, pending []*record.Payload) error {
	for i, p := range pending {
		if p.Seq != k+1+int64(i) {
			return c.outboxGapHalt(k, k+1+int64(i))
		}
	}
	if last := k + int64(len(pending)); last < c.Decided {
		return c.outboxGapHalt(k, last+1)
	}
	return nil
}

func (c *Claim) outboxGapHalt(k, missing int64) *halt.Error {
	return c.newHalt(fmt.Sprintf("Kafka was rolled back: topic %s says that steps up to %d are shipped, %d are decided, and %s no longer holds step %d. Its notifications may be missing in topic %s",
		c.Config.Kafka.Progress, k, c.Decided, c.Tables.Outbox, missing, c.Config.Kafka.Notifications))
}

// checkInput halts if campaigns were deleted from the input before they were read: a
// lost campaign is never skipped in silence.
func (c *Claim) checkInput(ctx context.Context) error {
	start, end, err := c.ReadInputRange(ctx)
	if err != nil {
		return err
	}
	if c.NextOffset < start || c.NextOffset > end {
		return c.newHalt(fmt.Sprintf("topic %s partition %d holds offsets %d to %d, the lane reads on at %d: campaigns were deleted before they were read, or the log was cut", c.Config.Kafka.Campaigns, c.Lane, start, end, c.NextOffset))
	}
	return nil
}

// ReadInputRange returns the offsets of the lane's partition of the campaigns topic: the
// first one, and one more than the last.
func (c *Claim) ReadInputRange(ctx context.Context) (start, end int64, err error) {
	adm := kadm.NewClient(c.Client)
	first, err := fetch.ListOffset(ctx, c.Config.Kafka.Campaigns, c.Lane, adm.ListStartOffsets)
	if err != nil {
		return 0, 0, c.explainUnread(err, c.Config.Kafka.Campaigns)
	}
	last, err := fetch.ListOffset(ctx, c.Config.Kafka.Campaigns, c.Lane, adm.ListEndOffsets)
	if err != nil {
		return 0, 0, c.explainUnread(err, c.Config.Kafka.Campaigns)
	}
	return first.Offset, last.Offset, nil
}

// explainUnread adds to an error about a topic that may not be read what grants the right.
func (c *Claim) explainUnread(err error, topic string) error {
	return c.Config.Kafka.ExplainDenied(err, c.Client, "Read", topic)
}

// CheckSinks makes the checks of a TAKEOVER on the two sinks. It returns the first
// halt, or nil.
func (c *Claim) CheckSinks(ctx context.Context) error {
	if err := c.checkSinkTopics(); err != nil {
		return err
	}
	if err := c.compareSinks(ctx); err != nil {
		return err
	}
	_, err := c.loadOutbox(ctx, c.Shipped)
	return err
}

// CheckInput makes the checks of a TAKEOVER on the input.
func (c *Claim) CheckInput(ctx context.Context) error {
	if err := c.checkInputTopic(); err != nil {
		return err
	}
	return c.checkInput(ctx)
}

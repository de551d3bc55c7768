package topic

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/precondition"
	"dinnerbell/stream/topic/fetch"
)

// progressWindow is how many offsets before the end are read first. A shipment is one
// progress record and one commit marker, so the last committed record is almost always
// among them.
const progressWindow = 64

// ProgressLostError reports a progress partition that begins above offset 0 and holds
// no record, or in which another writer's record has replaced the lane's: the last
// shipped step is not known. It never stands for "no progress".
type ProgressLostError struct {
	topic     string
	partition int32
	start     int64
	foreign   int64 // offset of the other writer's record; -1: none
}

func (e *ProgressLostError) Error() string {
	if e.foreign >= 0 {
		return fmt.Sprintf("topic %s partition %d has, at offset %d, a record with the lane's key that dinnerbell has not written, and none of the lane's own: compaction has deleted the lane's progress; nobody else may write to the topic",
			e.topic, e.partition, e.foreign)
	}
	return fmt.Sprintf("topic %s partition %d begins at offset %d and holds no record: retention (cleanup.policy must be compact) or kafka-delete-records.sh has deleted the lane's progress",
		e.topic, e.partition, e.start)
}

// ReadProgress returns K, the last seq shipped on a lane: the seq of the last committed
// record of its progress partition, or 0 if the partition never had a record. It must
// run after the predecessor was fenced, when no transaction on the partition is open.
// It reads to the high watermark or fails: a short read is never "no progress".
// It skips records of other writers. Compaction deletes all records before the last one
// of their key together: where any record of the lane is left, its last one is. The
// error is a *ProgressLostError where records were deleted and none of the lane's is left.
func ReadProgress(ctx context.Context, p *fetch.PartitionReader) (int64, error) {
	adm, topic, partition := kadm.NewClient(p.Client), p.Topic, p.Partition
	start, err := fetch.ListOffset(ctx, topic, partition, adm.ListStartOffsets)
	if err != nil {
		return 0, err
	}
	end, err := fetch.ListOffset(ctx, topic, partition, adm.ListEndOffsets)
	if err != nil {
		return 0, err
	}
	for back := int64(progressWindow); ; back *= 16 {
		from := max(start.Offset, end.Offset-back)
		last, foreign := int64(-1), int64(-1)
		if err := p.ReadWhole(ctx, from, end.Offset, func(r *fetch.Record) error {
			if seq, ok := parseProgress(r); ok {
				last = seq
			} else if isProgressKey(r) {
				foreign = r.Offset
			}
			return nil
		}); err != nil {
			return 0, fmt.Errorf("read %s/%d: %w", topic, partition, err)
		}
		switch {
		case last >= 0:
			return last, nil
		case from > start.Offset:
		case start.Offset > 0 || foreign >= 0:
			return 0, &ProgressLostError{topic: topic, partition: partition, start: start.Offset, foreign: foreign}
		default:
			return 0, nil
		}
	}
}

// ExplainOpenTransaction adds to a short read the transaction that has stopped it, and the
// command that aborts it. A lane that has fenced its predecessor meets only transactions of
// other producers, and those whose end the brokers have lost. It returns every other error
// unchanged.
func (c Config) ExplainOpenTransaction(err error, client *kgo.Client, topic string, partition int32) error {
	return c.explainOpenTransaction(err, client, topic, partition,
		"what lies behind it cannot be read before it ends; it ends by itself after its transaction.timeout.ms, and is to be aborted only if its producer no longer runs")
}

// ExplainLostTransaction adds to a short read the lane's own transaction that has stopped
// it, why the lane cannot end it, and the command that aborts it.
func (c Config) ExplainLostTransaction(err, why error, client *kgo.Client, lane int32) error {
	return c.explainOpenTransaction(err, client, c.Progress, lane, fmt.Sprintf(
		"it is the lane's own, and the brokers have lost its end; the lane cannot end it: %v. An abort makes the lane send its notifications again, also those of other partitions, where the transaction may have been committed", why))
}

func (c Config) explainOpenTransaction(err error, client *kgo.Client, topic string, partition int32, effect string) error {
	short, ok := errors.AsType[*fetch.ShortReadError](err)
	if !ok || short.Stable >= short.End {
		return err
	}
	return fmt.Errorf("%w: %s", err, precondition.Finding{
		Object: fmt.Sprintf("topic %s, partition %d", topic, partition), Found: fmt.Sprintf("a transaction is open since offset %d", short.Stable), Effect: effect,
		Fix: fmt.Sprintf("kafka-transactions.sh --bootstrap-server %s abort --topic %s --partition %d --start-offset %d",
			c.factsFor(client).Cluster.Bootstrap, precondition.QuoteArgument(topic), partition, short.Stable),
	})
}

// ProgressKey returns the key of a lane's progress records.
func ProgressKey(lane int32) []byte { return strconv.AppendInt(nil, int64(lane), 10) }

// ProgressRecord is the record of the progress topic by which a lane has shipped every
// step up to seq.
func ProgressRecord(topic string, lane int32, seq int64) *kgo.Record {
	return &kgo.Record{Topic: topic, Partition: lane, Key: ProgressKey(lane), Value: fmt.Appendf(nil, `{"seq":%d}`, seq)}
}

// WriteProgress writes a progress record in a transaction of its own. It returns nil
// only if the commit was acknowledged.
func WriteProgress(ctx context.Context, client *kgo.Client, topic string, lane int32, seq int64) error {
	ctx, cancel := context.WithTimeout(ctx, TransactionTimeout)
	defer cancel()
	if err := client.BeginTransaction(); err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	var failed error
	client.Produce(ctx, ProgressRecord(topic, lane, seq), func(_ *kgo.Record, err error) { failed = err })
	if err := client.Flush(ctx); err != nil { // the client lingers until then
		return fmt.Errorf("flush: %w", err)
	}
	if failed != nil {
		return fmt.Errorf("produce: %w", failed)
	}
	if err := client.EndTransaction(ctx, kgo.TryCommit); err != nil {
		return fmt.Errorf("commit: outcome unknown: %w", err)
	}
	return nil
}

func isProgressKey(r *fetch.Record) bool { return bytes.Equal(r.Key, ProgressKey(r.Partition)) }

// parseProgress reads a lane's progress record; ok is false for another writer's
// record.
func parseProgress(r *fetch.Record) (seq int64, ok bool) {
	var p struct {
		Seq *int64 `json:"seq"`
	}
	if !isProgressKey(r) || json.Unmarshal(r.Value, &p) != nil || p.Seq == nil || *p.Seq < 0 {
		return 0, false
	}
	return *p.Seq, true
}

package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// progress is the value of a progress record: everything up to seq is shipped.
type progress struct {
	Seq int64 `json:"seq"`
}

// progressWindow is how many offsets before the end are looked at first. A
// ship is one progress record and one commit marker, so the last committed
// record is almost always among them.
const progressWindow = 64

// progressLostError: a progress partition begins above offset 0 and holds no
// record, so what was shipped is not known. It is never "no progress".
type progressLostError struct {
	topic     string
	partition int32
	start     int64
}

func (e *progressLostError) Error() string {
	return fmt.Sprintf("topic %s partition %d begins at offset %d and holds no record: retention (cleanup.policy must be compact) or kafka-delete-records.sh has deleted the lane's progress",
		e.topic, e.partition, e.start)
}

// readProgress returns K, the last seq shipped on a lane: the last committed
// record of its progress partition, or 0 if there never was one. It must run after
// the predecessor was fenced, when nothing on the partition is undecided. It
// reads to the high watermark or fails: a short read is never "no progress".
// The error is a *progressLostError where records were deleted and none is left.
func readProgress(ctx context.Context, client *kgo.Client, topic string, topicID [16]byte, partition int32) (int64, error) {
	adm := kadm.NewClient(client)
	start, err := listOffset(ctx, topic, partition, adm.ListStartOffsets)
	if err != nil {
		return 0, err
	}
	end, err := listOffset(ctx, topic, partition, adm.ListEndOffsets)
	if err != nil {
		return 0, err
	}
	f := partitionFetch{client: client, topic: topic, topicID: topicID, partition: partition, end: end.Offset}
	for back := int64(progressWindow); ; back *= 16 {
		from := max(start.Offset, end.Offset-back)
		var last *kgo.Record
		if err := f.each(ctx, from, func(r *kgo.Record) error { last = r; return nil }); err != nil {
			return 0, fmt.Errorf("read %s/%d: %w", topic, partition, err)
		}
		if last != nil {
			return parseProgress(topic, last)
		}
		switch {
		case from > start.Offset:
		case start.Offset > 0:
			return 0, &progressLostError{topic: topic, partition: partition, start: start.Offset}
		default:
			return 0, nil
		}
	}
}

func parseProgress(topic string, r *kgo.Record) (int64, error) {
	var p progress
	if err := json.Unmarshal(r.Value, &p); err != nil || p.Seq < 0 {
		return 0, fmt.Errorf("read %s/%d: the record at offset %d is not a progress record: %q", topic, r.Partition, r.Offset, r.Value)
	}
	return p.Seq, nil
}

func listOffset(ctx context.Context, topic string, partition int32, list func(context.Context, ...string) (kadm.ListedOffsets, error)) (kadm.ListedOffset, error) {
	offsets, err := list(ctx, topic)
	if err != nil {
		return kadm.ListedOffset{}, fmt.Errorf("list offsets of %s/%d: %w", topic, partition, err)
	}
	o, ok := offsets.Lookup(topic, partition)
	if !ok {
		return o, fmt.Errorf("list offsets of %s/%d: the broker does not know the partition", topic, partition)
	}
	if o.Err != nil {
		return o, fmt.Errorf("list offsets of %s/%d: %w", topic, partition, o.Err)
	}
	return o, nil
}

// partitionFetch reads a partition with raw fetches. A consumer would not do:
// it hides how far it has read where the log ends in markers, aborted batches
// or compacted-away records.
type partitionFetch struct {
	client    *kgo.Client
	topic     string
	topicID   [16]byte
	partition int32
	end       int64 // where to stop; not above what is committed
}

// fetchBytes is what one fetch brings, or a batch if that is more.
const fetchBytes = 8 << 20

// each calls fn for every committed record in [from, end), in order. It reads
// all of them or returns an error, fn's if that is the first.
func (f *partitionFetch) each(ctx context.Context, from int64, fn func(*kgo.Record) error) error {
	leader, err := f.leaderID(ctx)
	if err != nil {
		return err
	}
	for at := from; at < f.end; {
		part, err := f.fetch(ctx, leader, at)
		if err != nil {
			return err
		}
		fp, next := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
			Offset: at, IsolationLevel: kgo.ReadCommitted(), Topic: f.topic, Partition: f.partition,
		}, part, kgo.DefaultDecompressor(), nil)
		if fp.Err != nil {
			return fp.Err
		}
		for _, r := range fp.Records {
			if r.Offset >= f.end {
				break
			}
			if err := fn(r); err != nil {
				return err
			}
		}
		if next <= at {
			return fmt.Errorf("short read: stopped at offset %d of %d (last stable offset %d)", at, f.end, fp.LastStableOffset)
		}
		at = next
	}
	return nil
}

func (f *partitionFetch) fetch(ctx context.Context, leader int32, at int64) (*kmsg.FetchResponseTopicPartition, error) {
	req := kmsg.NewPtrFetchRequest()
	req.ReplicaID = -1
	req.MaxWaitMillis = 500
	req.MinBytes = 1
	req.MaxBytes = 2 * fetchBytes // never reached: kfake's answer would not say which transactions were aborted
	req.IsolationLevel = 1        // read_committed
	req.SessionEpoch = -1         // no fetch session
	rt := kmsg.NewFetchRequestTopic()
	rt.Topic, rt.TopicID = f.topic, f.topicID
	rp := kmsg.NewFetchRequestTopicPartition()
	rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes = f.partition, at, fetchBytes
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)

	kresp, err := f.client.Broker(int(leader)).RetriableRequest(ctx, req)
	if err != nil {
		return nil, err
	}
	resp, ok := kresp.(*kmsg.FetchResponse)
	if !ok || len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return nil, errors.New("the broker's fetch response does not hold the partition")
	}
	return &resp.Topics[0].Partitions[0], nil
}

func (f *partitionFetch) leaderID(ctx context.Context) (int32, error) {
	details, err := kadm.NewClient(f.client).ListTopics(ctx, f.topic)
	if err != nil {
		return 0, fmt.Errorf("find leader: %w", err)
	}
	p, ok := details[f.topic].Partitions[f.partition]
	if !ok {
		return 0, errors.New("find leader: no such partition")
	}
	if p.Err != nil {
		return 0, fmt.Errorf("find leader: %w", p.Err)
	}
	return p.Leader, nil
}

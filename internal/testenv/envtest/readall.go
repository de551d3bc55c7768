package envtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// ReadAll returns the records that a read_committed consumer can see in a topic
// now: each partition from its start to the last stable offset at the time of
// the call, ordered by partition and offset.
//
// It serves exact assertions, so it ends at a position and not after a silence.
// The end of a partition may hold control records or aborted records, which a
// consumer never returns; ReadAll sends its own fetch requests and follows
// their next offset.
func ReadAll(t testing.TB, brokers []string, topic string) []*kgo.Record {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	records, err := readAll(ctx, client, topic)
	if err != nil {
		t.Fatalf("read topic %s: %v", topic, err)
	}
	return records
}

func readAll(ctx context.Context, client *kgo.Client, topic string) ([]*kgo.Record, error) {
	admin := kadm.NewClient(client)
	details, err := admin.ListTopics(ctx, topic)
	if err != nil {
		return nil, err
	}
	detail := details[topic]
	if detail.Err != nil {
		return nil, detail.Err
	}
	starts, err := admin.ListStartOffsets(ctx, topic)
	if err != nil {
		return nil, err
	}
	ends, err := admin.ListCommittedOffsets(ctx, topic)
	if err != nil {
		return nil, err
	}
	var all []*kgo.Record
	for _, number := range slices.Sorted(maps.Keys(detail.Partitions)) {
		start, _ := starts.Lookup(topic, number)
		end, _ := ends.Lookup(topic, number)
		if err := errors.Join(start.Err, end.Err, detail.Partitions[number].Err); err != nil {
			return nil, fmt.Errorf("offsets of partition %d: %w", number, err)
		}
		r := partitionReader{
			client: client, topic: topic, id: detail.ID, partition: number,
			leader: detail.Partitions[number].Leader, next: start.Offset, end: end.Offset,
		}
		if err := r.readAll(ctx); err != nil {
			return nil, fmt.Errorf("partition %d: %w", number, err)
		}
		all = append(all, r.records...)
	}
	return all, nil
}

// partitionReader reads one partition with its own fetch requests.
type partitionReader struct {
	client    *kgo.Client
	topic     string
	id        [16]byte
	partition int32
	leader    int32
	next, end int64 // offsets: the next one to read, the first one not to read
	records   []*kgo.Record
}

func (r *partitionReader) readAll(ctx context.Context) error {
	for r.next < r.end {
		partition, err := r.fetchOnce(ctx)
		if err != nil {
			return err
		}
		if len(partition.RecordBatches) == 0 {
			// A fetch below the last stable offset returns at least one batch
			// (KIP-74). An empty one means that compaction has removed the
			// tail.
			if partition.LastStableOffset >= r.end {
				return nil
			}
			continue
		}
		got, next := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
			Offset: r.next, IsolationLevel: kgo.ReadCommitted(), Topic: r.topic, Partition: r.partition,
		}, partition, kgo.DefaultDecompressor(), nil)
		if got.Err != nil {
			return got.Err
		}
		if next <= r.next {
			return fmt.Errorf("no progress at offset %d of %d", r.next, r.end)
		}
		r.next = next
		for _, record := range got.Records {
			if record.Offset < r.end {
				r.records = append(r.records, record)
			}
		}
	}
	return nil
}

// fetchOnce sends one fetch request to the leader.
func (r *partitionReader) fetchOnce(ctx context.Context) (*kmsg.FetchResponseTopicPartition, error) {
	partition := kmsg.NewFetchRequestTopicPartition()
	partition.Partition = r.partition
	partition.FetchOffset = r.next
	partition.PartitionMaxBytes = 8 << 20
	topic := kmsg.NewFetchRequestTopic()
	topic.Topic = r.topic // up to version 12
	topic.TopicID = r.id  // from version 13 on
	topic.Partitions = append(topic.Partitions, partition)
	request := kmsg.NewPtrFetchRequest()
	request.MaxWaitMillis = 500
	request.MinBytes = 1
	request.MaxBytes = 16 << 20
	request.IsolationLevel = 1 // read_committed
	request.Topics = append(request.Topics, topic)
	response, err := r.client.Broker(int(r.leader)).RetriableRequest(ctx, request)
	if err != nil {
		return nil, err
	}
	fetched, ok := response.(*kmsg.FetchResponse)
	if !ok {
		return nil, fmt.Errorf("fetch answered with %T", response)
	}
	if err := kerr.ErrorForCode(fetched.ErrorCode); err != nil {
		return nil, err
	}
	if len(fetched.Topics) != 1 || len(fetched.Topics[0].Partitions) != 1 {
		return nil, errors.New("fetch answered for another partition")
	}
	got := &fetched.Topics[0].Partitions[0]
	return got, kerr.ErrorForCode(got.ErrorCode)
}

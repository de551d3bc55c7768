package deployment

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/workload"
)

// CampaignProducer sends campaigns to the partitions that their records name.
type CampaignProducer struct {
	Client *kgo.Client
	Admin  *kadm.Client
}

// NewProducer connects to a broker.
func NewProducer(broker string) (*CampaignProducer, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.ProducerLinger(0), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		return nil, fmt.Errorf("make producer: %w", err)
	}
	return &CampaignProducer{Client: client, Admin: kadm.NewClient(client)}, nil
}

// CreateTopics creates topics with MaxLanes partitions.
func (p *CampaignProducer) CreateTopics(ctx context.Context, topics ...string) error {
	resp, err := p.Admin.CreateTopics(ctx, MaxLanes, 1, nil, topics...)
	if err == nil {
		err = resp.Error()
	}
	if err != nil {
		return fmt.Errorf("create topics: %w", err)
	}
	return nil
}

// Send produces the messages and waits until they are acknowledged.
func (p *CampaignProducer) Send(ctx context.Context, records ...*kgo.Record) error {
	if err := p.Client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return fmt.Errorf("produce campaigns: %w", err)
	}
	return nil
}

// EndOffset sums the end offsets of a topic: the number of records ever
// appended, if no transactions write to the topic.
func (p *CampaignProducer) EndOffset(ctx context.Context, topic string) (int64, error) {
	offsets, err := p.Admin.ListEndOffsets(ctx, topic)
	if err == nil {
		err = offsets.Error()
	}
	if err != nil {
		return 0, fmt.Errorf("read end of topic %s: %w", topic, err)
	}
	sum := int64(0)
	offsets.Each(func(o kadm.ListedOffset) { sum += o.Offset })
	return sum, nil
}

// CountRecords reads a whole topic as a read_committed consumer does and counts
// its records and their different keys.
func CountRecords(ctx context.Context, broker, topic string) (records, distinct int64, err error) {
	const partitionBytes = 16 << 20
	// Larger than all partitions together: if a whole response is full, kfake
	// omits the list of aborted transactions.
	client, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.FetchMaxBytes((MaxLanes+1)*partitionBytes), kgo.FetchMaxPartitionBytes(partitionBytes))
	if err != nil {
		return 0, 0, fmt.Errorf("make reader: %w", err)
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListCommittedOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return 0, 0, fmt.Errorf("find end of topic %s: %w", topic, err)
	}
	left, from := map[int32]int64{}, map[int32]kgo.Offset{}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition], from[o.Partition] = o.Offset, kgo.NewOffset().AtStart()
		}
	})
	client.AddConsumePartitions(map[string]map[int32]kgo.Offset{topic: from})
	keys := map[[2]uint64]struct{}{}
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		if err := errors.Join(ctx.Err(), fetches.Err0()); err != nil {
			return 0, 0, fmt.Errorf("read topic %s: %w", topic, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset+1 >= left[r.Partition] {
				delete(left, r.Partition)
			}
			if !r.Attrs.IsControl() {
				records++
				keys[keyFingerprint(r.Key)] = struct{}{}
			}
		})
	}
	return records, int64(len(keys)), nil
}

// keyFingerprint returns 16 bytes that stand for a key.
func keyFingerprint(key []byte) [2]uint64 {
	var out [2]uint64
	for i := 0; i < len(key); i += 8 {
		var word [8]byte
		copy(word[:], key[i:])
		n := binary.LittleEndian.Uint64(word[:])
		out[0], out[1] = workload.Mix(out[0]^n), workload.Mix(out[1]+n^0x5bf03635)
	}
	return out
}

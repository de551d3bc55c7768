package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// fetchBytes is the size of a fetch response; a larger batch comes whole.
	fetchBytes = 2 << 20
	// fetchWait is how long a broker may hold a fetch while there is no new record.
	fetchWait = 5 * time.Second
	// fetchRetryTime bounds the retries of a fetch: they last over a leader that moves
	// and a broker that restarts.
	fetchRetryTime = 10 * time.Second
)

// MaxBatch bounds a batch, whatever the topic's max.message.bytes: a request must stay
// under Kafka's socket.request.max.bytes, 100 MiB by default.
const MaxBatch = 64 << 20

// PartitionReader reads the committed records of a partition with raw fetches. A
// consumer with read_committed would not do: it hides its position where the log ends
// in markers or aborted batches, it stops for good at a batch that it cannot read, and
// it holds inflated batches in memory. For one goroutine.
type PartitionReader struct {
	Client    *kgo.Client
	NewClient func(...kgo.Opt) (*kgo.Client, error) // makes a client with connections of its own
	Topic     string
	TopicID   [16]byte
	Partition int32
	MaxRecord int // up to how many bytes a record is read whole; at least minWholeRecord

	inflater    batchInflater
	leaderID    int32 // of the partition; valid if leaderKnown
	leaderKnown bool
}

// ShortReadError is a read that stopped at offset At before it reached End. Stable is the
// partition's last stable offset: where it lies before End, a transaction is open.
type ShortReadError struct{ At, End, Stable int64 }

// Error returns the offsets.
func (e *ShortReadError) Error() string {
	return fmt.Sprintf("short read: stopped at offset %d of %d (last stable offset %d)", e.At, e.End, e.Stable)
}

// ReadRange calls fn for every committed record in [from, end), in order, and for
// damaged offsets (Record.Unreadable). It covers all offsets or returns an error, fn's
// if that is the first.
func (p *PartitionReader) ReadRange(ctx context.Context, from, end int64, fn func(*Record) error) error {
	for at := from; at < end; {
		part, err := p.fetchResponse(ctx, p.Client, at, 0)
		if err != nil {
			return err
		}
		before := at
		for r, err := range p.readResponse(ctx, part, at) {
			if err != nil {
				return err
			}
			if r.Offset >= end {
				return nil
			}
			if at = r.Next; r.Empty {
				continue
			}
			if err := fn(r); err != nil {
				return err
			}
		}
		if at == before {
			return &ShortReadError{At: at, End: end, Stable: part.LastStableOffset}
		}
	}
	return nil
}

// ReadWhole is ReadRange for a caller that needs every record: a damaged or truncated
// record is an error.
func (p *PartitionReader) ReadWhole(ctx context.Context, from, end int64, fn func(*Record) error) error {
	return p.ReadRange(ctx, from, end, func(r *Record) error {
		switch {
		case r.Unreadable != "":
			return fmt.Errorf("offsets %d to %d cannot be read: %s", r.Offset, r.Next-1, r.Unreadable)
		case r.Truncated:
			return fmt.Errorf("the record at offset %d takes %d bytes", r.Offset, r.Size)
		}
		return fn(r)
	})
}

// fetchReconnected fetches over a new connection.
func (p *PartitionReader) fetchReconnected(ctx context.Context, at int64) (*kmsg.FetchResponseTopicPartition, error) {
	client, err := p.NewClient()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return p.fetchResponse(ctx, client, at, 0)
}

// fetchResponse fetches from the partition's leader, and retries for fetchRetryTime.
func (p *PartitionReader) fetchResponse(ctx context.Context, client *kgo.Client, at int64, wait time.Duration) (*kmsg.FetchResponseTopicPartition, error) {
	return retryRequest(ctx, func() (*kmsg.FetchResponseTopicPartition, error) {
		part, err := p.tryFetch(ctx, client, at, wait)
		if err == nil {
			err = kerr.ErrorForCode(part.ErrorCode)
		}
		return part, err
	})
}

// retryRequest repeats a request for fetchRetryTime while its errors may pass.
func retryRequest[T any](ctx context.Context, request func() (T, error)) (T, error) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 50*time.Millisecond, time.Second
	return backoff.Retry(ctx, func() (T, error) {
		answer, err := request()
		if err != nil && !isRetriable(err) {
			err = backoff.Permanent(err)
		}
		return answer, err
	}, backoff.WithBackOff(pause), backoff.WithMaxElapsedTime(fetchRetryTime))
}

// isRetriable reports whether another try may succeed.
func isRetriable(err error) bool {
	_, network := errors.AsType[net.Error](err)
	return network || errors.Is(err, io.EOF) || kerr.IsRetriable(err) || kgo.IsRetryableBrokerErr(err)
}

// tryFetch fetches once. With the reader's own client it asks the last known leader,
// and looks the leader up after an error.
func (p *PartitionReader) tryFetch(ctx context.Context, client *kgo.Client, at int64, wait time.Duration) (part *kmsg.FetchResponseTopicPartition, err error) {
	var leader int32
	if client == p.Client {
		leader, err = p.useLeader(ctx)
		defer func() { p.leaderKnown = err == nil && part.ErrorCode == 0 }()
	} else {
		leader, err = p.findLeader(ctx, client)
	}
	if err != nil {
		return nil, err
	}
	kresp, err := client.Broker(int(leader)).RetriableRequest(ctx, partitionFetch{p.fetchRequest(at, wait)})
	if err != nil {
		return nil, err
	}
	resp, ok := kresp.(*partitionResponse)
	if !ok || len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return nil, errors.New("the broker's fetch response does not hold the partition")
	}
	return &resp.Topics[0].Partitions[0], nil
}

// ReadStableOffset returns the partition's last stable offset, the first one that consumers
// with read_committed cannot read yet. It retries as a fetch does.
func (p *PartitionReader) ReadStableOffset(ctx context.Context) (int64, error) {
	return retryRequest(ctx, func() (int64, error) {
		leader, err := p.useLeader(ctx)
		if err != nil {
			return 0, err
		}
		stable, err := listStableOffset(ctx, p.Client.Broker(int(leader)), p.Topic, p.Partition)
		p.leaderKnown = err == nil
		return stable, err
	})
}

// listStableOffset asks the leader of a partition for its last stable offset.
func listStableOffset(ctx context.Context, leader *kgo.Broker, topic string, partition int32) (int64, error) {
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID, req.IsolationLevel = -1, 1 // read_committed
	rt := kmsg.NewListOffsetsRequestTopic()
	rt.Topic = topic
	rp := kmsg.NewListOffsetsRequestTopicPartition()
	rp.Partition, rp.Timestamp = partition, -1 // the end
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	kresp, err := leader.RetriableRequest(ctx, req)
	if err != nil {
		return 0, err
	}
	resp, ok := kresp.(*kmsg.ListOffsetsResponse)
	if !ok || len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return 0, errors.New("the broker's answer does not hold the partition's offset")
	}
	part := &resp.Topics[0].Partitions[0]
	return part.Offset, kerr.ErrorForCode(part.ErrorCode)
}

// useLeader returns the last known leader, or looks it up.
func (p *PartitionReader) useLeader(ctx context.Context) (leader int32, err error) {
	if p.leaderKnown {
		return p.leaderID, nil
	}
	p.leaderID, err = p.findLeader(ctx, p.Client)
	return p.leaderID, err
}

func (p *PartitionReader) fetchRequest(at int64, wait time.Duration) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.ReplicaID = -1
	req.MaxWaitMillis = int32(wait.Milliseconds())
	req.MinBytes = 1
	req.MaxBytes = MaxBatch // never reached: a response that reaches it lacks the aborted transactions on kfake
	req.IsolationLevel = 1  // read_committed
	req.SessionEpoch = -1   // no fetch session
	rt := kmsg.NewFetchRequestTopic()
	rt.Topic, rt.TopicID = p.Topic, p.TopicID
	rp := kmsg.NewFetchRequestTopicPartition()
	rp.Partition, rp.FetchOffset, rp.PartitionMaxBytes = p.Partition, at, fetchBytes
	rt.Partitions = append(rt.Partitions, rp)
	req.Topics = append(req.Topics, rt)
	return req
}

func (p *PartitionReader) findLeader(ctx context.Context, client *kgo.Client) (int32, error) {
	details, err := kadm.NewClient(client).ListTopics(ctx, p.Topic)
	if err != nil {
		return 0, fmt.Errorf("find leader: %w", err)
	}
	detail, ok := details[p.Topic].Partitions[p.Partition]
	if !ok {
		return 0, errors.New("find leader: no such partition")
	}
	if detail.Err != nil {
		return 0, fmt.Errorf("find leader: %w", detail.Err)
	}
	return detail.Leader, nil
}

// ListOffset returns the offset of one partition from a listing such as
// kadm.Client.ListEndOffsets.
func ListOffset(ctx context.Context, topic string, partition int32, list func(context.Context, ...string) (kadm.ListedOffsets, error)) (kadm.ListedOffset, error) {
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

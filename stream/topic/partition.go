package topic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// fetchBytes is what one fetch brings, or a batch if that is more.
	fetchBytes = 2 << 20
	// fetchWait is how long a broker may hold a fetch that has nothing yet.
	fetchWait = 5 * time.Second
	// fetchRetryTime is how long a fetch is tried again: a leader that moves or a
	// broker that starts anew needs no new session.
	fetchRetryTime = 10 * time.Second
)

// MaxBatch caps what a topic that takes huge messages lets through: a request
// must stay under Kafka's socket.request.max.bytes, 100 MiB by default.
const MaxBatch = 64 << 20

// PartitionReader reads a partition with raw fetches, as a read_committed
// consumer does. A consumer would not do: it hides how far it has read where the
// log ends in markers or aborted batches, it stops for good at a batch that it
// cannot read, and it holds whatever a batch inflates to. For one goroutine.
type PartitionReader struct {
	Client    *kgo.Client
	NewClient func(...kgo.Opt) (*kgo.Client, error) // makes a client with new connections
	Topic     string
	TopicID   [16]byte
	Partition int32
	MaxRecord int // how large a record is held whole; 0: minWholeRecord

	inflater    batchInflater
	leaderID    int32 // of the partition; see known
	leaderKnown bool
}

// ReadRange calls fn for every committed record in [from, end), in order, and for what
// cannot be read. It reads all of them or returns an error, fn's if that is the
// first.
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
			return fmt.Errorf("short read: stopped at offset %d of %d (last stable offset %d)", at, end, part.LastStableOffset)
		}
	}
	return nil
}

// ReadWhole is each for who can do nothing without every record.
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

// damagedBatch is a batch that cannot be read.
type damagedBatch struct {
	offset int64
	err    error
}

// readResponse gives what a response holds from offset at on: records, and records that
// stand for what cannot be read or holds nothing. Each says where to read on. A
// batch that cannot be read is read again over a new connection first.
func (p *PartitionReader) readResponse(ctx context.Context, part *kmsg.FetchResponseTopicPartition, at int64) iter.Seq2[*Record, error] {
	return func(yield func(*Record, error) bool) {
		again := false
		for {
			w := &responseWalk{p: p, part: part, offset: at, reread: again, yield: yield}
			found, err := w.walkBatches(ctx)
			if err == nil && found != nil {
				at, again = found.offset, true
				part, err = p.fetchReconnected(ctx, at)
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if found == nil {
				return
			}
		}
	}
}

// responseWalk goes through one response.
type responseWalk struct {
	p      *PartitionReader
	part   *kmsg.FetchResponseTopicPartition
	offset int64 // all before it has been given
	reread bool  // the batch at that offset was read before, and could not be
	yield  func(*Record, error) bool

	aborted map[int64][]int64 // first offsets by producer, ascending
	stopped bool
}

var errWalkStopped = errors.New("the reader has stopped")

// walkBatches returns the damage that is to be read again; nil at the end.
func (w *responseWalk) walkBatches(ctx context.Context) (*damagedBatch, error) {
	w.aborted = map[int64][]int64{}
	for _, t := range w.part.AbortedTransactions {
		w.aborted[t.ProducerID] = append(w.aborted[t.ProducerID], t.FirstOffset)
	}
	for _, offsets := range w.aborted {
		slices.Sort(offsets) // Redpanda does not
	}
	in := w.part.RecordBatches
	for first := true; ; first = false {
		b, rest, ok := splitBatch(in)
		if !ok && (!first || len(in) == 0) {
			return nil, nil //nolint:nilnil // an answer ends in a part of a batch
		}
		end := w.batchEnd(&b, rest)
		err := errors.New("the batch's length does not fit")
		if ok {
			err = w.walkBatch(&b, end)
		}
		switch {
		case w.stopped:
			return nil, nil //nolint:nilnil // nobody wants more
		case err == nil:
		case !w.reread && !errors.Is(err, errTooLarge):
			return &damagedBatch{offset: w.offset, err: err}, nil
		default:
			if end, err = w.skipDamaged(ctx, rest, err); err != nil || w.stopped || end < 0 {
				return nil, err
			}
		}
		w.reread, in = false, rest
	}
}

// batchEnd is where the batch ends: the next one's base, where that is known, before
// what the batch claims, and never beyond the end of the log.
func (w *responseWalk) batchEnd(b *recordBatch, rest []byte) int64 {
	end := b.claimedEnd()
	if next, ok := readBaseOffset(rest); ok && next > b.baseOffset && next < end {
		end = next
	}
	if stable := w.part.LastStableOffset; stable > b.baseOffset && stable < end {
		end = stable
	}
	return end
}

func readBaseOffset(b []byte) (int64, bool) {
	if len(b) < 8 {
		return 0, false
	}
	return int64(binary.BigEndian.Uint64(b)), true
}

// trackAbort takes note of a transaction's end.
func (w *responseWalk) trackAbort(b *recordBatch) {
	if first := w.aborted[b.producerID]; len(first) > 0 && first[0] <= b.baseOffset && b.endsInAbort() {
		w.aborted[b.producerID] = first[1:]
	}
}

// walkBatch gives what the batch holds from at on, up to end. The error says why what
// follows at cannot be read.
func (w *responseWalk) walkBatch(b *recordBatch, end int64) error {
	if err := b.verify(); err != nil {
		return err
	}
	if b.hasAttribute(controlBit) {
		w.trackAbort(b)
	}
	if end <= w.offset {
		return nil
	}
	if b.hasAttribute(controlBit) {
		w.skipTo(end)
		return nil
	}
	if first := w.aborted[b.producerID]; b.hasAttribute(transactionalBit) && len(first) > 0 && b.baseOffset >= first[0] {
		w.skipTo(end)
		return nil
	}
	most := max(w.p.MaxRecord, minWholeRecord)
	least := b.baseOffset
	err := b.readRecords(&w.p.inflater, most, func(r *Record) error {
		if r.Offset < least || r.Offset >= end {
			return fmt.Errorf("the record at offset %d is not in its place in the batch", r.Offset)
		}
		if least = r.Offset + 1; r.Offset < w.offset {
			return nil
		}
		r.Next = r.Offset + 1
		return w.yieldRecord(r)
	})
	if err == nil && w.offset < end {
		w.skipTo(end)
	}
	return err
}

// skipTo gives a record that stands for offsets that hold nothing.
func (w *responseWalk) skipTo(end int64) {
	_ = w.yieldRecord(&Record{Offset: w.offset, Next: end, Empty: true})
}

func (w *responseWalk) yieldRecord(r *Record) error {
	r.Topic, r.Partition = w.p.Topic, w.p.Partition
	w.offset = r.Next
	if !w.yield(r, nil) {
		w.stopped = true
		return errWalkStopped
	}
	return nil
}

// skipDamaged gives a record that stands for the rest of a batch. Its own last
// offset is not believed: it ends where the next batch begins. The result is
// negative where that is not in this response.
func (w *responseWalk) skipDamaged(ctx context.Context, rest []byte, why error) (end int64, err error) {
	end, ok := readBaseOffset(rest)
	if ok && end <= w.offset {
		return end, nil // all of it was given before
	}
	if !ok {
		if end, err = w.p.findNextBase(ctx, w.offset); err != nil {
			return 0, err
		}
	}
	r := &Record{Offset: w.offset, Next: end, Unreadable: why.Error(), Time: time.Now().UnixMilli()}
	if w.yieldRecord(r) == nil && !ok {
		return -1, nil
	}
	return end, nil
}

// findNextBase is where the first batch behind the one at an offset begins, or the end
// of the log where there is none. The broker is asked by bisection: whichever
// offset of a batch is asked for, the answer begins with the batch.
func (p *PartitionReader) findNextBase(ctx context.Context, at int64) (int64, error) {
	next := int64(-1)
	for from, to := at+1, int64(-1); to < 0 || from < to; {
		ask := from
		if to >= 0 {
			ask = from + (to-from)/2
		}
		part, err := p.fetchResponse(ctx, p.Client, ask, 0)
		if err != nil {
			return 0, err
		}
		if to < 0 {
			to = part.LastStableOffset
			next = to
		}
		if base, ok := readBaseOffset(part.RecordBatches); ok && base > at {
			to, next = ask, base
		} else {
			from = ask + 1
		}
	}
	return max(next, at+1), nil
}

// fetchReconnected fetches over a connection of its own.
func (p *PartitionReader) fetchReconnected(ctx context.Context, at int64) (*kmsg.FetchResponseTopicPartition, error) {
	client, err := p.NewClient()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return p.fetchResponse(ctx, client, at, 0)
}

// fetchResponse asks the partition's leader, again for a while where it cannot answer.
func (p *PartitionReader) fetchResponse(ctx context.Context, client *kgo.Client, at int64, wait time.Duration) (*kmsg.FetchResponseTopicPartition, error) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 50*time.Millisecond, time.Second
	return backoff.Retry(ctx, func() (*kmsg.FetchResponseTopicPartition, error) {
		part, err := p.tryFetch(ctx, client, at, wait)
		if err == nil {
			err = kerr.ErrorForCode(part.ErrorCode)
		}
		if err != nil && !isRetriable(err) {
			err = backoff.Permanent(err)
		}
		return part, err
	}, backoff.WithBackOff(pause), backoff.WithMaxElapsedTime(fetchRetryTime))
}

// isRetriable tells whether asking again may help.
func isRetriable(err error) bool {
	_, network := errors.AsType[net.Error](err)
	return network || errors.Is(err, io.EOF) || kerr.IsRetriable(err) || kgo.IsRetryableBrokerErr(err)
}

// tryFetch asks whoever led the partition last, over the reader's own client;
// after an error the leader is looked up.
func (p *PartitionReader) tryFetch(ctx context.Context, client *kgo.Client, at int64, wait time.Duration) (part *kmsg.FetchResponseTopicPartition, err error) {
	leader := p.leaderID
	if client != p.Client || !p.leaderKnown {
		if leader, err = p.findLeader(ctx, client); err != nil {
			return nil, err
		}
	}
	if client == p.Client {
		p.leaderID = leader
		defer func() { p.leaderKnown = err == nil && part.ErrorCode == 0 }()
	}
	kresp, err := client.Broker(int(leader)).RetriableRequest(ctx, p.fetchRequest(at, wait))
	if err != nil {
		return nil, err
	}
	resp, ok := kresp.(*kmsg.FetchResponse)
	if !ok || len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return nil, errors.New("the broker's fetch response does not hold the partition")
	}
	return &resp.Topics[0].Partitions[0], nil
}

func (p *PartitionReader) fetchRequest(at int64, wait time.Duration) *kmsg.FetchRequest {
	req := kmsg.NewPtrFetchRequest()
	req.ReplicaID = -1
	req.MaxWaitMillis = int32(wait.Milliseconds())
	req.MinBytes = 1
	req.MaxBytes = MaxBatch // never reached: kfake's answer would not say which transactions were aborted
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

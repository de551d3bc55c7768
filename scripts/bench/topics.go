package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/workload"
)

// producer sends campaigns, each to the partition that the run says.
type producer struct {
	client *kgo.Client
	adm    *kadm.Client
}

func newProducer(broker string) (*producer, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.ProducerLinger(0), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		return nil, fmt.Errorf("make producer: %w", err)
	}
	return &producer{client: client, adm: kadm.NewClient(client)}, nil
}

func (p *producer) createTopics(ctx context.Context, topics ...string) error {
	resp, err := p.adm.CreateTopics(ctx, maxLanes, 1, nil, topics...)
	if err == nil {
		err = resp.Error()
	}
	if err != nil {
		return fmt.Errorf("create topics: %w", err)
	}
	return nil
}

// encode renders all messages, so that the clock measures none of it.
func encode(topic string, l *load) []*kgo.Record {
	records := make([]*kgo.Record, len(l.campaigns))
	for i := range l.campaigns {
		records[i] = &kgo.Record{Topic: topic, Partition: l.campaigns[i].lane, Value: l.campaigns[i].JSON()}
	}
	return records
}

// send produces the messages and waits until they are acknowledged.
func (p *producer) send(ctx context.Context, records ...*kgo.Record) error {
	if err := p.client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return fmt.Errorf("produce campaigns: %w", err)
	}
	return nil
}

// ends sums the end offsets of a topic: the records that were ever appended,
// where no transaction's markers are among them.
func (p *producer) ends(ctx context.Context, topic string) (int64, error) {
	offsets, err := p.adm.ListEndOffsets(ctx, topic)
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

// watcher follows a topic from its end on and notes, per campaign, how many
// records have become visible and when the last one did.
type watcher struct {
	client *kgo.Client
	cancel context.CancelFunc
	done   chan struct{}

	mu   sync.Mutex // guards below
	seen map[string]sighting
	more chan struct{} // closed and replaced whenever something came
}

type sighting struct {
	count int
	last  time.Time
}

// watch returns once the reader knows where the topic's end is: whatever is
// produced from then on is seen.
func watch(ctx context.Context, broker, topic string, isolation kgo.IsolationLevel) (*watcher, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.FetchIsolationLevel(isolation), kgo.FetchMinBytes(1))
	if err != nil {
		return nil, fmt.Errorf("make reader: %w", err)
	}
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		client.Close()
		return nil, fmt.Errorf("find end of topic %s: %w", topic, err)
	}
	from := map[int32]kgo.Offset{}
	ends.Each(func(o kadm.ListedOffset) { from[o.Partition] = kgo.NewOffset().At(o.Offset) })
	client.AddConsumePartitions(map[string]map[int32]kgo.Offset{topic: from})
	ctx, cancel := context.WithCancel(ctx)
	w := &watcher{client: client, cancel: cancel, done: make(chan struct{}), seen: map[string]sighting{}, more: make(chan struct{})}
	go w.run(ctx)
	return w, nil
}

func (w *watcher) run(ctx context.Context) {
	defer close(w.done)
	for {
		fetches := w.client.PollFetches(ctx)
		if ctx.Err() != nil {
			return
		}
		w.note(fetches, time.Now())
	}
}

func (w *watcher) note(fetches kgo.Fetches, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fetches.EachRecord(func(r *kgo.Record) {
		const uuid = 36 // the key is <campaign>:<client>
		if len(r.Key) < uuid {
			return
		}
		id := string(r.Key[:uuid])
		w.seen[id] = sighting{count: w.seen[id].count + 1, last: at}
	})
	close(w.more)
	w.more = make(chan struct{})
}

// await returns when the n-th record of a campaign was seen.
func (w *watcher) await(ctx context.Context, campaign string, n int) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		w.mu.Lock()
		s, more := w.seen[campaign], w.more
		w.mu.Unlock()
		if s.count >= n {
			return s.last, nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("wait for campaign %s: %d of %d came: %w", campaign, s.count, n, ctx.Err())
		}
	}
}

func (w *watcher) close() {
	w.cancel()
	<-w.done
	w.client.Close()
}

// tally reads a whole topic as read_committed consumers do, and counts its
// records and the different keys among them.
func tally(ctx context.Context, broker, topic string) (records, distinct int64, err error) {
	const partitionBytes = 16 << 20
	// More than all partitions together: where a response is full as a whole,
	// kfake leaves out which of its transactions were aborted.
	client, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.FetchMaxBytes((maxLanes+1)*partitionBytes), kgo.FetchMaxPartitionBytes(partitionBytes))
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
				keys[fingerprint(r.Key)] = struct{}{}
			}
		})
	}
	return records, int64(len(keys)), nil
}

// fingerprint stands for a key in 16 bytes.
func fingerprint(key []byte) [2]uint64 {
	var out [2]uint64
	for i := 0; i < len(key); i += 8 {
		var word [8]byte
		copy(word[:], key[i:])
		n := binary.LittleEndian.Uint64(word[:])
		out[0], out[1] = workload.Mix(out[0]^n), workload.Mix(out[1]+n^0x5bf03635)
	}
	return out
}

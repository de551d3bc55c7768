package demo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// makeTopic creates the campaigns topic with several partitions, as the owner of
// that topic would; `setup` gives the others as many.
func (d *deployment) makeTopic(ctx context.Context) error {
	if _, err := kadm.NewClient(d.producer).CreateTopic(ctx, lanes, 1, nil, topicIn); err != nil {
		return fmt.Errorf("create topic %s: %w", topicIn, err)
	}
	return nil
}

// produceMessage produces one message and returns when the broker has it.
func (d *deployment) produceMessage(ctx context.Context, key string, value []byte) error {
	r := &kgo.Record{Key: []byte(key), Value: value}
	if err := d.producer.ProduceSync(ctx, r).FirstErr(); err != nil {
		return fmt.Errorf("produce campaign: %w", err)
	}
	return nil
}

// newConsumer makes a read_committed consumer of the whole topic.
func (d *deployment) newConsumer(topic string, extra ...kgo.Opt) (*kgo.Client, error) {
	c, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(d.broker.Addr()),
		kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
	}, extra...)...)
	if err != nil {
		return nil, fmt.Errorf("make consumer of %s: %w", topic, err)
	}
	return c, nil
}

// readAll returns every record of the topic that a read_committed consumer sees
// now. It ends at the last offset of each partition, never after a silence: it
// keeps transaction markers, so that it reaches that offset.
func (d *deployment) readAll(ctx context.Context, topic string) ([]*kgo.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ends, err := kadm.NewClient(d.producer).ListCommittedOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list end of %s: %w", topic, err)
	}
	left := map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	client, err := d.newConsumer(topic, kgo.KeepControlRecords())
	if err != nil {
		return nil, err
	}
	defer client.Close()
	var out []*kgo.Record
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		if err := errors.Join(fetches.Err(), ctx.Err()); err != nil {
			return nil, fmt.Errorf("read %s up to %v: %w", topic, slices.Collect(maps.Values(left)), err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			end, open := left[r.Partition]
			if !open {
				return
			}
			if !r.Attrs.IsControl() {
				out = append(out, r)
			}
			if r.Offset+1 >= end {
				delete(left, r.Partition)
			}
		})
	}
	return out, nil
}

// topicRecord is the notifications of one campaign in one fetch.
type topicRecord struct {
	campaign string
	count    int
	at       time.Time
	one      *kgo.Record // of them
}

// watchTopic sends the notifications that arrive at the topic to out until ctx
// ends. The key, <campaign>:<client>, names the campaign; the demo's ids need no
// decoding.
func watchTopic(ctx context.Context, client *kgo.Client, out chan<- []topicRecord) error {
	for {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // asked to end
		}
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("read %s: %w", topicOut, err)
		}
		now := time.Now()
		counts, one := map[string]int{}, map[string]*kgo.Record{}
		fetches.EachRecord(func(r *kgo.Record) {
			id := campaignOf(r.Key)
			counts[id]++
			one[id] = r
		})
		batch := make([]topicRecord, 0, len(counts))
		for id, n := range counts {
			batch = append(batch, topicRecord{id, n, now, one[id]})
		}
		select {
		case out <- batch:
		case <-ctx.Done():
			return nil
		}
	}
}

func campaignOf(key []byte) string {
	if i := slices.Index(key, ':'); i >= 0 {
		return string(key[:i])
	}
	return string(key)
}

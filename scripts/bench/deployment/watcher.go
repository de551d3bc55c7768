package deployment

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TopicWatcher follows a topic from its end on. For each campaign it records
// how many notifications have become visible and when the last one did.
type TopicWatcher struct {
	client *kgo.Client
	cancel context.CancelFunc
	done   chan struct{}

	mu   sync.Mutex // guards the fields below
	seen map[campaignID]campaignArrivals
	more chan struct{} // closed and replaced whenever records arrive
}

type campaignID [36]byte // a UUID

type campaignArrivals struct {
	count int
	last  time.Time
}

// Watch returns once the watcher knows the topic's end, so it sees every record
// produced from then on.
func Watch(ctx context.Context, broker, topic string, isolation kgo.IsolationLevel) (*TopicWatcher, error) {
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
	w := &TopicWatcher{client: client, cancel: cancel, done: make(chan struct{}), seen: map[campaignID]campaignArrivals{}, more: make(chan struct{})}
	go w.followTopic(ctx)
	return w, nil
}

func (w *TopicWatcher) followTopic(ctx context.Context) {
	defer close(w.done)
	for {
		fetches := w.client.PollFetches(ctx)
		if ctx.Err() != nil {
			return
		}
		w.countRecords(fetches, time.Now())
	}
}

func (w *TopicWatcher) countRecords(fetches kgo.Fetches, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fetches.EachRecord(func(r *kgo.Record) {
		if len(r.Key) < len(campaignID{}) {
			return
		}
		id := campaignID(r.Key[:len(campaignID{})]) // the key is <campaign>:<client>
		w.seen[id] = campaignArrivals{count: w.seen[id].count + 1, last: at}
	})
	close(w.more)
	w.more = make(chan struct{})
}

// AwaitCampaign waits for the n-th record of a campaign and returns its time.
func (w *TopicWatcher) AwaitCampaign(ctx context.Context, campaign string, n int) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		w.mu.Lock()
		s, more := w.seen[campaignID([]byte(campaign))], w.more
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

// Count returns how many records of a campaign are visible.
func (w *TopicWatcher) Count(campaign string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen[campaignID([]byte(campaign))].count
}

// Close ends the watcher.
func (w *TopicWatcher) Close() {
	w.cancel()
	<-w.done
	w.client.Close()
}

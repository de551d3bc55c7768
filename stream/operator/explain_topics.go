package operator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/stream/campaign"
	"dinnerbell/stream/explain"
	"dinnerbell/stream/record"
	"dinnerbell/stream/topic"
	"dinnerbell/stream/topic/fetch"
)

// SearchLimits bound the reading of each topic. 0: the default.
type SearchLimits struct {
	Time    time.Duration // default 20 s
	Bytes   int64         // default 256 MiB
	Offsets int64         // of each partition, but of the notifications topic; default 65,536
}

func (l SearchLimits) withDefaults() SearchLimits {
	if l.Time <= 0 {
		l.Time = 20 * time.Second
	}
	if l.Bytes <= 0 {
		l.Bytes = 256 << 20
	}
	if l.Offsets <= 0 {
		l.Offsets = 64 << 10
	}
	return l
}

const (
	// kafkaTime is how long a request is repeated while no broker answers.
	kafkaTime = 3 * time.Second
	// stampMargin is how far the clocks that stamp records may differ from the clock
	// that has stamped the decision.
	stampMargin = 2 * time.Minute
	// nearMargin is the margin that almost always suffices.
	nearMargin = 5 * time.Second
	// maxFindings bounds the letters and the messages that are shown.
	maxFindings = 10
)

// errEnough ends a search: it has found what it wanted, or has reached its bounds.
var errEnough = errors.New("enough was read")

// topicSearch reads topics within bounds.
type topicSearch struct {
	cfg    topic.Config
	client *kgo.Client
	adm    *kadm.Client
	topics kadm.TopicDetails
	limits SearchLimits
	left   int64 // bytes that may still be read of the topic
}

// readTopics reads the topics: of a client who has a row the notifications topic, else
// the dead letters and the campaigns topic.
func (g *gatherer) readTopics(ctx context.Context) {
	sources := []explain.Source{explain.SourceDeadLetter, explain.SourceMessage}
	if g.e.Feedback != nil {
		sources = []explain.Source{explain.SourceRecord}
	}
	client, err := g.cfg.Kafka.NewClient(kgo.RetryTimeout(kafkaTime))
	if err == nil {
		defer topic.CloseClient(client, g.cfg.Logger, -1)
	}
	fail := func(s explain.Source, err error) {
		if client != nil {
			err = topic.NameBrokers(client, err)
		}
		g.addUnread(s, fmt.Sprintf("what Kafka has (%s): ", s), err, "dinnerbell status, and the brokers' logs; then dinnerbell explain again")
		if s == explain.SourceRecord && g.e.Step != nil && g.e.Step.Seq > g.e.Step.Shipped && !g.askOwner() {
			g.e.Step.Shipped = -1 // the topic may be ahead of the lane's row
		}
	}
	t := &topicSearch{cfg: g.cfg.Kafka, client: client, limits: g.o.Limits.withDefaults()}
	if err == nil {
		err = t.readMetadata(ctx)
	}
	for _, s := range sources {
		if err != nil {
			fail(s, err)
			continue
		}
		read := map[explain.Source]func(context.Context, *topicSearch) error{
			explain.SourceRecord: g.findRecord, explain.SourceDeadLetter: g.readLetters, explain.SourceMessage: g.readMessages,
		}[s]
		t.left = t.limits.Bytes
		if err := t.searchWithinBounds(ctx, func(ctx context.Context) error { return read(ctx, t) }); err != nil {
			fail(s, err)
		}
	}
}

// askOwner takes the lane's progress from the daemon that owns it.
func (g *gatherer) askOwner() bool {
	o := g.owners[g.e.Step.Lane]
	if o == nil {
		return false
	}
	g.e.Step.Shipped = max(g.e.Step.Shipped, o.Shipped)
	return true
}

func (t *topicSearch) readMetadata(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, t.limits.Time)
	defer cancel()
	t.adm = kadm.NewClient(t.client)
	t.topics, err = topic.DescribeTopics(ctx, t.client, t.cfg.Campaigns, t.cfg.Notifications, t.cfg.DeadLetters, t.cfg.Progress)
	return err
}

// searchWithinBounds runs a search within the time of one topic.
func (t *topicSearch) searchWithinBounds(ctx context.Context, search func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, t.limits.Time, fmt.Errorf("nothing more was read after %s", t.limits.Time))
	defer cancel()
	err := search(ctx)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	return err
}

// partitions returns the partitions of a topic in order.
func (t *topicSearch) partitions(name string) ([]int32, error) {
	detail := t.topics[name]
	if detail.Err != nil {
		return nil, t.cfg.ExplainUndescribed(detail.Err, t.client, "Read", name)
	}
	return slices.Sorted(maps.Keys(detail.Partitions)), nil
}

func (t *topicSearch) reader(name string, partition int32) *fetch.PartitionReader {
	return &fetch.PartitionReader{Client: t.client, NewClient: t.cfg.NewClient, Topic: name, TopicID: t.topics[name].ID, Partition: partition}
}

// committedRange returns the first offset of a partition and the end of what is committed.
func (t *topicSearch) committedRange(ctx context.Context, name string, partition int32) (start, end int64, err error) {
	first, err := fetch.ListOffset(ctx, name, partition, t.adm.ListStartOffsets)
	if err != nil {
		return 0, 0, t.cfg.ExplainDenied(err, t.client, "Read", name)
	}
	last, err := fetch.ListOffset(ctx, name, partition, t.adm.ListCommittedOffsets)
	return first.Offset, last.Offset, t.cfg.ExplainDenied(err, t.client, "Read", name)
}

// scanPartition reads [from, to) until fn returns errEnough or the bytes are used up. It returns
// the offset at which it stopped.
func (t *topicSearch) scanPartition(ctx context.Context, name string, partition int32, from, to int64, fn func(*fetch.Record) error) (stopped int64, err error) {
	stopped = from
	err = t.reader(name, partition).ReadRange(ctx, from, to, func(r *fetch.Record) error {
		stopped = r.Next
		if err := fn(r); err != nil {
			return err
		}
		if t.left -= int64(r.Size); t.left <= 0 {
			return errEnough
		}
		return nil
	})
	switch {
	case errors.Is(err, errEnough):
		return stopped, nil
	case err != nil:
		return stopped, fmt.Errorf("read %s/%d: %w", name, partition, t.cfg.ExplainDenied(err, t.client, "Read", name))
	}
	return max(stopped, to), nil
}

// scanBackwards reads a partition before an offset, in growing pieces from the end, until
// a piece had something to find or the limits are reached. found is called for each
// record and reports whether it was wanted. It returns the first offset that was read.
func (t *topicSearch) scanBackwards(ctx context.Context, name string, partition int32, start, before int64, found func(*fetch.Record) bool) (from int64, err error) {
	end, hit := before, false
	for size := int64(4096); end > start && !hit && before-end < t.limits.Offsets; size *= 4 {
		from := max(start, end-size, before-t.limits.Offsets)
		stopped, err := t.scanPartition(ctx, name, partition, from, end, func(r *fetch.Record) error {
			hit = found(r) || hit
			return nil
		})
		if err != nil || stopped < end { // the rest of the piece was not read
			return end, err
		}
		end = from
	}
	return end, nil
}

// findRecord looks for the client's record, from the second of the decision on; the
// partition of its key first.
func (g *gatherer) findRecord(ctx context.Context, t *topicSearch) error {
	if s := g.e.Step; s != nil && s.Seq > s.Shipped {
		a := &auditor{cfg: g.cfg, client: t.client, ids: topic.IDs{ProgressID: t.topics[t.cfg.Progress].ID}}
		k, err := a.readProgress(ctx, s.Lane)
		if err != nil {
			return fmt.Errorf("read progress of lane %d: %w", s.Lane, err)
		}
		if s.Shipped = max(s.Shipped, k); s.Seq > s.Shipped {
			return nil
		}
	}
	partitions, err := t.partitions(t.cfg.Notifications)
	if err != nil || len(partitions) == 0 {
		return err
	}
	buf, keyEnd, _ := record.NewTemplate(&campaign.Campaign{ID: g.e.Campaign}, 0).AppendRecord(nil, g.client)
	key := string(buf[:keyEnd])
	home := int32(kgo.StickyKeyPartitioner(nil).ForTopic(t.cfg.Notifications).Partition(&kgo.Record{Key: []byte(key)}, len(partitions)))
	// The topic may have had fewer partitions at that time.
	order := append([]int32{home}, slices.DeleteFunc(slices.Clone(partitions), func(p int32) bool { return p == home })...)
	for _, p := range order {
		found, search, err := t.findKey(ctx, p, key, g.e.Feedback.Decided)
		if g.e.Search == nil && (err == nil || search != nil && search.To > search.From) { // otherwise nothing was read
			g.e.Search = search
		}
		if g.e.Record = found; found != nil || err != nil {
			return err
		}
	}
	return nil
}

// findKey looks in one partition for the record of a key that was decided in a second.
func (t *topicSearch) findKey(ctx context.Context, partition int32, key string, decided time.Time) (*explain.Record, *explain.RecordSearch, error) {
	name := t.cfg.Notifications
	start, end, err := t.committedRange(ctx, name, partition)
	if err != nil {
		return nil, nil, err
	}
	offsetAt := func(at time.Time) (int64, error) {
		o, err := fetch.ListOffset(ctx, name, partition, func(ctx context.Context, topics ...string) (kadm.ListedOffsets, error) {
			return t.adm.ListOffsetsAfterMilli(ctx, at.UnixMilli(), topics...)
		})
		if err != nil || o.Offset < 0 {
			return end, t.cfg.ExplainDenied(err, t.client, "Read", name)
		}
		return min(max(o.Offset, start), end), nil
	}
	far, err := offsetAt(decided.Add(-stampMargin))
	if err != nil {
		return nil, nil, err
	}
	near, err := offsetAt(decided.Add(-nearMargin))
	if err != nil {
		return nil, nil, err
	}
	far = min(far, near)
	search := &explain.RecordSearch{Topic: name, Partition: partition, From: near, End: end}
	var found *explain.Record
	look := func(r *fetch.Record) error {
		if string(r.Key) != key {
			return nil
		}
		found = &explain.Record{Topic: name, Partition: partition, Offset: r.Offset, Time: time.UnixMilli(r.Time)}
		return errEnough
	}
	search.To, err = t.scanPartition(ctx, name, partition, near, end, look)
	search.Partial = search.To < end
	if err != nil || found != nil || t.left <= 0 {
		return found, search, err
	}
	stopped, err := t.scanPartition(ctx, name, partition, far, near, look)
	if stopped == near {
		search.From = far
	}
	return found, search, err
}

// Package operator holds the commands that act on a deployment from the outside, without
// a running lane: they list and retry dead letters, audit the invariants, and resolve a
// lane that halted.
package operator

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/stream/campaign"
	"dinnerbell/stream/record"
	"dinnerbell/stream/topic"
	"dinnerbell/stream/topic/fetch"
)

// DeadLetter is one record of the dead-letter topic: a message that was refused.
type DeadLetter struct {
	Partition int32     // of the dead-letter topic
	Offset    int64     // of the record, in the dead-letter topic
	Time      time.Time // when the message was sent
	Topic     string    // the topic that the message came from; From and FromAt are its place there
	From      int32
	FromAt    int64
	Reason    string
	Class     campaign.ReasonClass // of Reason; "" if the letter does not say
	Refused   time.Time            // when the dead letter was sent
	Truncated string               // how much of the message is left, where it was too large for the dead-letter topic
	Key       []byte
	Value     []byte
	Headers   []kgo.RecordHeader // of the message
}

// LetterFilter chooses dead letters. The zero value chooses all.
type LetterFilter struct {
	// Reason is the class of the reason or a part of its text, in any case.
	Reason string
	// Since leaves out dead letters that were sent before it.
	Since time.Time
}

func (f *LetterFilter) choosesLetter(d *DeadLetter) bool {
	if d.Refused.Before(f.Since) {
		return false
	}
	return f.Reason == "" || strings.EqualFold(string(d.Class), f.Reason) || strings.Contains(strings.ToLower(d.Reason), strings.ToLower(f.Reason))
}

// ReasonClassOf returns the class of that name, in any case; "" if there is none.
func ReasonClassOf(name string) campaign.ReasonClass {
	for _, class := range campaign.ReasonClasses {
		if strings.EqualFold(string(class), name) {
			return class
		}
	}
	return ""
}

// ReasonClassNames lists the classes, for a message.
func ReasonClassNames() string {
	names := make([]string, len(campaign.ReasonClasses))
	for i, class := range campaign.ReasonClasses {
		names[i] = string(class)
	}
	return strings.Join(names, ", ")
}

// ReadDeadLetters calls fn for each chosen record of the dead-letter topic as of now,
// partition by partition, in order. It needs no daemon and reads as a read_committed
// consumer does.
func ReadDeadLetters(ctx context.Context, cfg topic.Config, log *slog.Logger, filter LetterFilter, fn func(*DeadLetter) error) error {
	t, err := openLetterTopic(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer t.close()
	return t.eachLetter(ctx, filter, fn)
}

// letterTopic is the dead-letter topic as commands read it.
type letterTopic struct {
	cfg    topic.Config
	log    *slog.Logger
	client *kgo.Client
	limits topic.Limits
}

// openLetterTopic makes a client and reads the size limit of notifications.
func openLetterTopic(ctx context.Context, cfg topic.Config, log *slog.Logger) (*letterTopic, error) {
	t := &letterTopic{cfg: cfg.WithDefaults(), log: log}
	client, err := t.cfg.NewClient(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(fetch.MaxBatch))
	if err != nil {
		return nil, err
	}
	t.client = client
	found, err := topic.ReadCluster(ctx, t.client, t.cfg)
	if err != nil {
		t.close()
		return nil, err
	}
	t.limits = topic.NewLimits(found, t.cfg)
	return t, nil
}

func (t *letterTopic) close() { topic.CloseClient(t.client, t.log, -1) }

// eachLetter is ReadDeadLetters.
func (t *letterTopic) eachLetter(ctx context.Context, filter LetterFilter, fn func(*DeadLetter) error) error {
	name := t.cfg.DeadLetters
	details, err := topic.DescribeTopics(ctx, t.client, name)
	if err != nil {
		return err
	}
	detail := details[name]
	if detail.Err != nil {
		return t.cfg.ExplainUndescribed(detail.Err, t.client, "Read", name)
	}
	adm := kadm.NewClient(t.client)
	for _, p := range slices.Sorted(maps.Keys(detail.Partitions)) {
		list := adm.ListStartOffsets
		if !filter.Since.IsZero() {
			list = func(ctx context.Context, topics ...string) (kadm.ListedOffsets, error) {
				return adm.ListOffsetsAfterMilli(ctx, filter.Since.UnixMilli(), topics...)
			}
		}
		start, err := fetch.ListOffset(ctx, name, p, list)
		if err != nil {
			return topic.NameBrokers(t.client, t.cfg.ExplainDenied(err, t.client, "Read", name))
		}
		end, err := fetch.ListOffset(ctx, name, p, adm.ListCommittedOffsets)
		if err != nil {
			return topic.NameBrokers(t.client, t.cfg.ExplainDenied(err, t.client, "Read", name))
		}
		r := fetch.PartitionReader{Client: t.client, NewClient: t.cfg.NewClient, Topic: name, TopicID: detail.ID, Partition: p}
		var failed error // of fn, which asks no broker
		err = r.ReadRange(ctx, start.Offset, end.Offset, func(r *fetch.Record) error {
			if d := newDeadLetter(r); filter.choosesLetter(d) {
				failed = fn(d)
			}
			return failed
		})
		switch {
		case failed != nil:
			return fmt.Errorf("read %s/%d: %w", name, p, err)
		case err != nil:
			return topic.NameBrokers(t.client, fmt.Errorf("read %s/%d: %w", name, p, t.cfg.ExplainDenied(err, t.client, "Read", name)))
		}
	}
	return nil
}

// newDeadLetter reads a record of the dead-letter topic. A record of another
// producer keeps its time and has neither reason nor topic; a record that cannot
// be read has the cause as its reason, and no topic.
func newDeadLetter(r *fetch.Record) *DeadLetter {
	d := &DeadLetter{Partition: r.Partition, Offset: r.Offset, Time: time.UnixMilli(r.Time), Refused: time.UnixMilli(r.Time), Key: r.Key, Value: r.Value}
	switch {
	case r.Unreadable != "":
		d.Reason = fmt.Sprintf("offsets %d to %d of the dead-letter topic cannot be read: %s", r.Offset, r.Next-1, r.Unreadable)
		return d
	case r.Truncated:
		d.Reason = fmt.Sprintf("the record takes %d bytes", r.Size)
		return d
	}
	var headers []record.Header
	r.EachHeader(func(key string, value []byte) { headers = append(headers, record.Header{Key: key, Value: value}) })
	var letter record.DeadLetter
	if letter.ReadRecordHeaders(headers) {
		d.Time, d.Topic, d.From, d.FromAt = time.UnixMilli(letter.Timestamp), letter.Topic, letter.Partition, letter.Offset
		d.Reason, d.Class, d.Truncated = letter.Reason, letter.Class, letter.Truncated()
	}
	for _, h := range letter.Headers {
		d.Headers = append(d.Headers, kgo.RecordHeader{Key: h.Key, Value: h.Value})
	}
	return d
}

// Retried is the result of a retry for one dead letter.
type Retried struct {
	Partition int32 `json:"partition"` // of the dead-letter topic
	Offset    int64 `json:"offset"`
	// SentTo is the message's new offset on the partition that it came from; -1 if it
	// was not sent, for Reason.
	SentTo int64  `json:"sent_to"`
	Reason string `json:"reason,omitempty"`
}

// RetryDeadLetters sends the chosen dead letters for which want returns true to the
// campaigns topic again, to the partition that they came from, as new messages: each
// is then the newest message of its campaign, and joined even where it repeats the
// accepted one. A letter that would be refused again is
// not sent. done is called with each result; its error, as any other, ends the retry.
func RetryDeadLetters(ctx context.Context, cfg topic.Config, log *slog.Logger, filter LetterFilter, want func(*DeadLetter) bool, done func(Retried) error) error {
	t, err := openLetterTopic(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer t.close()
	return t.eachLetter(ctx, filter, func(d *DeadLetter) error {
		if !want(d) {
			return nil
		}
		out := Retried{Partition: d.Partition, Offset: d.Offset, SentTo: -1, Reason: t.refusalOf(d)}
		if out.Reason == "" {
			r := topic.RetryRecord(t.cfg.Campaigns, d.From, d.Key, d.Value, d.Headers)
			sent, err := t.client.ProduceSync(ctx, r).First()
			if err != nil {
				return fmt.Errorf("send %s/%d offset %d again: %w", t.cfg.DeadLetters, d.Partition, d.Offset, t.cfg.ExplainDenied(err, t.client, "Write", t.cfg.Campaigns))
			}
			out.SentTo = sent.Offset
		}
		return done(out)
	})
}

// refusalOf returns the reason why a dead letter cannot be sent again; "" if it can.
func (t *letterTopic) refusalOf(d *DeadLetter) string {
	switch {
	case d.Topic != t.cfg.Campaigns:
		return fmt.Sprintf("it does not come from topic %s", t.cfg.Campaigns)
	case d.Truncated != "":
		return "it is not whole: " + d.Truncated
	case d.Class == campaign.ClassClients:
		return "it names clients who were left out, and is no message; once the cause is mended, dinnerbell replay --from TIME reaches them (TIME lies before the campaign was sent)"
	}
	c, refusal := campaign.Parse(d.Value)
	if refusal == nil {
		refusal = record.CheckSize(c, t.cfg.Notifications, t.limits.Notification)
	}
	if refusal != nil {
		return "it would be refused again: " + refusal.Reason
	}
	return ""
}

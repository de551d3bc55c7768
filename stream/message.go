package stream

import (
	"errors"
	"fmt"
	"time"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/record"
	"dinnerbell/stream/topic"
)

// message is one record of the campaigns topic, parsed; or, with neither campaign
// nor dead letter, offsets that hold none.
type message struct {
	offset   int64 // the last that it stands for
	time     int64 // milliseconds
	campaign *campaign.Campaign
	dead     *record.DeadLetter // instead of campaign
	// fresh is a moment before the barrier that the message has passed: the local
	// subscriptions hold every change committed before it. Zero: the barrier was
	// shut, and the message is not joined now.
	fresh       time.Time
	fingerprint campaign.Fingerprint // of campaign
	accepted    *campaign.Version    // what the campaign table held for its key; nil if nothing
	shared      bool                 // the campaign runs, or ran, for other restaurants too

	// Of a replay alone.
	feed      *replayFeed
	replaced  bool  // the topic has a newer message of the campaign
	delivered id.ID // what the delivered cache has those under who have the campaign
	have      int   // of them
}

// messageParser turns records of the campaigns topic into messages.
type messageParser struct {
	topic   string         // of the notifications
	limit   int            // bytes that it accepts per batch
	table   *feedbackTable // what it cannot hold is refused; nil: not asked
	letters letterMaker
}

func newMessageParser(cfg KafkaConfig, limits topicLimits, table *feedbackTable) messageParser {
	return messageParser{topic: cfg.Notifications, limit: limits.record, table: table, letters: newLetterMaker(cfg, limits)}
}

// parseRecord turns a record into a message. It never fails: what is no campaign
// becomes a dead letter.
func (p *messageParser) parseRecord(r *topic.Record) message {
	m := message{offset: r.Next - 1, time: r.Time}
	c, err := p.parseCampaign(r)
	if err == nil {
		m.campaign, m.fingerprint = c, c.Fingerprint()
		return m
	}
	m.dead = &record.DeadLetter{Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Timestamp: m.time, Reason: err.Error(), Key: r.Key, Value: r.Value}
	whole := r.EachHeader(func(key string, value []byte) {
		m.dead.Headers = append(m.dead.Headers, record.Header{Key: key, Value: value})
	})
	size := len(r.Value)
	if r.Cut {
		size = r.Size
	}
	m.dead.Fit(p.letters.limit, size, !whole)
	return m
}

// parseCampaign says why a record is no campaign that can be notified.
func (p *messageParser) parseCampaign(r *topic.Record) (*campaign.Campaign, error) {
	switch {
	case r.Unreadable != "" && r.Next > r.Offset+1:
		return nil, fmt.Errorf("offsets %d to %d cannot be read: %s", r.Offset, r.Next-1, r.Unreadable)
	case r.Unreadable != "":
		return nil, fmt.Errorf("offset %d cannot be read: %s", r.Offset, r.Unreadable)
	case r.Cut:
		return nil, fmt.Errorf("the message takes %d bytes, more than is read of one", r.Size)
	}
	c, err := campaign.Parse(r.Value)
	if err != nil {
		return nil, err
	}
	size := 6*c.Size() + record.Overhead // escapes make a text six times as long at most
	if size > p.limit {
		size = record.NewTemplate(c, 0).MaxRecordSize(0) + record.Overhead
	}
	if size > p.limit {
		return nil, fmt.Errorf("a notification of it takes %d bytes, topic %s accepts %d", size, p.topic, p.limit)
	}
	if p.table != nil {
		if why := p.table.refusesCampaign(c); why != "" {
			return nil, errors.New(why)
		}
	}
	return c, nil
}

// memorySize is about what the message holds in memory, in bytes.
func (m *message) memorySize() int {
	switch {
	case m.campaign != nil:
		return m.campaign.Size()
	case m.dead != nil:
		return m.dead.Size()
	}
	return 0
}

// holdsNothing tells that the message stands for offsets that hold nothing.
func (m *message) holdsNothing() bool { return m.campaign == nil && m.dead == nil }

package stream

import (
	"context"
	"maps"
	"slices"
	"time"

	"dinnerbell/state"
	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/record"
	"dinnerbell/stream/sink"
	"dinnerbell/stream/takeover"
	"dinnerbell/stream/topic"
	"dinnerbell/stream/topic/fetch"
)

// message is one parsed record of the campaigns topic; or, with neither campaign nor
// dead letter, offsets without records.
type message struct {
	offset   int64 // of the record, or the last of the offsets
	time     int64 // milliseconds
	campaign *campaign.Campaign
	dead     *record.DeadLetter // set where campaign is not
	// fresh is a moment before the barrier that the message has passed: the local
	// subscriptions hold every change that was committed before fresh. Zero: the
	// barrier was shut, and the message is not joined now.
	fresh       time.Time
	received    time.Time
	waited      time.Duration        // for the barrier
	traceparent string               // header of the record, where campaigns are traced
	fingerprint campaign.Fingerprint // of campaign
	retried     bool                 // it was a dead letter and was sent again
	accepted    *campaign.Version    // version in the campaign table; nil if there is no row
	shared      bool                 // the campaign runs, or ran, for other restaurants too

	// Set by a replay alone.
	window     *replayWindow
	superseded bool  // the topic has a newer message of the campaign
	delivered  id.ID // name of the campaign's clients in the delivered cache
	have       int   // how many clients have the campaign
}

// messageParser turns records of the campaigns topic into messages.
type messageParser struct {
	topic   string              // of the notifications
	limit   int                 // bytes that the topic accepts per batch
	table   *sink.FeedbackTable // campaigns that it cannot hold are refused; nil: not checked
	letters record.LetterMaker
	traced  bool // campaigns are traced: notifications have a header
}

func newMessageParser(cfg topic.Config, limits topic.Limits, table *sink.FeedbackTable) messageParser {
	return messageParser{topic: cfg.Notifications, limit: limits.Notification, table: table, letters: newLetterMaker(cfg, limits)}
}

// parseRecord turns a record into a message. It never fails: a record without a valid
// campaign becomes a dead letter.
func (p *messageParser) parseRecord(r *fetch.Record) message {
	m := message{offset: r.Next - 1, time: r.Time}
	c, refusal := p.parseCampaign(r)
	if refusal == nil {
		m.campaign, m.fingerprint, m.retried = c, c.Fingerprint(), r.HasHeader(topic.RetryHeader)
		if p.traced {
			r.EachHeader(func(key string, value []byte) {
				if key == TraceparentHeader && len(value) < traceHeaderBytes {
					m.traceparent = string(value)
				}
			})
		}
		return m
	}
	m.dead = &record.DeadLetter{
		Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Timestamp: m.time, Reason: refusal.Reason, Class: refusal.Class, Key: r.Key, Value: r.Value,
	}
	whole := r.EachHeader(func(key string, value []byte) {
		m.dead.Headers = append(m.dead.Headers, record.Header{Key: key, Value: value})
	})
	size := len(r.Value)
	if r.Truncated {
		size = r.Size
	}
	m.dead.Fit(p.letters.Limit, size, !whole)
	return m
}

// parseCampaign returns the record's campaign, or why its notifications cannot be sent.
func (p *messageParser) parseCampaign(r *fetch.Record) (*campaign.Campaign, *campaign.Refusal) {
	switch {
	case r.Unreadable != "" && r.Next > r.Offset+1:
		return nil, campaign.Refuse(campaign.ClassUnreadable, "offsets %d to %d cannot be read: %s", r.Offset, r.Next-1, r.Unreadable)
	case r.Unreadable != "":
		return nil, campaign.Refuse(campaign.ClassUnreadable, "offset %d cannot be read: %s", r.Offset, r.Unreadable)
	case r.Truncated:
		return nil, campaign.Refuse(campaign.ClassTooLarge, "the message takes %d bytes, more than is read of one", r.Size)
	}
	c, refusal := campaign.Parse(r.Value)
	if refusal == nil {
		limit := p.limit
		if p.traced {
			limit -= traceHeaderBytes
		}
		refusal = record.CheckSize(c, p.topic, limit)
	}
	if refusal == nil && p.table != nil {
		if why := p.table.CampaignMisfit(c); why != "" {
			refusal = campaign.Refuse(campaign.ClassTable, "%s", why)
		}
	}
	if refusal != nil {
		return nil, refusal
	}
	return c, nil
}

// memorySize estimates the memory of the message, in bytes.
func (m *message) memorySize() int {
	switch {
	case m.campaign != nil:
		return m.campaign.Size()
	case m.dead != nil:
		return m.dead.Size()
	}
	return 0
}

// holdsNothing reports whether the message stands for offsets without records.
func (m *message) holdsNothing() bool { return m.campaign == nil && m.dead == nil }

// forJudge is the message as campaign.Judge compares it.
func (m *message) forJudge(lane int32) campaign.Message {
	return campaign.Message{
		Position: campaign.Position{Lane: lane, Offset: m.offset}, Time: m.time, Fingerprint: m.fingerprint,
		End: m.campaign.End, Superseded: m.superseded, Distinct: m.retried,
	}
}

// campaignLookup reads the versions of messages' campaigns from the campaign table.
// Goroutines may use it at once, each with its own batch.
type campaignLookup struct {
	lane    int32
	t       sink.Tables
	reader  sink.Querier
	table   *sink.FeedbackTable
	letters record.LetterMaker
	timeout time.Duration
}

// fillVersionsAnew is fillVersions for messages that may have been looked up before.
func (l *campaignLookup) fillVersionsAnew(ctx context.Context, batch []message) error {
	for i := range batch {
		batch[i].accepted, batch[i].shared = nil, false
	}
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	return l.fillVersions(ctx, batch)
}

// fillVersions sets the accepted version of each campaign of the batch, as the
// campaign table holds it. The table does not show steps in flight yet; the decider
// remembers those. Most ids are new, so the first query only asks which ids exist.
func (l *campaignLookup) fillVersions(ctx context.Context, batch []message) error {
	if err := l.refuseUnencodable(ctx, batch); err != nil {
		return err
	}
	byID := make(map[string][]*message, len(batch))
	for i := range batch {
		if c := batch[i].campaign; c != nil {
			byID[c.ID] = append(byID[c.ID], &batch[i])
		}
	}
	if len(byID) == 0 {
		return nil
	}
	ids, err := l.t.ReadExistingIDs(ctx, l.reader, slices.Collect(maps.Keys(byID)))
	if err != nil {
		return err
	}
	var there []*message
	for _, id := range ids {
		there = append(there, byID[id]...)
	}
	return l.fillAccepted(ctx, there)
}

// fillAccepted is fillVersions for messages whose ids the campaign table has.
func (l *campaignLookup) fillAccepted(ctx context.Context, batch []*message) error {
	byKey := make(map[campaign.Key][]*message, len(batch))
	for _, m := range batch {
		k := m.campaign.Key()
		byKey[k] = append(byKey[k], m)
	}
	if len(byKey) == 0 {
		return nil
	}
	return l.t.ReadAccepted(ctx, l.reader, slices.Collect(maps.Keys(byKey)), func(k campaign.Key, n *campaign.Version, shared bool) {
		for _, m := range byKey[k] {
			m.accepted, m.shared = n, shared
		}
	})
}

// messageInspector prepares messages of the campaigns topic for the decision: it
// parses them, looks their campaigns up, and loads the clients who have one.
type messageInspector struct {
	parser    messageParser
	lookup    campaignLookup
	delivered *deliveredCache
}

// newMessageInspector makes the inspector of a lane, or of none (-1).
func newMessageInspector(cfg takeover.Config, lane int32, table *sink.FeedbackTable, limits topic.Limits, reader sink.Querier, store *state.Store) *messageInspector {
	parser := newMessageParser(cfg.Kafka, limits, table)
	return &messageInspector{
		parser:    parser,
		lookup:    campaignLookup{lane: lane, t: cfg.Sink.Tables(), reader: reader, table: table, letters: parser.letters, timeout: cfg.SinkTimeout},
		delivered: &deliveredCache{lane: lane, store: store, reader: reader, table: table, timeout: 10 * cfg.SinkTimeout, log: cfg.Logger},
	}
}

// recentMessages are the messages that the decider has accepted lately. They are newer
// than the result of a look-up that was made before the accepting step was committed.
// An entry that is forgotten too early costs a repeated step, never a message. The
// entry with the oldest last use is forgotten first: a campaign whose newest message
// is in flight must not be forgotten because its first message was long ago.
type recentMessages struct {
	limit int
	byKey map[campaign.Key]recentMessage
	uses  []recentUse // oldest first; uses that byKey does not name are void
	count int64
}

type recentMessage struct {
	campaign.Version
	use int64
}

type recentUse struct {
	key campaign.Key
	use int64
}

func newRecentMessages(limit int) *recentMessages {
	return &recentMessages{limit: limit, byKey: map[campaign.Key]recentMessage{}}
}

// versionOf returns the remembered version of a campaign, or nil.
func (r *recentMessages) versionOf(k campaign.Key) *campaign.Version {
	if e, ok := r.byKey[k]; ok {
		return &e.Version
	}
	return nil
}

func (r *recentMessages) putVersion(k campaign.Key, n campaign.Version) {
	r.count++
	r.byKey[k] = recentMessage{n, r.count}
	r.uses = append(r.uses, recentUse{k, r.count})
	for len(r.uses) > r.limit {
		oldest := r.uses[0]
		r.uses[0], r.uses = recentUse{}, r.uses[1:]
		if r.byKey[oldest.key].use == oldest.use {
			delete(r.byKey, oldest.key)
		}
	}
}

func (r *recentMessages) removeVersion(k campaign.Key) { delete(r.byKey, k) }

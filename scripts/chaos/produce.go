package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv"
	"dinnerbell/scripts/chaos/history"
	"dinnerbell/scripts/chaos/random"
	"dinnerbell/scripts/chaos/scenario"
)

// numberHeader is the record header with the message's number.
const numberHeader = "chaos-number"

// campaignProducer sends campaigns one at a time, so that offsets, record times
// and this process's clock give them the same order.
type campaignProducer struct {
	round  *round
	author *scenario.CampaignAuthor
	client *kgo.Client
	txns   *kgo.Client // for transactions; nil before the first one and after an error
	number int64
	last   int64 // milliseconds; time of the last record
}

func newProducer(r *round) (*campaignProducer, error) {
	client, err := r.servers.newKafkaClient(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0), kgo.DefaultProduceTopic(r.topics.campaigns))
	if err != nil {
		return nil, err
	}
	return &campaignProducer{round: r, client: client, author: &scenario.CampaignAuthor{Random: random.NewStream(r.servers.opts.seed, r.number, random.CampaignStream), Partitions: history.Partitions, Life: r.log.Life}}, nil
}

// sendUntilDone sends messages until ctx ends.
func (p *campaignProducer) sendUntilDone(ctx context.Context) error {
	for testenv.Pause(ctx, p.round.workloadPace().drawMessagePause(p.author.Random)) {
		m := p.author.NextMessage(time.Now().Unix())
		send := p.sendMessage
		if m.Transaction {
			send = p.sendInTransaction
		}
		if err := send(ctx, m); err != nil {
			return err
		}
		if err := p.sendRepeats(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

// sendRepeats sends the message again, Repeats times in quick succession, while
// the daemon is delivering its campaign.
func (p *campaignProducer) sendRepeats(ctx context.Context, m *history.Message) error {
	for range m.Repeats {
		if !testenv.Pause(ctx, 10*time.Millisecond) {
			return nil
		}
		again := &history.Message{Kind: "repeated", Partition: m.Partition, Value: m.Value, Fields: m.Fields}
		if err := p.sendMessage(ctx, again); err != nil {
			return err
		}
	}
	return nil
}

// sendInTransaction produces one message in a transaction and commits or aborts
// it. After an error, the next client's InitProducerID settles the outcome, and
// the topic shows which one it was.
func (p *campaignProducer) sendInTransaction(ctx context.Context, m *history.Message) error {
	rec := p.newRecord(m)
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.round.servers.opts.limit)
	defer cancel()
	err := p.produceInTransaction(bound, rec, kgo.TransactionEndTry(!m.Aborted))
	if err == nil {
		m.Acked, m.Offset = !m.Aborted, rec.Offset
	}
	p.round.log.AddMessage(m)
	for err != nil {
		p.round.log.Notef("transaction of message %d: %v", m.Number, err)
		p.closeTransactional()
		if !testenv.Pause(bound, 100*time.Millisecond) {
			return fmt.Errorf("settle the transaction of message %d: %w", m.Number, err)
		}
		err = p.openTransactional(bound)
	}
	return nil
}

func (p *campaignProducer) produceInTransaction(ctx context.Context, rec *kgo.Record, end kgo.TransactionEndTry) error {
	if p.txns == nil {
		if err := p.openTransactional(ctx); err != nil {
			return err
		}
	}
	if err := p.txns.BeginTransaction(); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	if err := p.txns.ProduceSync(ctx, rec).FirstErr(); err != nil {
		return fmt.Errorf("produce: %w", err)
	}
	if err := p.txns.EndTransaction(ctx, end); err != nil {
		return fmt.Errorf("end: %w", err)
	}
	return nil
}

// openTransactional opens a new client for transactions. InitProducerID aborts
// the transaction that an earlier client left open, or completes a commit that
// had begun.
func (p *campaignProducer) openTransactional(ctx context.Context) (err error) {
	p.closeTransactional()
	p.txns, err = p.round.servers.newKafkaClient(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0), kgo.DefaultProduceTopic(p.round.topics.campaigns),
		kgo.TransactionalID(p.round.database+".input"), kgo.TransactionTimeout(10*time.Second))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, _, err := p.txns.ProducerID(ctx); err != nil {
		return fmt.Errorf("init producer id: %w", err)
	}
	return nil
}

func (p *campaignProducer) closeTransactional() {
	if p.txns != nil {
		p.txns.Close()
		p.txns = nil
	}
}

func (p *campaignProducer) closeClients() {
	p.closeTransactional()
	p.client.Close()
}

// newRecord gives the message its number and returns its record.
func (p *campaignProducer) newRecord(m *history.Message) *kgo.Record {
	p.number++
	m.Number = p.number
	p.last = max(p.last+1, time.Now().UnixMilli())
	m.Time = p.last
	m.Before = p.round.log.Now()
	return &kgo.Record{
		Partition: m.Partition, Value: m.Value, Timestamp: time.UnixMilli(m.Time),
		Headers: []kgo.RecordHeader{{Key: numberHeader, Value: strconv.AppendInt(nil, m.Number, 10)}},
	}
}

// sendMessage produces one message and waits for the acknowledgement, also over a
// broker's restart. A message without an acknowledgement may be in the topic or
// not.
func (p *campaignProducer) sendMessage(ctx context.Context, m *history.Message) error {
	rec := p.newRecord(m)
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.round.servers.opts.limit)
	defer cancel()
	err := p.client.ProduceSync(bound, rec).FirstErr()
	if err == nil {
		m.Acked, m.Offset = true, rec.Offset
	}
	p.round.log.AddMessage(m)
	if err != nil {
		return fmt.Errorf("produce message %d: %w", m.Number, err)
	}
	return nil
}

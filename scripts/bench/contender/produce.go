package contender

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"github.com/twmb/franz-go/pkg/kgo"
)

// ProduceLimit is what Kafka can take at best: the same records, rendered
// beforehand, in transactions of the size that the daemon's have, by a client
// with its settings and nothing else to do.
type ProduceLimit struct {
	Broker, Topic string
	client        *kgo.Client
	records       []*kgo.Record
}

// produceRows is how many records one transaction has: 4 MiB of them.
const produceRows = 8000

func (p *ProduceLimit) Prepare(ctx context.Context, l *CampaignLoad) error {
	p.records = p.records[:0]
	for i := range l.Campaigns {
		c := &l.Campaigns[i]
		for _, client := range c.clients {
			p.records = append(p.records, renderNotification(p.Topic, c, client))
		}
	}
	var err error
	p.client, err = kgo.NewClient(kgo.SeedBrokers(p.Broker), kgo.TransactionalID("bench-"+p.Topic),
		kgo.RequiredAcks(kgo.AllISRAcks()), kgo.ProducerLinger(0), kgo.MaxBufferedRecords(1<<17))
	if err != nil {
		return fmt.Errorf("make producer: %w", err)
	}
	_, _, err = p.client.ProducerID(ctx)
	return err
}

// renderNotification renders what the daemon would; only its size matters.
func renderNotification(topic string, c *Campaign, client string) *kgo.Record {
	value := `{"restaurant_id":"` + c.Restaurant + `","adv_campaign_id":"` + c.ID + `","adv_campaign_content":"` + c.Content +
		`","adv_campaign_owner":"` + c.Owner + `","adv_campaign_owner_contact":"` + c.Contact +
		`","adv_campaign_datetime_start":` + strconv.FormatInt(c.Start, 10) + `,"adv_campaign_datetime_end":` + strconv.FormatInt(c.End, 10) +
		`,"client_id":"` + client + `","datetime_created":` + strconv.FormatInt(c.Created, 10) + `,"trigger_datetime_created":` + strconv.FormatInt(c.Start, 10) + `}`
	return &kgo.Record{Topic: topic, Key: []byte(c.ID + ":" + client), Value: []byte(value)}
}

func (p *ProduceLimit) Deliver(ctx context.Context, _ *CampaignLoad) error {
	for left := p.records; len(left) > 0; {
		n := min(produceRows, len(left))
		if err := p.client.BeginTransaction(); err != nil {
			return fmt.Errorf("begin transaction: %w", err)
		}
		var result kgo.FirstErrPromise
		for _, r := range left[:n] {
			p.client.Produce(ctx, r, result.Promise())
		}
		if err := p.client.Flush(ctx); err != nil {
			return fmt.Errorf("flush: %w", err)
		}
		if err := result.Err(); err != nil {
			return fmt.Errorf("produce: %w", err)
		}
		if err := p.client.EndTransaction(ctx, kgo.TryCommit); err != nil {
			return fmt.Errorf("commit: %w", err)
		}
		left = left[n:]
	}
	return nil
}

func (p *ProduceLimit) Settle(context.Context, *CampaignLoad) error {
	p.client.Close()
	p.records = nil
	return nil
}

// PID is this program: its CPU time is the client's.
func (p *ProduceLimit) PID() int { return os.Getpid() }

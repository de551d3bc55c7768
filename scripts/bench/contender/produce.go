package contender

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"github.com/twmb/franz-go/pkg/kgo"
)

// ProduceLimit measures the limit of Kafka: an otherwise idle client with the
// daemon's settings produces the same records, rendered beforehand, in
// transactions of the daemon's size.
type ProduceLimit struct {
	Broker, Topic string
	client        *kgo.Client
	records       []*kgo.Record
}

// produceRows is the number of records per transaction: 4 MiB of them.
const produceRows = 8000

// Prepare implements Contender.
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

// renderNotification renders a record of the same size as the daemon's.
func renderNotification(topic string, c *Campaign, client string) *kgo.Record {
	value := `{"restaurant_id":"` + c.Restaurant + `","adv_campaign_id":"` + c.ID + `","adv_campaign_content":"` + c.Content +
		`","adv_campaign_owner":"` + c.Owner + `","adv_campaign_owner_contact":"` + c.Contact +
		`","adv_campaign_datetime_start":` + strconv.FormatInt(c.Start, 10) + `,"adv_campaign_datetime_end":` + strconv.FormatInt(c.End, 10) +
		`,"client_id":"` + client + `","datetime_created":` + strconv.FormatInt(c.Created, 10) + `,"trigger_datetime_created":` + strconv.FormatInt(c.Start, 10) + `}`
	return &kgo.Record{Topic: topic, Key: []byte(c.ID + ":" + client), Value: []byte(value)}
}

// Deliver implements Contender.
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

// Settle implements Contender.
func (p *ProduceLimit) Settle(context.Context, *CampaignLoad) error {
	p.client.Close()
	p.records = nil
	return nil
}

// PID is this process, in which the client runs.
func (p *ProduceLimit) PID() int { return os.Getpid() }

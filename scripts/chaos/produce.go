package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// numberHeader carries a message's number.
const numberHeader = "chaos-number"

// producer sends campaigns, one at a time: their order is then the same by
// offset, by record time and by our clock.
type producer struct {
	r      *round
	author *author
	client *kgo.Client
	number int64
	last   int64 // time of the last record, milliseconds
}

func newProducer(r *round) (*producer, error) {
	client, err := r.w.client(kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0), kgo.DefaultProduceTopic(r.topics.campaigns))
	if err != nil {
		return nil, err
	}
	return &producer{r: r, client: client, author: &author{rnd: random(r.w.opts.seed, r.number, streamCampaigns), partitions: partitions}}, nil
}

// run sends messages until ctx ends.
func (p *producer) run(ctx context.Context) error {
	for pause(ctx, between(p.author.rnd, 10*time.Millisecond, 250*time.Millisecond)) {
		if err := p.send(ctx, p.author.next(time.Now().Unix())); err != nil {
			return err
		}
	}
	return nil
}

// send produces one message and waits for the answer, over a broker's restart
// if need be. One that is not answered may be in the topic or not.
func (p *producer) send(ctx context.Context, m *message) error {
	p.number++
	m.Number = p.number
	p.last = max(p.last+1, time.Now().UnixMilli())
	m.Time = p.last
	m.Before = p.r.h.now()
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	rec := &kgo.Record{
		Partition: m.Partition, Value: m.Value, Timestamp: time.UnixMilli(m.Time),
		Headers: []kgo.RecordHeader{{Key: numberHeader, Value: strconv.AppendInt(nil, m.Number, 10)}},
	}
	err := p.client.ProduceSync(bound, rec).FirstErr()
	if err == nil {
		m.Acked, m.Offset = true, rec.Offset
	}
	p.r.h.addMessage(m)
	if err != nil {
		return fmt.Errorf("produce message %d: %w", m.Number, err)
	}
	return nil
}

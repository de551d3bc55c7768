package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/failpoint"
)

// shipAll turns decided steps into Kafka transactions, in order: what is
// pending goes together, up to a byte cap. Any error ends the session; what
// was committed is read back by the next one.
func (s *session) shipAll(ctx context.Context) error {
	out := &outbound{}
	for {
		var first *payload
		select {
		case p, ok := <-s.decided:
			if !ok {
				return nil
			}
			first = p
		case <-ctx.Done():
			return ctx.Err()
		}
		batch, size := s.shipment(first)
		out.reset(batch, size, 2*s.cfg.StepBytes)
		err := s.ship(ctx, batch, out)
		if errors.Is(err, kerr.MessageTooLarge) {
			return &HaltError{Lane: s.lane.id,
				What: fmt.Sprintf("steps %d to %d are decided, and topic %s or %s does not accept them any more: %v", batch[0].seq, batch[len(batch)-1].seq, s.cfg.Kafka.Notifications, s.cfg.Kafka.DeadLetters, err),
				Hint: "put the topics' max.message.bytes back to what it was, or higher, and start the daemon again"}
		}
		if err != nil {
			return fmt.Errorf("ship steps %d to %d: %w", batch[0].seq, batch[len(batch)-1].seq, err)
		}
		s.shippedUpTo(batch)
	}
}

// shipment collects what is decided by now, and bounds the bytes of its records.
func (s *session) shipment(first *payload) ([]*payload, int) {
	batch, size := []*payload{first}, first.size()
	for size < s.cfg.StepBytes {
		select {
		case p, ok := <-s.decided:
			if !ok {
				return batch, size
			}
			batch, size = append(batch, p), size+p.size()
		default:
			return batch, size
		}
	}
	return batch, size
}

// size is the bytes that the payload's records take, close enough to allocate by.
func (p *payload) size() int {
	n := 0
	for i := range p.segments {
		seg := &p.segments[i]
		n += seg.clients.Len()*seg.rendered().recordSize(0) + 3*len(seg.clients.Bytes())*2
	}
	for i := range p.dead {
		n += len(p.dead[i].value)
	}
	return n
}

// ship produces the records of a batch and, last, the progress record, in one
// transaction. It returns nil only if the commit was acknowledged.
func (s *session) ship(ctx context.Context, batch []*payload, out *outbound) error {
	ctx, cancel := context.WithTimeout(ctx, transactionTimeout)
	defer cancel()
	if err := s.client.BeginTransaction(); err != nil {
		return fmt.Errorf("begin transaction: %w", err)
	}
	failpoint.Hit("ship/begun")
	result := &delivery{topic: s.cfg.Kafka.Notifications}
	for _, p := range batch {
		s.produce(ctx, p, out, result)
	}
	failpoint.Hit("ship/produced")
	last := batch[len(batch)-1].seq
	s.client.Produce(ctx, &kgo.Record{
		Topic: s.cfg.Kafka.Progress, Partition: s.lane.id,
		Key:   strconv.AppendInt(nil, int64(s.lane.id), 10),
		Value: fmt.Appendf(nil, `{"seq":%d}`, last),
	}, result.note)
	if err := s.client.Flush(ctx); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	if result.err != nil {
		return fmt.Errorf("produce: %w", result.err)
	}
	failpoint.Hit("ship/flushed")
	if err := s.client.EndTransaction(ctx, kgo.TryCommit); err != nil {
		return fmt.Errorf("commit: outcome unknown: %w", err)
	}
	failpoint.Hit("ship/committed")
	s.ends.raise(result.ends)
	return nil
}

// outbound is the memory of one transaction's records. The client holds it
// until the transaction has ended; then it serves the next one.
type outbound struct {
	arena   []byte       // keys and values
	records []kgo.Record // those not in use yet
	all     []kgo.Record
}

// reset makes room for a batch. What had grown beyond keep bytes for something
// rare is given up.
func (o *outbound) reset(batch []*payload, size, keep int) {
	n := 0
	for _, p := range batch {
		n += p.notifications()
	}
	if cap(o.arena) > keep {
		o.arena = nil
	}
	o.arena = slices.Grow(o.arena[:0], size)
	if cap(o.all) < n || cap(o.all) > 16*n+1024 {
		o.all = make([]kgo.Record, n)
	}
	o.all = o.all[:n]
	clear(o.all)
	o.records = o.all
}

// produce hands the payload's records to the client.
func (s *session) produce(ctx context.Context, p *payload, out *outbound, result *delivery) {
	for i := range p.segments {
		seg := &p.segments[i]
		w := seg.rendered()
		for j := range seg.clients.Len() {
			from := len(out.arena)
			var keyEnd, valueEnd int
			out.arena, keyEnd, valueEnd = w.appendRecord(out.arena, seg.clients.At(j))
			r := &out.records[0]
			out.records = out.records[1:]
			r.Topic = s.cfg.Kafka.Notifications
			r.Key, r.Value = out.arena[from:keyEnd:keyEnd], out.arena[keyEnd:valueEnd:valueEnd]
			s.client.Produce(ctx, r, result.note)
		}
	}
	for i := range p.dead {
		s.client.Produce(ctx, p.dead[i].record(s.cfg.Kafka.DeadLetters), result.note)
	}
}

// record is the dead letter as it is produced: the refused key and value
// untouched; reason, topic, partition, offset and timestamp (milliseconds) in
// headers, before those that the message came with. The record's own timestamp
// is a new one: brokers refuse timestamps far from now, and a producer's clock
// must not stop the lane.
func (d *deadLetter) record(topic string) *kgo.Record {
	r := &kgo.Record{Topic: topic, Key: d.key, Value: d.value, Headers: []kgo.RecordHeader{
		{Key: "reason", Value: []byte(d.reason)},
		{Key: "topic", Value: []byte(d.topic)},
		{Key: "partition", Value: strconv.AppendInt(nil, int64(d.partition), 10)},
		{Key: "offset", Value: strconv.AppendInt(nil, d.offset, 10)},
		{Key: "timestamp", Value: strconv.AppendInt(nil, d.timestamp, 10)},
	}}
	for _, h := range d.headers {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.key, Value: h.value})
	}
	return r
}

// fitDeadLetter cuts a message that the dead-letter topic would not take: it
// must not stop the lane. What was cut is said in a header.
func (s *session) fitDeadLetter(d *deadLetter) {
	room := s.deadLimit - headroom - len(d.reason) - len(d.topic) - len(d.key)
	for _, h := range d.headers {
		room -= len(h.key) + len(h.value) + 16
	}
	if len(d.value) <= room {
		return
	}
	whole := len(d.value)
	if room < whole/2 { // it is the key or the headers that are large
		d.headers, d.key = nil, nil
		room = s.deadLimit - headroom - len(d.reason) - len(d.topic)
	}
	d.value = d.value[:max(0, min(room-64, whole))]
	d.headers = append(d.headers, header{key: "truncated", value: fmt.Appendf(nil, "%d of %d bytes", len(d.value), whole)})
}

// shippedUpTo records K and lets the commit go on.
func (s *session) shippedUpTo(batch []*payload) {
	s.shipped.Store(batch[len(batch)-1].seq)
	s.lane.noteShipped(batch)
	select {
	case s.advanced <- struct{}{}:
	default:
	}
}

package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/failpoint"
	"dinnerbell/internal/halt"
	"dinnerbell/stream/record"
	"dinnerbell/stream/takeover"
	"dinnerbell/stream/topic"
	"dinnerbell/stream/topic/fetch"
)

// earlyPatience is how long a Kafka transaction stays open for a step whose
// commit is not known yet: it holds up the topic's readers.
const earlyPatience = 100 * time.Millisecond

// lateSteps is how many steps are shipped after their commit once a step was produced
// in vain: where every commit takes long, few steps are produced twice.
const lateSteps = 100

// shipper sends decided steps to Kafka, in transactions.
type shipper struct {
	claim   *takeover.Claim
	toShip  <-chan *inflightStep
	shipped *shipProgress
	note    func(batch []*record.Payload) // is called with each batch that is shipped
	traces  *campaignTraces
	aborted func() // is called for each step that was produced in vain

	progress *fetch.PartitionReader // shows when a transaction has ended
}

// newShipper makes a shipper for single batches, which reports to nobody.
func newShipper(c *takeover.Claim) *shipper {
	return &shipper{claim: c, shipped: &shipProgress{}, note: func([]*record.Payload) {}, aborted: func() {}, progress: c.ProgressReader()}
}

// run sends decided steps to Kafka, in order: the committed steps that wait go in one
// transaction, up to StepBytes. A step with none before it is produced while it
// commits. Any error ends the session; the next takeover reads back which steps were
// committed.
func (s *shipper) run(ctx context.Context) error {
	out := &recordBuffers{}
	var d *inflightStep
	for {
		if d == nil {
			var ok bool
			select {
			case d, ok = <-s.toShip:
				if !ok {
					return nil
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		shipped, err := s.shipEarly(ctx, d, out)
		if err != nil {
			return fmt.Errorf("ship step %d: %w", d.seq, err)
		}
		if shipped {
			d = nil
			continue
		}
		select {
		case <-d.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if d, err = s.shipCommitted(ctx, d, out); err != nil {
			return err
		}
	}
}

// shipCommitted ships a committed step and the committed ones behind it. It returns
// the first step behind them, or nil.
func (s *shipper) shipCommitted(ctx context.Context, d *inflightStep, out *recordBuffers) (*inflightStep, error) {
	batch, size, next := s.collectCommitted(d)
	out.prepareRecords(batch, size, 2*s.claim.Config.StepBytes)
	err := s.shipBatch(ctx, batch, out)
	if errors.Is(err, kerr.MessageTooLarge) {
		return nil, &halt.Error{Part: halt.Stream, Lane: s.claim.Lane,
			What: fmt.Sprintf("steps %d to %d are decided, and topic %s or %s does not accept them any more: %v", batch[0].Seq, batch[len(batch)-1].Seq, s.claim.Config.Kafka.Notifications, s.claim.Config.Kafka.DeadLetters, err),
			Hint: s.claim.Limits.RaiseHint(s.claim.Config.Kafka) + "; then start the daemon again"}
	}
	if err != nil {
		return nil, fmt.Errorf("ship steps %d to %d: %w", batch[0].Seq, batch[len(batch)-1].Seq, err)
	}
	s.advanceShipped(batch)
	return next, nil
}

// collectCommitted collects the steps that are committed by now, up to StepBytes of
// records.
func (s *shipper) collectCommitted(first *inflightStep) (batch []*record.Payload, size int, next *inflightStep) {
	batch, size = []*record.Payload{first.p}, first.p.RecordBytes()
	for size < s.claim.Config.StepBytes {
		select {
		case d, ok := <-s.toShip:
			if !ok {
				return batch, size, nil
			}
			if !d.isCommitted() {
				return batch, size, d
			}
			batch, size = append(batch, d.p), size+d.p.RecordBytes()
		default:
			return batch, size, nil
		}
	}
	return batch, size, nil
}

// shipEarly produces a step that is in flight to Postgres, and commits the Kafka
// transaction once the step is committed as it was sent. No reader sees a record
// before that. shipEarly returns false where the step must be shipped later: it is
// committed already, it was repeated, or its commit takes long.
func (s *shipper) shipEarly(ctx context.Context, d *inflightStep, out *recordBuffers) (bool, error) {
	if out.late > 0 {
		out.late--
		return false, nil
	}
	if d.early == nil || d.isCommitted() {
		return false, nil
	}
	batch := []*record.Payload{d.early}
	out.prepareRecords(batch, d.early.RecordBytes(), 2*s.claim.Config.StepBytes)
	result, err := s.produceAll(ctx, batch, out)
	if err != nil {
		return false, err
	}
	failpoint.Hit("ship/early")
	patience := time.NewTimer(earlyPatience)
	defer patience.Stop()
	select {
	case <-d.done:
		if d.p == d.early {
			if err := s.commitShipment(ctx, result); err != nil {
				return false, err
			}
			s.advanceShipped(batch)
			return true, nil
		}
	case <-patience.C:
		out.late = lateSteps
	case <-ctx.Done():
	}
	// Abort also when the session ends, but with less time: a transaction that is left
	// open holds up the topic's readers until the next takeover.
	limit := topic.TransactionTimeout
	if ctx.Err() != nil {
		limit = time.Second
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	if err := s.claim.Client.EndTransaction(ctx, kgo.TryAbort); err != nil {
		return false, fmt.Errorf("abort: %w", s.claim.ExplainTransaction(err))
	}
	if err := topic.AwaitEnd(ctx, s.progress, result.ProgressOffset); err != nil {
		return false, fmt.Errorf("abort: %w", err)
	}
	s.aborted()
	return false, nil
}

// shipBatch produces the records of a batch and, last, the progress record, in one
// transaction. It returns nil only if consumers can read the records.
func (s *shipper) shipBatch(ctx context.Context, batch []*record.Payload, out *recordBuffers) error {
	ctx, cancel := context.WithTimeout(ctx, topic.TransactionTimeout)
	defer cancel()
	result, err := s.produceAll(ctx, batch, out)
	if err != nil {
		return err
	}
	return s.commitShipment(ctx, result)
}

// produceAll produces the records of a batch and waits for their acknowledgements; the
// transaction stays open.
func (s *shipper) produceAll(ctx context.Context, batch []*record.Payload, out *recordBuffers) (*topic.Delivery, error) {
	ctx, cancel := context.WithTimeout(ctx, topic.TransactionTimeout)
	defer cancel()
	if err := s.claim.Client.BeginTransaction(); err != nil {
		return nil, fmt.Errorf("begin transaction: %w", err)
	}
	failpoint.Hit("ship/begun")
	result := &topic.Delivery{Topic: s.claim.Config.Kafka.Notifications, Progress: s.claim.Config.Kafka.Progress}
	for _, p := range batch {
		s.produceRecords(ctx, p, out, result)
	}
	failpoint.Hit("ship/produced")
	last := batch[len(batch)-1].Seq
	s.claim.Client.Produce(ctx, topic.ProgressRecord(s.claim.Config.Kafka.Progress, s.claim.Lane, last), result.Note)
	if err := s.claim.Client.Flush(ctx); err != nil {
		return nil, fmt.Errorf("flush: %w", err)
	}
	if result.Err != nil {
		return nil, fmt.Errorf("produce: %w", s.claim.ExplainTransaction(s.claim.Config.Kafka.ExplainDenied(result.Err, s.claim.Client, "Write", result.ErrTopic)))
	}
	failpoint.Hit("ship/flushed")
	return result, nil
}

// commitShipment commits the transaction, waits until its end shows, and records the ends
// of the topic. Before that no other transaction may begin: its end could be the end of
// both.
func (s *shipper) commitShipment(ctx context.Context, result *topic.Delivery) error {
	ctx, cancel := context.WithTimeout(ctx, topic.TransactionTimeout)
	defer cancel()
	if err := s.claim.Client.EndTransaction(ctx, kgo.TryCommit); err != nil {
		return fmt.Errorf("commit: outcome unknown: %w", s.claim.ExplainTransaction(err))
	}
	failpoint.Hit("ship/committed")
	if err := topic.AwaitEnd(ctx, s.progress, result.ProgressOffset); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	s.shipped.ends.Raise(result.Ends)
	return nil
}

// recordBuffers is the memory of one transaction's records. The Kafka client holds it
// until the transaction has ended; then the next transaction uses it.
type recordBuffers struct {
	arena   []byte       // keys and values
	records []kgo.Record // records of all that are not in use yet
	all     []kgo.Record

	late int // how many more steps are not produced before their commit
}

// prepareRecords makes room for a batch. A buffer that has grown beyond keep bytes is given
// up.
func (o *recordBuffers) prepareRecords(batch []*record.Payload, size, keep int) {
	n := 0
	for _, p := range batch {
		n += p.Notifications()
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

// produceRecords hands the payload's records to the Kafka client.
func (s *shipper) produceRecords(ctx context.Context, p *record.Payload, out *recordBuffers, result *topic.Delivery) {
	for i := range p.Segments {
		seg := &p.Segments[i]
		w, headers := seg.Render(), s.traces.headers(seg.Campaign.Key())
		for j := range seg.Clients.Len() {
			from := len(out.arena)
			var keyEnd, valueEnd int
			out.arena, keyEnd, valueEnd = w.AppendRecord(out.arena, seg.Clients.At(j))
			r := &out.records[0]
			out.records = out.records[1:]
			r.Topic = s.claim.Config.Kafka.Notifications
			r.Headers = headers
			r.Key, r.Value = out.arena[from:keyEnd:keyEnd], out.arena[keyEnd:valueEnd:valueEnd]
			s.claim.Client.Produce(ctx, r, result.Note)
		}
	}
	for i := range p.Dead {
		s.claim.Client.Produce(ctx, topic.DeadLetterRecord(&p.Dead[i], s.claim.Config.Kafka.DeadLetters), result.Note)
	}
}

// advanceShipped records K and wakes the committer, which may wait for the window.
func (s *shipper) advanceShipped(batch []*record.Payload) {
	s.shipped.seq.Store(batch[len(batch)-1].Seq)
	s.note(batch)
	select {
	case s.shipped.advanced <- struct{}{}:
	default:
	}
}

package topic

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"dinnerbell/stream/topic/fetch"
)

// A broker answers EndTxn before it has written the markers that end the transaction in
// each partition, and may lose a marker: Apache Kafka 4.3 and 4.4 count a partition that
// has no leader at that moment, as during the shutdown of its only broker, as a deleted
// one. The transaction stays open in that partition while the coordinator reports it as
// complete, and the next end of a transaction there would end both in the same way. So a
// transaction counts as ended only when the progress partition shows its end.

const (
	// endPoll is the time between the first two looks at a transaction that is being
	// ended. It grows by endPoll each time, up to endPollMost.
	endPoll     = time.Millisecond
	endPollMost = 50 * time.Millisecond
	// endPatience is how long an end may take to show. A broker that restarts is back
	// within it; a session that waits longer takes its lane over again.
	endPatience = 10 * time.Second
)

// AwaitEnd waits until the transaction to which the record at an offset of the reader's
// partition belongs has ended there: consumers read the record, or never will. It
// returns an error if the end does not show within endPatience.
func AwaitEnd(ctx context.Context, r *fetch.PartitionReader, offset int64) error {
	bounded, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	for pause := endPoll; ; pause = min(pause+endPoll, endPollMost) {
		stable, err := r.ReadStableOffset(bounded)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("read the end of the transaction: %w", err)
		case stable > offset:
			return nil
		}
		select {
		case <-time.After(pause):
		case <-bounded.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("the brokers have acknowledged the end of the transaction, and %s/%d does not show it after %s: its last stable offset is %d, the record's %d", r.Topic, r.Partition, endPatience, stable, offset)
		}
	}
}

// TransactionEnd is how the last transaction of a transactional id has ended, as its
// coordinator reports it. The zero value is no end.
type TransactionEnd struct {
	Known         bool
	Committed     bool
	ProducerID    int64
	ProducerEpoch int16 // after the end: with transactions of version 2, an end raises it by one
}

// ReadTransactionEnd returns the end of the last transaction of a transactional id. While
// its markers are being written it asks again, for endPatience at most. It returns no end if
// the transaction is open, or if the producer has been initialized since.
func ReadTransactionEnd(ctx context.Context, client *kgo.Client, id string) (TransactionEnd, error) {
	ctx, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	for {
		described, err := kadm.NewClient(client).DescribeTransactions(ctx, id)
		if err != nil {
			return TransactionEnd{}, fmt.Errorf("describe transaction: %w", err)
		}
		tx, ok := described[id]
		if !ok {
			return TransactionEnd{}, errors.New("describe transaction: the answer does not name it")
		}
		if tx.Err != nil && !errors.Is(tx.Err, kerr.TransactionalIDNotFound) {
			return TransactionEnd{}, fmt.Errorf("describe transaction: %w", tx.Err)
		}
		switch tx.State {
		case "CompleteCommit", "CompleteAbort":
			return TransactionEnd{Known: true, Committed: tx.State == "CompleteCommit", ProducerID: tx.ProducerID, ProducerEpoch: tx.ProducerEpoch}, nil
		case "PrepareCommit", "PrepareAbort":
		default:
			return TransactionEnd{}, nil
		}
		select {
		case <-time.After(endPollMost):
		case <-ctx.Done():
			return TransactionEnd{}, ctx.Err()
		}
	}
}

// isOf reports whether this is the end of the transaction that a producer has left open.
func (e TransactionEnd) isOf(p kadm.DescribedProducer) bool {
	return e.Known && p.ProducerID == e.ProducerID && (p.ProducerEpoch == e.ProducerEpoch || p.ProducerEpoch == e.ProducerEpoch-1)
}

// FindLostTransaction reports whether the transaction that is open on the lane's progress
// partition is one of the lane's own producer, which has been initialized before: its
// coordinator takes it for ended.
func (c Config) FindLostTransaction(ctx context.Context, client *kgo.Client, lane int32) (kadm.DescribedProducer, bool, error) {
	id, _, err := client.ProducerID(ctx)
	if err != nil {
		return kadm.DescribedProducer{}, false, fmt.Errorf("read producer id: %w", err)
	}
	var set kadm.TopicsSet
	set.Add(c.Progress, lane)
	topics, err := kadm.NewClient(client).DescribeProducers(ctx, set)
	if err != nil {
		return kadm.DescribedProducer{}, false, fmt.Errorf("describe producers of %s/%d: %w", c.Progress, lane, err)
	}
	partition := topics[c.Progress].Partitions[lane]
	if partition.Err != nil {
		return kadm.DescribedProducer{}, false, fmt.Errorf("describe producers of %s/%d: %w", c.Progress, lane, partition.Err)
	}
	p, ok := partition.ActiveProducers[id]
	return p, ok && p.CurrentTxnStartOffset >= 0, nil
}

// EndLostTransaction ends a lost transaction in the way in which its coordinator has
// ended it, in every partition in which the lane may have produced: a transaction without
// records, whose markers end what is open there. Where the lost one has its marker
// already, the second one means nothing. The client must have been initialized since, so
// that nobody else produces with its id; its epoch is of no more use then.
func (c Config) EndLostTransaction(ctx context.Context, client *kgo.Client, lane int32, lost kadm.DescribedProducer, end TransactionEnd) error {
	if !end.isOf(lost) {
		return errors.New("its coordinator no longer knows whether it was committed")
	}
	producer, epoch, err := client.ProducerID(ctx)
	if err != nil {
		return fmt.Errorf("read producer id: %w", err)
	}
	topics, err := kadm.NewClient(client).ListTopics(ctx, c.Notifications, c.DeadLetters)
	if err == nil {
		err = topics.Error()
	}
	if err != nil {
		return fmt.Errorf("list partitions: %w", err)
	}
	add := kmsg.NewPtrAddPartitionsToTxnRequest()
	add.TransactionalID, add.ProducerID, add.ProducerEpoch = c.TransactionalID(lane), producer, epoch
	addTopic := func(name string, partitions ...int32) {
		t := kmsg.NewAddPartitionsToTxnRequestTopic()
		t.Topic, t.Partitions = name, partitions
		add.Topics = append(add.Topics, t)
	}
	for name := range topics {
		addTopic(name, topics[name].Partitions.Numbers()...)
	}
	addTopic(c.Progress, lane)
	if err := addPartitions(ctx, client, add); err != nil {
		return fmt.Errorf("add partitions: %w", err)
	}
	finish := kmsg.NewPtrEndTxnRequest()
	finish.TransactionalID, finish.ProducerID, finish.ProducerEpoch, finish.Commit = add.TransactionalID, producer, epoch, end.Committed
	resp, err := finish.RequestWith(ctx, client)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err != nil {
		return fmt.Errorf("end transaction: %w", err)
	}
	return nil
}

func addPartitions(ctx context.Context, client *kgo.Client, req *kmsg.AddPartitionsToTxnRequest) error {
	resp, err := req.RequestWith(ctx, client)
	if err != nil {
		return err
	}
	for _, t := range resp.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return fmt.Errorf("%s/%d: %w", t.Topic, p.Partition, err)
			}
		}
	}
	return nil
}

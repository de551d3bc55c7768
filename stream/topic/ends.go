package topic

import (
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// partitionEnds are the end offsets of a topic's partitions, by partition: one more
// than the last offset written, 0 for a partition without records.
type partitionEnds []int64

// raiseEnd raises one end; it never lowers it.
func (e *partitionEnds) raiseEnd(partition int32, end int64) {
	for len(*e) <= int(partition) {
		*e = append(*e, 0)
	}
	(*e)[partition] = max((*e)[partition], end)
}

// Delivery collects the broker's answers to the records of one transaction. The client
// calls Note for one record after the other, and for all of them before Flush returns;
// after that the fields may be read.
type Delivery struct {
	Topic    string // whose ends are collected
	Progress string // the topic of the transaction's progress record

	Ends           partitionEnds
	ProgressOffset int64
	Err            error // the first

	ErrTopic string // of the record that Err is about
}

// Note takes the broker's answer to one record. It is a callback for the client.
func (d *Delivery) Note(r *kgo.Record, err error) {
	switch {
	case err != nil && d.Err == nil:
		d.Err, d.ErrTopic = err, r.Topic
	case err == nil && r.Topic == d.Topic:
		d.Ends.raiseEnd(r.Partition, r.Offset+1)
	case err == nil && r.Topic == d.Progress:
		d.ProgressOffset = r.Offset
	}
}

// ReachedEnds are the end offsets that committed transactions have reached. A topic
// that is shorter later has lost records that it had acknowledged.
type ReachedEnds struct {
	mu   sync.Mutex // the shipper raises, the committer reads
	ends partitionEnds
}

// Raise raises the ends to those that are given; it never lowers one.
func (t *ReachedEnds) Raise(by partitionEnds) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p, end := range by {
		t.ends.raiseEnd(int32(p), end)
	}
}

// List returns a copy, never nil: the ends go into a column that is NOT NULL.
func (t *ReachedEnds) List() []int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]int64{}, t.ends...)
}

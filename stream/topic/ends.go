package topic

import (
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// partitionEnds are the ends of a topic's partitions, by partition: one more than the
// last offset written, 0 where nothing was.
type partitionEnds []int64

// raiseEnd moves one end up, never down.
func (e *partitionEnds) raiseEnd(partition int32, end int64) {
	for len(*e) <= int(partition) {
		*e = append(*e, 0)
	}
	(*e)[partition] = max((*e)[partition], end)
}

// Delivery collects what the broker says of one transaction's records. The
// client calls note for one record after the other, and for all of them before
// Flush returns; after that its fields may be read.
type Delivery struct {
	Topic string // whose ends are collected
	Ends  partitionEnds
	Err   error // the first
}

func (d *Delivery) Note(r *kgo.Record, err error) {
	switch {
	case err != nil && d.Err == nil:
		d.Err = err
	case err == nil && r.Topic == d.Topic:
		d.Ends.raiseEnd(r.Partition, r.Offset+1)
	}
}

// ReachedEnds are the ends that committed transactions have reached. A topic that
// is shorter later has lost what it took.
type ReachedEnds struct {
	mu   sync.Mutex // ship raises, commit reads
	ends partitionEnds
}

func (t *ReachedEnds) Raise(by partitionEnds) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p, end := range by {
		t.ends.raiseEnd(int32(p), end)
	}
}

// List is a copy, never nil: it goes into a column that is NOT NULL.
func (t *ReachedEnds) List() []int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]int64{}, t.ends...)
}

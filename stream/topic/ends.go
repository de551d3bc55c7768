package topic

import (
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"
)

// ends are the ends of a topic's partitions, by partition: one more than the
// last offset written, 0 where nothing was.
type ends []int64

// raise moves one end up, never down.
func (e *ends) raise(partition int32, end int64) {
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
	Ends  ends
	Err   error // the first
}

func (d *Delivery) Note(r *kgo.Record, err error) {
	switch {
	case err != nil && d.Err == nil:
		d.Err = err
	case err == nil && r.Topic == d.Topic:
		d.Ends.raise(r.Partition, r.Offset+1)
	}
}

// ReachedEnds are the ends that committed transactions have reached. A topic that
// is shorter later has lost what it took.
type ReachedEnds struct {
	mu   sync.Mutex // ship raises, commit reads
	ends ends
}

func (t *ReachedEnds) Raise(by ends) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p, end := range by {
		t.ends.raise(int32(p), end)
	}
}

// List is a copy, never nil: it goes into a column that is NOT NULL.
func (t *ReachedEnds) List() []int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]int64{}, t.ends...)
}

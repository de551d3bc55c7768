package stream

import (
	"context"
	"slices"
	"sync"
)

// viewOrder numbers the views of the subscriptions that a session's steps are filled
// from, and knows which of them are open: their step is neither committed nor given up.
// Whoever waits until the views that are open now are settled then sees in Postgres
// what was decided by subscriptions of before now. A nil viewOrder numbers nothing.
type viewOrder struct {
	mu      sync.Mutex
	last    int64
	open    []int64       // ascending: steps are committed in order
	settled chan struct{} // closed at the next settle; nil: nobody waits
}

// beginView numbers a view. It must be called before the view is opened.
func (o *viewOrder) beginView() int64 {
	if o == nil {
		return 0
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last++
	o.open = append(o.open, o.last)
	return o.last
}

// settleView notes that the step of a view is committed, or will never be.
func (o *viewOrder) settleView(n int64) {
	if o == nil || n == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open = slices.DeleteFunc(o.open, func(v int64) bool { return v == n })
	if o.settled != nil {
		close(o.settled)
		o.settled = nil
	}
}

// awaitSettled waits until every view that is open now is settled.
func (o *viewOrder) awaitSettled(ctx context.Context) error {
	for upTo := int64(-1); ; {
		o.mu.Lock()
		if upTo < 0 {
			upTo = o.last
		}
		if len(o.open) == 0 || o.open[0] > upTo {
			o.mu.Unlock()
			return nil
		}
		if o.settled == nil {
			o.settled = make(chan struct{})
		}
		settled := o.settled
		o.mu.Unlock()
		select {
		case <-settled:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

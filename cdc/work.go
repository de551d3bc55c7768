package cdc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"dinnerbell/cdc/tablecopy"
)

// ErrBusy reports that a rebuild or a verification has to wait for something else:
// another of them, or a snapshot that the mirror takes by itself.
var ErrBusy = errors.New("not now")

// The kinds of work beside the stream.
const (
	WorkRebuild = "rebuild"
	WorkVerify  = "verify"
)

// WorkStatus is a rebuild or a verification under way.
type WorkStatus struct {
	Kind  string
	Stage string
	Copy  tablecopy.Progress // of the table; a verification may read it more than once
	Since time.Time
}

// sideWork is a rebuild or a verification under way.
type sideWork struct {
	kind  string
	began time.Time
	stage atomic.Value // string
	copy  tablecopy.Counter

	cancel context.CancelCauseFunc
	ended  chan struct{}
}

// setStage moves to the next stage.
func (w *sideWork) setStage(stage string) { w.stage.Store(stage) }

// workSlot lets one work begin at a time, and none while the mirror takes a
// snapshot for itself, which replaces the rows and the slot under a work.
type workSlot struct {
	mu        sync.Mutex // guards below
	now       *sideWork
	forbidden error // why no work may begin; nil: it may
}

// beginWork registers a work. Its context ends with ctx, and when works are forbidden.
func (q *workSlot) beginWork(ctx context.Context, kind string) (context.Context, *sideWork, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.forbidden != nil {
		return nil, nil, q.forbidden
	}
	if q.now != nil {
		return nil, nil, fmt.Errorf("%w: a %s is under way since %s", ErrBusy, q.now.kind, q.now.began.Format(time.RFC3339))
	}
	w := &sideWork{kind: kind, began: time.Now(), ended: make(chan struct{})}
	w.setStage("connect")
	ctx, w.cancel = context.WithCancelCause(ctx)
	q.now = w
	return ctx, w, nil
}

// beginInstead is begin for the mirror itself: it ends the work under way first.
func (q *workSlot) beginInstead(ctx context.Context, kind, reason string) (context.Context, *sideWork, error) {
	for {
		q.mu.Lock()
		before, barred := q.now, q.forbidden != nil
		q.mu.Unlock()
		if before != nil && !barred {
			before.cancel(fmt.Errorf("%w: the mirror rebuilds the subscriptions by itself: %s", ErrBusy, reason))
			<-before.ended
		}
		ctx, w, err := q.beginWork(ctx, kind)
		if err == nil || barred || before == nil {
			return ctx, w, err
		}
	}
}

// endWork unregisters w after it has ended with err, and returns the error to show:
// the reason why the work was ended, rather than the failure that followed.
func (q *workSlot) endWork(ctx context.Context, w *sideWork, err error) error {
	if err != nil && ctx.Err() != nil && !errors.Is(context.Cause(ctx), context.Canceled) {
		err = context.Cause(ctx)
	}
	w.cancel(nil)
	q.mu.Lock()
	q.now = nil
	q.mu.Unlock()
	close(w.ended) // from here on nobody uses the store
	if err != nil {
		return fmt.Errorf("%s subscriptions: %w", w.kind, err)
	}
	return nil
}

// forbidWork ends the work under way, waits for its end, and lets none begin until
// allowWork.
func (q *workSlot) forbidWork(because error) {
	q.mu.Lock()
	q.forbidden = because
	w := q.now
	q.mu.Unlock()
	if w != nil {
		w.cancel(because)
		<-w.ended
	}
}

func (q *workSlot) allowWork() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.forbidden = nil
}

// currentStatus returns the work under way; nil: there is none.
func (q *workSlot) currentStatus() *WorkStatus {
	q.mu.Lock()
	defer q.mu.Unlock()
	w := q.now
	if w == nil {
		return nil
	}
	stage, _ := w.stage.Load().(string)
	return &WorkStatus{Kind: w.kind, Stage: stage, Copy: w.copy.ProgressAt(time.Now()), Since: w.began}
}

package daemon

import (
	"context"
	"errors"
	"time"

	"dinnerbell/cdc"

	"github.com/prometheus/client_golang/prometheus"
)

// barrier is the mirror's freshness in the form that package stream takes. After
// the mirror has stopped for good, nothing becomes fresh any more: campaigns wait,
// and decided steps are still shipped.
type barrier struct {
	mirror *cdc.Mirror
	waits  prometheus.Observer
}

// Barrier implements stream.Barrier.
func (b barrier) Barrier(ctx context.Context) error {
	start := time.Now()
	err := b.mirror.Barrier(ctx)
	if errors.Is(err, cdc.ErrStopped) {
		<-ctx.Done()
		return ctx.Err()
	}
	if err == nil {
		b.waits.Observe(time.Since(start).Seconds())
	}
	return err
}

// awaitCommitted waits until the mirror holds everything that was committed before the
// call, whatever join.freshness says.
func (b barrier) awaitCommitted(ctx context.Context) error {
	err := b.mirror.AwaitCommitted(ctx)
	if errors.Is(err, cdc.ErrStopped) {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

// standstill is the time without a decided or shipped notification after which the
// stream counts as finished.
const standstill = 10 * time.Second

// awaitStandstill returns once the stream has finished all work that needs no
// mirror: decided steps are shipped, campaigns whose audience is known are
// finished. New campaigns wait at the barrier for ever.
func (e *Engine) awaitStandstill(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	last, since := e.Service.Status().Notifications, time.Now()
	for time.Since(since) < standstill {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if now := e.Service.Status().Notifications; now != last {
			last, since = now, time.Now()
		}
	}
}

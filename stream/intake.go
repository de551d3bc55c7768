package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"golang.org/x/sync/errgroup"

	"dinnerbell/internal/failpoint"
	"dinnerbell/stream/takeover"
	"dinnerbell/stream/topic/fetch"
)

// intakeMessages bounds the messages of one step; StepBytes bounds their bytes.
const intakeMessages = 500

// keepEnded is how long a campaign row stays after its end. Within that time an older
// message of the same campaign that comes late on another partition is recognised.
const keepEnded = 7 * 24 * time.Hour

// barrierPatience is how long a batch waits for the freshness barrier before it
// is accepted without being joined: its campaigns become pending rows, which are
// joined behind a later barrier. barrierHaste is the same for a batch that cancels a
// campaign, or that follows a batch which waited in vain.
const (
	barrierPatience = 100 * time.Millisecond
	barrierHaste    = 20 * time.Millisecond
)

// messageBatch is handed to the decider: messages just received, or messages that a
// replay has read again.
type messageBatch struct {
	messages []message
	replayed []message // accepted behind all received messages
}

// intake polls the lane's partition and hands its messages to the decider.
type intake struct {
	lane     *lane
	cfg      takeover.Config
	input    *laneInput
	messages *messageInspector
	arrivals chan<- messageBatch
	shut     bool // the last batch waited for the barrier in vain
}

// run works until ctx ends.
func (i *intake) run(ctx context.Context) error {
	defer i.input.records.Close()
	for ctx.Err() == nil {
		if err := i.pollInput(ctx); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// processBatch waits for the freshness barrier and looks the keys up, at the same time,
// then hands the messages to the decider. It does so also where the barrier stays
// shut, since a cancel needs no join.
func (i *intake) processBatch(ctx context.Context, batch []message) error {
	if len(batch) == 0 {
		return nil
	}
	if len(batch) == 1 && batch[0].holdsNothing() {
		return sendBatch(ctx, i.arrivals, messageBatch{messages: batch})
	}
	failpoint.Hit("intake/received")
	i.lane.noteRead(batch)
	received := i.lane.svc.now()
	passed, waited := true, time.Duration(0)
	patience := i.barrierWait(batch, received.Unix()) // before the look-up, which turns campaigns into dead letters
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		if patience > 0 {
			began := time.Now()
			passed, err = i.awaitBarrier(gctx, patience)
			waited = time.Since(began)
			i.shut = !passed
		}
		return err
	})
	g.Go(func() error {
		ctx, cancel := context.WithTimeout(gctx, i.cfg.SinkTimeout)
		defer cancel()
		return i.messages.lookup.fillVersions(ctx, batch)
	})
	if err := g.Wait(); err != nil {
		return err
	}
	for n := range batch {
		batch[n].received, batch[n].waited = received, waited
		if passed {
			batch[n].fresh = received
		}
	}
	return sendBatch(ctx, i.arrivals, messageBatch{messages: batch})
}

// barrierWait returns how long a batch waits for the freshness barrier: 0 if no
// message of it is joined.
func (i *intake) barrierWait(batch []message, now int64) time.Duration {
	joins, cancels := false, false
	for n := range batch {
		if c := batch[n].campaign; c != nil && c.End > now {
			joins = true
		} else if c != nil {
			cancels = true
		}
	}
	switch {
	case !joins:
		return 0
	case i.shut || cancels:
		return barrierHaste
	}
	return barrierPatience
}

// awaitBarrier waits for fresh subscriptions, at most for patience. It reports whether
// they are fresh.
func (i *intake) awaitBarrier(ctx context.Context, patience time.Duration) (passed bool, err error) {
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err = i.lane.awaitFresh(waiting); err != nil && ctx.Err() == nil && waiting.Err() != nil {
		return false, nil
	}
	return err == nil, err
}

// awaitFresh waits for fresh subscriptions. It is called after the messages were
// received, so the subscriptions that they are joined with are no older.
func (l *lane) awaitFresh(ctx context.Context) error {
	l.waiting.Add(1)
	defer l.waiting.Add(-1)
	if err := l.gate.Load().awaitReached(ctx); err != nil {
		return fmt.Errorf("wait until the subscriptions have come as far as the lane: %w", err)
	}
	if err := l.svc.barrier.Barrier(ctx); err != nil {
		return fmt.Errorf("wait for fresh subscriptions: %w", err)
	}
	return nil
}

// sendBatch hands messages to the decider.
func sendBatch(ctx context.Context, to chan<- messageBatch, a messageBatch) error {
	select {
	case to <- a:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// emptyStepInterval is the least time between two steps that only move the lane over
// offsets without records, such as the markers of a transactional producer. Messages
// behind such offsets move the lane over them at once.
const emptyStepInterval = time.Second

// laneInput reads the lane's partition for the intake. For one goroutine, which closes
// the prefetcher at the end.
type laneInput struct {
	records     *fetch.Prefetcher
	emptyEnd    int64     // the end of offsets without records that no step covers yet; 0: there are none
	emptyStepAt time.Time // when the last step for such offsets alone was made
}

// newLaneInput returns an input that reads on at an offset.
func newLaneInput(at int64, reader *fetch.PartitionReader) *laneInput {
	return &laneInput{records: fetch.NewPrefetcher(reader, at)}
}

// readMessages parses messages of the response at hand, up to bounds of their number
// and size. An empty result means that the response is at its end.
func (i *intake) readMessages() (batch []message, err error) {
	in := i.input
	for size := 0; len(batch) < intakeMessages && size < i.cfg.StepBytes; {
		r, err := in.records.Next()
		if err != nil {
			return nil, err
		}
		if r == nil {
			break
		}
		if r.Empty {
			in.emptyEnd = r.Next
			continue
		}
		in.emptyEnd = 0
		m := i.messages.parser.parseRecord(r)
		batch, size = append(batch, m), size+m.memorySize()
	}
	if in.emptyEnd > 0 && (len(batch) > 0 || time.Since(in.emptyStepAt) >= emptyStepInterval) {
		if len(batch) == 0 {
			in.emptyStepAt = time.Now()
		}
		batch = append(batch, message{offset: in.emptyEnd - 1})
		in.emptyEnd = 0
	}
	return batch, nil
}

// pollInput waits for messages, and processes as many as a step takes.
func (i *intake) pollInput(ctx context.Context) error {
	in := i.input
	if !in.records.HasResponse() {
		var due <-chan time.Time
		if in.emptyEnd > 0 {
			timer := time.NewTimer(time.Until(in.emptyStepAt.Add(emptyStepInterval)))
			defer timer.Stop()
			due = timer.C
		}
		if err := in.records.Await(ctx, due); err != nil {
			return i.inputError(ctx, err)
		}
	}
	batch, err := i.readMessages()
	if err != nil {
		return i.inputError(ctx, err)
	}
	return i.processBatch(ctx, batch)
}

// inputError adds the partition to an error of reading it.
func (i *intake) inputError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, kerr.OffsetOutOfRange):
		return fmt.Errorf("read campaigns: %w", err) // the takeover that follows halts and names the choice
	}
	return fmt.Errorf("read %s/%d: %w", i.cfg.Kafka.Campaigns, i.lane.id, err)
}

package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"dinnerbell/stream/topic"
)

// passEvery is how often a step may be made for offsets alone that hold nothing,
// such as the markers of a transactional producer. With messages behind them they
// need none.
const passEvery = time.Second

// input reads the lane's partition for the intake. For one goroutine; close it at
// the end.
type input struct {
	messages *topic.Prefetcher
	passed   int64     // offsets before it hold nothing more; 0 where nobody is to be told
	passedAt time.Time // when that was last handed on by itself
}

// newInput returns an input that reads on at an offset.
func newInput(at int64, reader *topic.PartitionReader) *input {
	return &input{messages: topic.NewPrefetcher(reader, at)}
}

// readMessages takes messages from the response at hand, up to bounds of their number and
// weight. An empty result means that the response is at its end.
func (i *intake) readMessages() (batch []message, err error) {
	in := i.input
	for size := 0; len(batch) < intakeMessages && size < i.cfg.StepBytes; {
		r, err := in.messages.Next()
		if err != nil {
			return nil, err
		}
		if r == nil {
			break
		}
		if r.Empty {
			in.passed = r.Next
			continue
		}
		in.passed = 0
		m := i.messages.parser.parseRecord(r)
		batch, size = append(batch, m), size+m.memorySize()
	}
	if in.passed > 0 && (len(batch) > 0 || time.Since(in.passedAt) >= passEvery) {
		if len(batch) == 0 {
			in.passedAt = time.Now()
		}
		batch = append(batch, message{offset: in.passed - 1})
		in.passed = 0
	}
	return batch, nil
}

// pollInput waits for messages and hands on what a step takes at once.
func (i *intake) pollInput(ctx context.Context) error {
	in := i.input
	if !in.messages.HasResponse() {
		var due <-chan time.Time
		if in.passed > 0 {
			timer := time.NewTimer(time.Until(in.passedAt.Add(passEvery)))
			defer timer.Stop()
			due = timer.C
		}
		if err := in.messages.Await(ctx, due); err != nil {
			return i.inputError(ctx, err)
		}
	}
	batch, err := i.readMessages()
	if err != nil {
		return i.inputError(ctx, err)
	}
	return i.processBatch(ctx, batch)
}

// inputError names what was read.
func (i *intake) inputError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, kerr.OffsetOutOfRange):
		return fmt.Errorf("read campaigns: %w", err) // the takeover that follows names the choice
	}
	return fmt.Errorf("read %s/%d: %w", i.cfg.Kafka.Campaigns, i.lane.id, err)
}

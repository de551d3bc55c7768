package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"

	"dinnerbell/stream/topic"
)

// emptyStepInterval is the least time between two steps that only move the lane over
// offsets without records, such as the markers of a transactional producer. Messages
// behind such offsets move the lane over them at once.
const emptyStepInterval = time.Second

// laneInput reads the lane's partition for the intake. For one goroutine, which closes
// the prefetcher at the end.
type laneInput struct {
	records     *topic.Prefetcher
	emptyEnd    int64     // the end of offsets without records that no step covers yet; 0: there are none
	emptyStepAt time.Time // when the last step for such offsets alone was made
}

// newLaneInput returns an input that reads on at an offset.
func newLaneInput(at int64, reader *topic.PartitionReader) *laneInput {
	return &laneInput{records: topic.NewPrefetcher(reader, at)}
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

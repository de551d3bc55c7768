package stream

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// passEvery is how often a step may be made for offsets alone that hold nothing,
// such as the markers of a transactional producer. With messages behind them they
// need none.
const passEvery = time.Second

// input reads the lane's partition for the intake: one response is at hand while
// the next one is fetched. For one goroutine; close it at the end.
type input struct {
	reader *partitionReader
	at     int64 // where to read on

	next func() (*record, error, bool) // of the response at hand; nil where there is none
	stop func()

	fetched  chan fetched // of the fetch under way; nil where there is none
	fetching context.CancelFunc

	passed   int64     // offsets before it hold nothing more; 0 where nobody is to be told
	passedAt time.Time // when that was last handed on by itself
}

// fetched is the outcome of one fetch.
type fetched struct {
	at   int64
	part *kmsg.FetchResponseTopicPartition
	err  error
}

// newInput reads on at an offset.
func newInput(at int64, reader *partitionReader) *input { return &input{at: at, reader: reader} }

// fetch begins a fetch at an offset, unless one is under way.
func (in *input) fetch(ctx context.Context, at int64) {
	if in.fetched != nil {
		return
	}
	ctx, in.fetching = context.WithCancel(ctx)
	to := make(chan fetched, 1)
	in.fetched = to
	reader := *in.reader // its leader is looked up by one goroutine
	go func() {
		began := time.Now()
		part, err := reader.fetch(ctx, reader.client, at, fetchWait)
		if err == nil && len(part.RecordBatches) == 0 && time.Since(began) < fetchWait/2 {
			// A broker that does not hold fetches, or counts what is not committed.
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		}
		to <- fetched{at: at, part: part, err: err}
	}()
}

// drop ends the fetch under way.
func (in *input) drop() {
	if in.fetched != nil {
		in.fetching()
		<-in.fetched
		in.fetched = nil
	}
}

func (in *input) close() {
	in.drop()
	in.done()
}

// done ends the response at hand.
func (in *input) done() {
	if in.next != nil {
		in.stop()
		in.next, in.stop = nil, nil
	}
}

// take goes on with a response, and has the next one fetched meanwhile.
func (in *input) take(ctx context.Context, got fetched) error {
	in.fetching()
	in.fetched = nil
	switch {
	case got.err != nil:
		return got.err
	case got.at != in.at || len(got.part.RecordBatches) == 0:
		in.fetch(ctx, in.at)
		return nil
	}
	in.next, in.stop = iter.Pull2(in.reader.records(ctx, got.part, in.at))
	in.fetch(ctx, endOfResponse(got.part, in.at))
	return nil
}

// endOfResponse is where the fetch behind a response begins, if all of the
// response can be read.
func endOfResponse(part *kmsg.FetchResponseTopicPartition, at int64) int64 {
	w := walk{part: part}
	for rest := part.RecordBatches; ; {
		b, behind, ok := splitBatch(rest)
		if !ok {
			return at
		}
		at, rest = max(at, w.endOf(&b, behind)), behind
	}
}

// read takes messages from the response at hand, up to bounds of their number and
// weight. An empty result means that the response is at its end.
func (i *intake) read() (batch []message, err error) {
	in := i.input
	for size := 0; in.next != nil && len(batch) < intakeMessages && size < i.cfg.StepBytes; {
		r, err, ok := in.next()
		if err != nil {
			return nil, err
		}
		if !ok {
			in.done()
			break
		}
		if in.at = r.next; r.passed {
			in.passed = r.next
			continue
		}
		in.passed = 0
		m := i.messages.parser.parse(r)
		batch, size = append(batch, m), size+m.weight()
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

// poll waits for messages and hands on what a step takes at once.
func (i *intake) poll(ctx context.Context) error {
	in := i.input
	if in.next == nil {
		in.fetch(ctx, in.at)
		var due <-chan time.Time
		if in.passed > 0 {
			timer := time.NewTimer(time.Until(in.passedAt.Add(passEvery)))
			defer timer.Stop()
			due = timer.C
		}
		select {
		case got := <-in.fetched:
			if err := in.take(ctx, got); err != nil {
				return i.inputError(ctx, err)
			}
		case <-due:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	batch, err := i.read()
	if err != nil {
		return i.inputError(ctx, err)
	}
	return i.receive(ctx, batch)
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

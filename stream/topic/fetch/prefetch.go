package fetch

import (
	"context"
	"iter"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Prefetcher follows a partition: the caller takes the records of one response
// while the next response is fetched. For one goroutine; Close it at the end.
type Prefetcher struct {
	reader *PartitionReader
	offset int64 // of the next record

	pull func() (*Record, error, bool) // from the response at hand; nil where there is none
	stop func()

	fetching chan fetchResult // of the fetch under way; nil where there is none
	cancel   context.CancelFunc
}

// fetchResult is the outcome of one fetch.
type fetchResult struct {
	offset int64
	part   *kmsg.FetchResponseTopicPartition
	err    error
}

// NewPrefetcher returns a prefetcher that reads on at an offset.
func NewPrefetcher(reader *PartitionReader, offset int64) *Prefetcher {
	return &Prefetcher{reader: reader, offset: offset}
}

// HasResponse reports whether a response is at hand, so that Next does not need
// Await first.
func (p *Prefetcher) HasResponse() bool { return p.pull != nil }

// Await waits until a fetch has ended or due has fired. A response may be at hand
// afterwards, or not.
func (p *Prefetcher) Await(ctx context.Context, due <-chan time.Time) error {
	p.startFetch(ctx, p.offset)
	select {
	case result := <-p.fetching:
		return p.openResponse(ctx, result)
	case <-due:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Next returns the next record of the response at hand, nil at its end.
func (p *Prefetcher) Next() (*Record, error) {
	if p.pull == nil {
		return nil, nil //nolint:nilnil // there is no response
	}
	r, err, ok := p.pull()
	if err != nil {
		return nil, err
	}
	if !ok {
		p.closeResponse()
		return nil, nil //nolint:nilnil // the response is at its end
	}
	p.offset = r.Next
	return r, nil
}

// Close ends the fetch under way and the response at hand.
func (p *Prefetcher) Close() {
	if p.fetching != nil {
		p.cancel()
		<-p.fetching
		p.fetching = nil
	}
	p.closeResponse()
}

// startFetch begins a fetch at an offset, unless one is under way.
func (p *Prefetcher) startFetch(ctx context.Context, offset int64) {
	if p.fetching != nil {
		return
	}
	ctx, p.cancel = context.WithCancel(ctx)
	to := make(chan fetchResult, 1)
	p.fetching = to
	reader := *p.reader // a copy: only one goroutine looks the leader up
	go func() {
		began := time.Now()
		part, err := reader.fetchResponse(ctx, reader.Client, offset, fetchWait)
		if err == nil && len(part.RecordBatches) == 0 && time.Since(began) < fetchWait/2 {
			// The broker does not hold fetches, or counts uncommitted records.
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		}
		to <- fetchResult{offset: offset, part: part, err: err}
	}()
}

// openResponse makes a response the one at hand, and starts to fetch the next one.
func (p *Prefetcher) openResponse(ctx context.Context, result fetchResult) error {
	p.cancel()
	p.fetching = nil
	switch {
	case result.err != nil:
		return result.err
	case result.offset != p.offset || len(result.part.RecordBatches) == 0:
		p.startFetch(ctx, p.offset)
		return nil
	}
	p.pull, p.stop = iter.Pull2(p.reader.readResponse(ctx, result.part, p.offset))
	p.startFetch(ctx, endOfResponse(result.part, p.offset))
	return nil
}

func (p *Prefetcher) closeResponse() {
	if p.pull != nil {
		p.stop()
		p.pull, p.stop = nil, nil
	}
}

// endOfResponse returns the offset of the fetch behind a response, provided that the
// whole response can be read.
func endOfResponse(part *kmsg.FetchResponseTopicPartition, offset int64) int64 {
	w := responseWalk{part: part}
	for rest := part.RecordBatches; ; {
		b, behind, ok := splitBatch(rest)
		if !ok {
			return offset
		}
		offset, rest = max(offset, w.batchEnd(&b, behind)), behind
	}
}

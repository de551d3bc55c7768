package fetch

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// damagedBatch is a batch that cannot be read from an offset on.
type damagedBatch struct {
	offset int64
	err    error
}

// readResponse yields the records of a response from offset at on, and records that
// stand for damaged or empty offsets. The Next of each is the offset to read on at. A
// damaged batch is fetched once more over a new connection, in case the connection has
// damaged it.
func (p *PartitionReader) readResponse(ctx context.Context, part *kmsg.FetchResponseTopicPartition, at int64) iter.Seq2[*Record, error] {
	return func(yield func(*Record, error) bool) {
		again := false
		for {
			w := &responseWalk{p: p, part: part, offset: at, reread: again, yield: yield}
			found, err := w.walkBatches(ctx)
			if err == nil && found != nil {
				at, again = found.offset, true
				part, err = p.fetchReconnected(ctx, at)
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if found == nil {
				return
			}
		}
	}
}

// responseWalk is one pass over the batches of a response.
type responseWalk struct {
	p      *PartitionReader
	part   *kmsg.FetchResponseTopicPartition
	offset int64 // all offsets before it are yielded
	reread bool  // the batch at offset was fetched before, and was damaged
	yield  func(*Record, error) bool

	aborted map[int64][]int64 // first offsets by producer, ascending
	stopped bool
}

var errWalkStopped = errors.New("the reader has stopped")

// walkBatches yields the records of all batches. It returns the first damaged batch
// that is worth fetching again, nil at the end.
func (w *responseWalk) walkBatches(ctx context.Context) (*damagedBatch, error) {
	w.aborted = map[int64][]int64{}
	for _, t := range w.part.AbortedTransactions {
		w.aborted[t.ProducerID] = append(w.aborted[t.ProducerID], t.FirstOffset)
	}
	for _, offsets := range w.aborted {
		slices.Sort(offsets) // Redpanda does not
	}
	in := w.part.RecordBatches
	for first := true; ; first = false {
		b, rest, ok := splitBatch(in)
		if !ok && (!first || len(in) == 0) {
			return nil, nil //nolint:nilnil // the last batch of a response may be cut
		}
		end := w.batchEnd(&b, rest)
		err := errors.New("the batch's length does not match the response")
		if ok {
			err = w.walkBatch(&b, end)
		}
		switch {
		case w.stopped:
			return nil, nil //nolint:nilnil // the caller has stopped
		case err == nil:
		case !w.reread && !errors.Is(err, errTooLarge):
			return &damagedBatch{offset: w.offset, err: err}, nil
		default:
			if end, err = w.skipDamaged(ctx, rest, err); err != nil || w.stopped || end < 0 {
				return nil, err
			}
		}
		w.reread, in = false, rest
	}
}

// batchEnd returns the end of a batch: the claimed end, but neither beyond the base of
// the next batch, where the response has that batch, nor beyond the end of the log.
func (w *responseWalk) batchEnd(b *recordBatch, rest []byte) int64 {
	end := b.claimedEnd()
	if next, ok := readBaseOffset(rest); ok && next > b.baseOffset && next < end {
		end = next
	}
	if stable := w.part.LastStableOffset; stable > b.baseOffset && stable < end {
		end = stable
	}
	return end
}

func readBaseOffset(b []byte) (int64, bool) {
	if len(b) < 8 {
		return 0, false
	}
	return int64(binary.BigEndian.Uint64(b)), true
}

// trackAbort forgets an aborted transaction whose end marker has come.
func (w *responseWalk) trackAbort(b *recordBatch) {
	if first := w.aborted[b.producerID]; len(first) > 0 && first[0] <= b.baseOffset && b.endsInAbort() {
		w.aborted[b.producerID] = first[1:]
	}
}

// walkBatch yields the batch's records from the walk's offset on, up to end. The error
// explains why the offsets from there on cannot be read.
func (w *responseWalk) walkBatch(b *recordBatch, end int64) error {
	if err := b.verify(); err != nil {
		return err
	}
	if b.hasAttribute(controlBit) {
		w.trackAbort(b)
	}
	if end <= w.offset {
		return nil
	}
	if b.hasAttribute(controlBit) {
		w.skipTo(end)
		return nil
	}
	if first := w.aborted[b.producerID]; b.hasAttribute(transactionalBit) && len(first) > 0 && b.baseOffset >= first[0] {
		w.skipTo(end)
		return nil
	}
	most := max(w.p.MaxRecord, minWholeRecord)
	least := b.baseOffset
	err := b.readRecords(&w.p.inflater, most, func(r *Record) error {
		if r.Offset < least || r.Offset >= end {
			return fmt.Errorf("the record at offset %d is not in its place in the batch", r.Offset)
		}
		if least = r.Offset + 1; r.Offset < w.offset {
			return nil
		}
		r.Next = r.Offset + 1
		return w.yieldRecord(r)
	})
	if err == nil && w.offset < end {
		w.skipTo(end)
	}
	return err
}

// skipTo yields a record that stands for offsets without records.
func (w *responseWalk) skipTo(end int64) {
	_ = w.yieldRecord(&Record{Offset: w.offset, Next: end, Empty: true})
}

func (w *responseWalk) yieldRecord(r *Record) error {
	r.Topic, r.Partition = w.p.Topic, w.p.Partition
	w.offset = r.Next
	if !w.yield(r, nil) {
		w.stopped = true
		return errWalkStopped
	}
	return nil
}

// skipDamaged yields a record that stands for the rest of a damaged batch. It does not
// trust the batch's own last offset, and takes the base of the next batch as the end.
// The result is negative where that batch is not in this response.
func (w *responseWalk) skipDamaged(ctx context.Context, rest []byte, why error) (end int64, err error) {
	end, ok := readBaseOffset(rest)
	if ok && end <= w.offset {
		return end, nil // the whole batch was yielded before
	}
	if !ok {
		if end, err = w.p.findNextBase(ctx, w.offset); err != nil {
			return 0, err
		}
	}
	r := &Record{Offset: w.offset, Next: end, Unreadable: why.Error(), Time: time.Now().UnixMilli()}
	if w.yieldRecord(r) == nil && !ok {
		return -1, nil
	}
	return end, nil
}

// findNextBase returns the base offset of the batch behind the one at an offset, or the
// end of the log where there is no such batch. It bisects with fetches: for any offset
// within a batch, a broker's response begins with that batch.
func (p *PartitionReader) findNextBase(ctx context.Context, at int64) (int64, error) {
	next := int64(-1)
	for from, to := at+1, int64(-1); to < 0 || from < to; {
		ask := from
		if to >= 0 {
			ask = from + (to-from)/2
		}
		part, err := p.fetchResponse(ctx, p.Client, ask, 0)
		if err != nil {
			return 0, err
		}
		if to < 0 {
			to = part.LastStableOffset
			next = to
		}
		if base, ok := readBaseOffset(part.RecordBatches); ok && base > at {
			to, next = ask, base
		} else {
			from = ask + 1
		}
	}
	return max(next, at+1), nil
}

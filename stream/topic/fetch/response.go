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
// batch whose checksum does not match is fetched once more over a new connection, in case
// the connection has damaged it.
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
		err := errors.New("the batch's length does not match the response")
		if ok {
			err = b.verify()
		}
		if err != nil && !w.reread {
			return &damagedBatch{offset: w.offset, err: err}, nil
		}
		if err == nil {
			err = w.walkBatch(&b, w.batchEnd(&b, rest))
		}
		if err != nil && !w.stopped {
			next, known := w.nextBase(&b, rest, ok)
			if next, err = w.skipDamaged(ctx, next, known, err); err != nil || next < 0 {
				return nil, err
			}
		}
		if w.stopped {
			return nil, nil //nolint:nilnil // the caller has stopped
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

// nextBase returns the offset behind a damaged batch, where it is known: the base of the
// next batch in the response, or what follows a message, whose offset is its last one.
func (w *responseWalk) nextBase(b *recordBatch, rest []byte, split bool) (next int64, known bool) {
	if split && b.isMessage() {
		next = b.claimedEnd()
		return next, next > w.offset && next <= w.part.LastStableOffset
	}
	if behind, _, ok := splitBatch(rest); ok && behind.isWrapper() {
		return 0, false // its offset is its last one
	}
	return readBaseOffset(rest)
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

// walkBatch yields the records of a verified batch from the walk's offset on, up to end.
// The error explains why the offsets from there on cannot be read.
func (w *responseWalk) walkBatch(b *recordBatch, end int64) error {
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
	least := b.leastOffset()
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

// skipDamaged yields a record that stands for the rest of a damaged batch, up to the next
// batch. The result is negative where that batch is not in this response.
func (w *responseWalk) skipDamaged(ctx context.Context, next int64, known bool, why error) (end int64, err error) {
	if known && next <= w.offset {
		return next, nil // the whole batch was yielded before
	}
	if !known {
		if next, err = w.p.findNextBase(ctx, w.offset); err != nil {
			return 0, err
		}
	}
	r := &Record{Offset: w.offset, Next: next, Unreadable: why.Error(), Time: time.Now().UnixMilli()}
	if w.yieldRecord(r) == nil && !known {
		return -1, nil
	}
	return next, nil
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
			if b, _, ok := splitBatch(part.RecordBatches); ok && b.isWrapper() {
				next = ask // the offset is that of its last message
			}
		} else {
			from = ask + 1
		}
	}
	return max(next, at+1), nil
}

package stream

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
)

// progress is the value of a progress record: everything up to seq is shipped.
type progress struct {
	Seq int64 `json:"seq"`
}

// progressWindow is how many offsets before the end are looked at first. A
// ship is one progress record and one commit marker, so the last committed
// record is almost always among them.
const progressWindow = 64

// progressLostError: a progress partition begins above offset 0 and holds no
// record, so what was shipped is not known. It is never "no progress".
type progressLostError struct {
	topic     string
	partition int32
	start     int64
}

func (e *progressLostError) Error() string {
	return fmt.Sprintf("topic %s partition %d begins at offset %d and holds no record: retention (cleanup.policy must be compact) or kafka-delete-records.sh has deleted the lane's progress",
		e.topic, e.partition, e.start)
}

// readProgress returns K, the last seq shipped on a lane: the last committed
// record of its progress partition, or 0 if there never was one. It must run after
// the predecessor was fenced, when nothing on the partition is undecided. It
// reads to the high watermark or fails: a short read is never "no progress".
// The error is a *progressLostError where records were deleted and none is left.
func readProgress(ctx context.Context, p *partitionReader) (int64, error) {
	adm, topic, partition := kadm.NewClient(p.client), p.topic, p.partition
	start, err := listOffset(ctx, topic, partition, adm.ListStartOffsets)
	if err != nil {
		return 0, err
	}
	end, err := listOffset(ctx, topic, partition, adm.ListEndOffsets)
	if err != nil {
		return 0, err
	}
	for back := int64(progressWindow); ; back *= 16 {
		from := max(start.Offset, end.Offset-back)
		var last *record
		if err := p.eachReadable(ctx, from, end.Offset, func(r *record) error { last = r; return nil }); err != nil {
			return 0, fmt.Errorf("read %s/%d: %w", topic, partition, err)
		}
		if last != nil {
			return parseProgress(topic, last)
		}
		switch {
		case from > start.Offset:
		case start.Offset > 0:
			return 0, &progressLostError{topic: topic, partition: partition, start: start.Offset}
		default:
			return 0, nil
		}
	}
}

func parseProgress(topic string, r *record) (int64, error) {
	var p progress
	if err := json.Unmarshal(r.value, &p); err != nil || p.Seq < 0 {
		return 0, fmt.Errorf("read %s/%d: the record at offset %d is not a progress record: %q", topic, r.partition, r.offset, r.value)
	}
	return p.Seq, nil
}

func listOffset(ctx context.Context, topic string, partition int32, list func(context.Context, ...string) (kadm.ListedOffsets, error)) (kadm.ListedOffset, error) {
	offsets, err := list(ctx, topic)
	if err != nil {
		return kadm.ListedOffset{}, fmt.Errorf("list offsets of %s/%d: %w", topic, partition, err)
	}
	o, ok := offsets.Lookup(topic, partition)
	if !ok {
		return o, fmt.Errorf("list offsets of %s/%d: the broker does not know the partition", topic, partition)
	}
	if o.Err != nil {
		return o, fmt.Errorf("list offsets of %s/%d: %w", topic, partition, o.Err)
	}
	return o, nil
}

package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"dinnerbell/stream/topic"
)

// laneRange is what is read again of one partition.
type laneRange struct {
	lane        int32
	from, until int64
	start, next int64 // the log's first offset; where the lane reads on
}

// findRanges resolves the request for every lane of the deployment.
func (r *replay) findRanges(ctx context.Context, req ReplayRequest) error {
	rows, err := r.reader.Query(ctx, `SELECT lane, next_offset, cluster_id = $1 AND campaigns_topic_id = $2 FROM `+r.svc.cfg.Sink.tables().lane+` ORDER BY lane`, r.cluster, r.topicTxt)
	if err != nil {
		return fmt.Errorf("read lanes: %w", err)
	}
	r.ranges, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (laneRange, error) {
		var rg laneRange
		var same bool
		err := row.Scan(&rg.lane, &rg.next, &same)
		if err == nil && !same {
			err = fmt.Errorf("lane %d counts in another topic than the %s that is there; it is halted, see `dinnerbell status`", rg.lane, r.svc.cfg.Kafka.Campaigns)
		}
		return rg, err
	})
	if err != nil {
		return fmt.Errorf("read lanes: %w", err)
	}
	f, err := r.findOffsets(ctx, req)
	if err != nil {
		return err
	}
	for i := range r.ranges {
		rg := &r.ranges[i]
		if err := f.resolveRange(rg, req); err != nil {
			return err
		}
		r.report.Lanes = append(r.report.Lanes, ReplayLane{Partition: rg.lane, From: rg.from, Until: rg.until})
	}
	return nil
}

// requestedOffsets are the offsets of the campaigns topic that a request names.
type requestedOffsets struct {
	topic               string
	starts, from, until kadm.ListedOffsets // the latter two: of the times, nil where none is given
}

func (r *replay) findOffsets(ctx context.Context, req ReplayRequest) (f requestedOffsets, err error) {
	f.topic = r.svc.cfg.Kafka.Campaigns
	adm := kadm.NewClient(r.client)
	if f.starts, err = adm.ListStartOffsets(ctx, f.topic); err != nil {
		return f, fmt.Errorf("list offsets of topic %s: %w", f.topic, err)
	}
	if !req.From.Time.IsZero() {
		if f.from, err = adm.ListOffsetsAfterMilli(ctx, req.From.Time.UnixMilli(), f.topic); err != nil {
			return f, fmt.Errorf("list offsets of topic %s: %w", f.topic, err)
		}
	}
	if !req.Until.IsZero() {
		if f.until, err = adm.ListOffsetsAfterMilli(ctx, req.Until.UnixMilli(), f.topic); err != nil {
			return f, fmt.Errorf("list offsets of topic %s: %w", f.topic, err)
		}
	}
	return f, nil
}

func (f *requestedOffsets) offsetOf(list kadm.ListedOffsets, lane int32) (kadm.ListedOffset, error) {
	o, ok := list.Lookup(f.topic, lane)
	if !ok {
		return o, fmt.Errorf("list offsets of %s/%d: the broker does not know the partition", f.topic, lane)
	}
	if o.Err != nil {
		return o, fmt.Errorf("list offsets of %s/%d: %w", f.topic, lane, o.Err)
	}
	return o, nil
}

// resolveRange fills in the range. What was asked for and is no longer there is an
// error: a part that is missing must not pass for nothing.
func (f *requestedOffsets) resolveRange(rg *laneRange, req ReplayRequest) error {
	start, err := f.offsetOf(f.starts, rg.lane)
	if err != nil {
		return err
	}
	rg.start, rg.from, rg.until = start.Offset, start.Offset, rg.next
	if f.from != nil {
		after, err := f.offsetOf(f.from, rg.lane)
		if err != nil {
			return err
		}
		// What comes first in the log is younger than the time, and something was
		// deleted before it. Without a timestamp nothing is as young.
		if after.Offset <= start.Offset && start.Offset > 0 && after.Timestamp > req.From.Time.UnixMilli() {
			return fmt.Errorf("%s/%d begins at offset %d, of %s: what came after %s and before that is deleted; read what is there: dinnerbell replay --from earliest",
				f.topic, rg.lane, start.Offset, time.UnixMilli(after.Timestamp).UTC().Format(time.RFC3339), req.From.Time.UTC().Format(time.RFC3339))
		}
		rg.from = max(start.Offset, after.Offset)
	}
	if at, ok := req.From.Offsets[rg.lane]; ok {
		if at < start.Offset {
			return fmt.Errorf("%s/%d begins at offset %d: offsets %d to %d are deleted; read what is there: dinnerbell replay --from earliest",
				f.topic, rg.lane, start.Offset, at, start.Offset-1)
		}
		rg.from = at
	}
	if f.until != nil {
		before, err := f.offsetOf(f.until, rg.lane)
		if err != nil {
			return err
		}
		rg.until = min(rg.until, before.Offset)
	}
	rg.until = max(rg.until, rg.start)
	rg.from = min(rg.from, rg.until)
	return nil
}

// readOffsets calls fn for each record of [from, until) of a partition, in order.
func (r *replay) readOffsets(ctx context.Context, lane int32, from, until int64, fn func(*topic.Record) error) error {
	name := r.svc.cfg.Kafka.Campaigns
	p := topic.PartitionReader{Client: r.client, NewClient: r.svc.cfg.Kafka.NewClient, Topic: name, TopicID: r.topicID, Partition: lane, MaxRecord: r.limits.MaxCampaign()}
	err := p.ReadRange(ctx, from, until, fn)
	if errors.Is(err, kerr.OffsetOutOfRange) {
		return fmt.Errorf("read %s/%d: it was deleted from the topic meanwhile; read what is there: dinnerbell replay --from earliest: %w", name, lane, err)
	}
	if err != nil {
		return fmt.Errorf("read %s/%d: %w", name, lane, err)
	}
	return nil
}

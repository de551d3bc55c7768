package takeover

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"

	"dinnerbell/stream/sink"
	"dinnerbell/stream/topic"
)

// InitLanes writes a lane row for every partition of the campaigns topic that
// has none. The first call of a deployment adds all rows, at the offsets that
// kafka.start names. A partition that appears later is read from its beginning, since
// all its records are new.
func InitLanes(ctx context.Context, cfg Config, conn *pgx.Conn) error {
	client, err := cfg.Kafka.NewClient()
	if err != nil {
		return err
	}
	defer client.Close()
	ids, topics, err := topic.ReadIDs(ctx, client, cfg.Kafka, "Write")
	if err != nil {
		return err
	}
	partitions := topics[cfg.Kafka.Campaigns].Partitions.Numbers()
	t := cfg.Sink.Tables()
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		have, err := t.LockLanes(ctx, tx)
		if err != nil {
			return err
		}
		start := topic.StartEarliest
		if len(have) == 0 {
			start = cfg.Kafka.Start
		}
		offsets, err := startOffsets(ctx, kadm.NewClient(client), cfg.Kafka.Campaigns, start)
		if err != nil {
			return cfg.Kafka.ExplainDenied(err, client, "Read", cfg.Kafka.Campaigns)
		}
		for _, p := range partitions {
			if slices.Contains(have, p) {
				continue
			}
			o, ok := offsets.Lookup(cfg.Kafka.Campaigns, p)
			if !ok || o.Err != nil {
				return fmt.Errorf("find offset %s of %s/%d: %w", start, cfg.Kafka.Campaigns, p, o.Err)
			}
			row := sink.LaneRow{NextOffset: o.Offset, Cluster: ids.Cluster, Campaigns: ids.Campaigns, Notifications: ids.Notifications, Progress: ids.Progress}
			if err := t.AddLane(ctx, tx, p, &row); err != nil {
				return err
			}
		}
		return nil
	})
}

// startOffsets returns the offset that kafka.start names in each partition.
func startOffsets(ctx context.Context, adm *kadm.Client, campaigns, start string) (kadm.ListedOffsets, error) {
	switch start {
	case topic.StartEarliest:
		return adm.ListStartOffsets(ctx, campaigns)
	case topic.StartLatest:
		return adm.ListEndOffsets(ctx, campaigns)
	}
	at, err := topic.ParseStart(start)
	if err != nil {
		return nil, fmt.Errorf("kafka.start: %w", err)
	}
	return adm.ListOffsetsAfterMilli(ctx, at.UnixMilli(), campaigns)
}

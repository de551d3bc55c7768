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
	ids, topics, err := topic.ReadIDs(ctx, client, cfg.Kafka)
	if err != nil {
		return err
	}
	partitions := topics[cfg.Kafka.Campaigns].Partitions.Numbers()
	t := cfg.Sink.Tables()
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		have, err := lockLanes(ctx, tx, t)
		if err != nil {
			return err
		}
		start := topic.StartEarliest
		if len(have) == 0 {
			start = cfg.Kafka.Start
		}
		offsets, err := startOffsets(ctx, kadm.NewClient(client), cfg.Kafka.Campaigns, start)
		if err != nil {
			return err
		}
		for _, p := range partitions {
			if slices.Contains(have, p) {
				continue
			}
			o, ok := offsets.Lookup(cfg.Kafka.Campaigns, p)
			if !ok || o.Err != nil {
				return fmt.Errorf("find offset %s of %s/%d: %w", start, cfg.Kafka.Campaigns, p, o.Err)
			}
			if _, err := tx.Exec(ctx, `INSERT INTO `+t.Lane+` (lane, next_offset, cluster_id, campaigns_topic_id, notifications_topic_id, progress_topic_id)
VALUES ($1, $2, $3, $4, $5, $6)`, p, o.Offset, ids.Cluster, ids.Campaigns, ids.Notifications, ids.Progress); err != nil {
				return fmt.Errorf("add lane %d: %w", p, err)
			}
		}
		return nil
	})
}

// lockLanes keeps other daemons from adding lanes, and lists the existing ones.
func lockLanes(ctx context.Context, tx pgx.Tx, t sink.Tables) ([]int32, error) {
	if _, err := tx.Exec(ctx, "LOCK TABLE "+t.Lane+" IN SHARE ROW EXCLUSIVE MODE"); err != nil {
		return nil, fmt.Errorf("lock %s: %w; `dinnerbell setup` creates it", t.Lane, err)
	}
	rows, err := tx.Query(ctx, "SELECT lane FROM "+t.Lane)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", t.Lane, err)
	}
	have, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", t.Lane, err)
	}
	return have, nil
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

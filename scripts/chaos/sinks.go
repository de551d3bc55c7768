package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/scripts/chaos/oracle"
)

// readFeedback reads the whole feedback table in the order of its ids.
func readFeedback(ctx context.Context, conn *pgx.Conn) ([]oracle.FeedbackRow, error) {
	rows, err := conn.Query(ctx, `SELECT id, restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
  adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, client_id, trigger_datetime_created, feedback
FROM subscribers_feedback ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("read feedback table: %w", err)
	}
	out, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (w oracle.FeedbackRow, err error) {
		err = r.Scan(&w.ID, &w.Restaurant, &w.Campaign, &w.Content, &w.Owner, &w.Contact, &w.Start, &w.End, &w.Created, &w.Client, &w.Trigger, &w.Feedback)
		return w, err
	})
	if err != nil {
		return nil, fmt.Errorf("read feedback table: %w", err)
	}
	return out, nil
}

// readTopic reads a topic up to its present end as a read_committed consumer
// does. It waits for open transactions.
func (s *servers) readTopic(ctx context.Context, topic string) ([]*kgo.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	client, err := s.newKafkaClient(kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("read topic %s: %w", topic, err)
	}
	starts, err := kadm.NewClient(client).ListStartOffsets(ctx, topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("read topic %s: %w", topic, err)
	}
	left := map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if start, _ := starts.Lookup(topic, o.Partition); o.Offset > start.Offset {
			left[o.Partition] = o.Offset
		}
	})
	var out []*kgo.Record
	for len(left) > 0 {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("read topic %s: its end was not reached, left %v: %w", topic, left, ctx.Err())
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if !r.Attrs.IsControl() {
				out = append(out, r)
			}
			if r.Offset+1 >= left[r.Partition] {
				delete(left, r.Partition)
			}
		})
		if err := fetches.Err0(); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return nil, fmt.Errorf("read topic %s: %w", topic, err)
		}
	}
	return out, nil
}

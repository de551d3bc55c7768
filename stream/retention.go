package stream

import (
	"context"
	"fmt"
	"time"

	"dinnerbell/stream/campaign"
	"dinnerbell/stream/sink"
)

const (
	// retentionFirst and retentionEvery are when campaign rows are looked through
	// for those that nobody needs any more.
	retentionFirst = time.Minute
	retentionEvery = time.Hour
	// retentionPage is how many rows are looked at in one statement.
	retentionPage = 5000
)

// keepRetention deletes ended campaigns, until ctx ends. It runs beside the lanes:
// however long it takes, no campaign waits for it. An error ends this round alone.
func (s *Service) keepRetention(ctx context.Context) error {
	reader := s.readers.Open()
	defer reader.Close()
	wait := time.NewTimer(retentionFirst)
	defer wait.Stop()
	for {
		select {
		case <-wait.C:
		case <-ctx.Done():
			return nil
		}
		deleted, err := s.deleteEnded(ctx, reader, time.Now().Add(-keepEnded), retentionPage)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.cfg.Logger.Warn("ended campaigns are not all deleted; they are tried again", "deleted", deleted, "error", err, "in", retentionEvery)
		case deleted > 0:
			s.cfg.Logger.Info("ended campaigns were deleted", "rows", deleted)
		}
		wait.Reset(retentionEvery)
	}
}

// deleteEnded deletes the campaigns of all lanes that ended and were accepted
// before a time. It walks the primary key page by page, so that each statement is
// short and the table needs no index that every campaign would pay for. Rows that
// a step has locked are left to the next round.
func (s *Service) deleteEnded(ctx context.Context, db sink.Querier, before time.Time, page int) (deleted int64, err error) {
	t := s.cfg.Sink.Tables()
	sql := `WITH page AS (
  SELECT adv_campaign_id, restaurant_id FROM ` + t.Campaign + ` WHERE (adv_campaign_id, restaurant_id) > ($1, $2) ORDER BY adv_campaign_id, restaurant_id LIMIT $5),
old AS (
  SELECT c.adv_campaign_id, c.restaurant_id FROM ` + t.Campaign + ` c JOIN page USING (adv_campaign_id, restaurant_id)
  WHERE c.adv_campaign_datetime_end < $3 AND c.accepted_at < $4 FOR UPDATE OF c SKIP LOCKED),
gone AS (DELETE FROM ` + t.Campaign + ` c USING old WHERE c.adv_campaign_id = old.adv_campaign_id AND c.restaurant_id = old.restaurant_id RETURNING 1)
SELECT page.adv_campaign_id, page.restaurant_id, (SELECT count(*) FROM page), (SELECT count(*) FROM gone) FROM page ORDER BY 1 DESC, 2 DESC LIMIT 1`
	var last campaign.Key
	for {
		seen, gone := 0, int64(0)
		next, err := bounded(ctx, s.cfg.SinkTimeout, func(ctx context.Context) (next campaign.Key, err error) {
			rows, err := db.Query(ctx, sql, last.Campaign, last.Restaurant, before.Unix(), before, page)
			if err != nil {
				return next, err
			}
			defer rows.Close()
			for rows.Next() {
				if err := rows.Scan(&next.Campaign, &next.Restaurant, &seen, &gone); err != nil {
					return next, err
				}
			}
			return next, rows.Err()
		})
		if err != nil {
			return deleted, fmt.Errorf("delete ended campaigns: %w", err)
		}
		deleted += gone
		if seen < page {
			return deleted, nil
		}
		last = next
	}
}

package sink

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"dinnerbell/stream/campaign"
	"dinnerbell/stream/record"
)

// LanePosition is the part of a lane's row that a resolve sets anew.
type LanePosition struct {
	Lane       int32
	Epoch      int64 // of the claim that sets it
	Decided    int64 // P
	Shipped    int64 // K
	TopicEnds  []int64
	NextOffset int64

	Cluster, Campaigns, Notifications, Progress string // ids that the lane counts in
}

// MendLane sets a lane's positions. It returns ErrTakenOver where another claim has
// moved the epoch.
func (t Tables) MendLane(ctx context.Context, tx Querier, p *LanePosition) error {
	tag, err := tx.Exec(ctx, `UPDATE `+t.Lane+` SET seq = $3, shipped = $4, notifications_ends = $5, next_offset = $6,
  cluster_id = $7, campaigns_topic_id = $8, notifications_topic_id = $9, progress_topic_id = $10 WHERE lane = $1 AND epoch = $2`,
		p.Lane, p.Epoch, p.Decided, p.Shipped, p.TopicEnds, p.NextOffset, p.Cluster, p.Campaigns, p.Notifications, p.Progress)
	if err != nil {
		return fmt.Errorf("update lane: %w", err)
	}
	if tag.RowsAffected() != 1 {
		return ErrTakenOver
	}
	return nil
}

// ResetOffsets makes the messages of a lane's new log newer than every accepted message
// of the former log.
func (t Tables) ResetOffsets(ctx context.Context, tx Querier, lane int32) error {
	if _, err := tx.Exec(ctx, `UPDATE `+t.Campaign+` SET msg_offset = -1 WHERE msg_lane = $1`, lane); err != nil {
		return fmt.Errorf("update campaigns: %w", err)
	}
	return nil
}

// FinishPending finishes a lane's pending campaigns and returns their number.
func (t Tables) FinishPending(ctx context.Context, tx Querier, lane int32) (int64, error) {
	tag, err := tx.Exec(ctx, `UPDATE `+t.Campaign+` SET state = 'finished' WHERE lane = $1 AND state IN ('pending', 'rejoin', 'parked', 'paused')`, lane)
	if err != nil {
		return 0, fmt.Errorf("finish campaigns: %w", err)
	}
	return tag.RowsAffected(), nil
}

// FeedbackRow is one notification as the feedback table holds it.
type FeedbackRow struct {
	Campaign campaign.Campaign
	Trigger  int64 // Unix second of the decision
	Client   string
}

// EachValidRow calls fn for the feedback rows of a lane's campaigns that are still valid,
// ordered by campaign, restaurant and decision. It leaves out rows with feedback.
func (t Tables) EachValidRow(ctx context.Context, conn Querier, table *FeedbackTable, lane int32, fn func(*FeedbackRow) error) error {
	noFeedback := ""
	if table.HasFeedback {
		noFeedback = ` AND coalesce(f.feedback::text, '') = ''`
	}
	rows, err := conn.Query(ctx, `SELECT `+table.RowSQL("f")+`
FROM `+t.Feedback+` f JOIN `+t.Campaign+` c ON c.adv_campaign_id = `+table.ColumnSQL(record.CampaignColumn, "f")+` AND c.restaurant_id = `+table.ColumnSQL(record.RestaurantColumn, "f")+`
WHERE c.lane = $1 AND c.adv_campaign_datetime_end > extract(epoch FROM now())`+noFeedback+`
ORDER BY f.adv_campaign_id, f.restaurant_id, f.trigger_datetime_created, f.client_id`, lane)
	if err != nil {
		return fmt.Errorf("read feedback rows: %w", err)
	}
	var r FeedbackRow
	c := &r.Campaign
	_, err = pgx.ForEachRow(rows, []any{&c.RestaurantID, &c.ID, &c.Content, &c.Owner, &c.OwnerContact, &c.Start, &c.End, &c.Created, &r.Trigger, &r.Client}, func() error {
		return fn(&r)
	})
	return err
}

// CountMissing counts the clients of a segment that have no feedback row of its decision.
func (t *FeedbackTable) CountMissing(ctx context.Context, conn Querier, s *record.Segment) (missing int64, err error) {
	clients := make([]string, s.Clients.Len())
	for i := range clients {
		clients[i] = s.Clients.At(i).Text()
	}
	if err := conn.QueryRow(ctx, `SELECT count(*) FROM (`+t.MissingSQL(` AND f.restaurant_id = `+t.ParamSQL(record.RestaurantColumn, "$3")+`
  AND f.trigger_datetime_created = `+t.ParamSQL(record.TriggerColumn, "$4"))+`) AS missing`,
		s.Campaign.ID, clients, s.Campaign.RestaurantID, s.Trigger).Scan(&missing); err != nil {
		return 0, fmt.Errorf("look up feedback rows: %w", err)
	}
	return missing, nil
}

// LaneOffset is the next offset of a lane, and whether the lane counts in the given
// cluster and campaigns topic.
type LaneOffset struct {
	Lane       int32
	NextOffset int64
	SameTopic  bool
}

// ReadLaneOffsets reads the next offset of every lane, ordered by lane.
func (t Tables) ReadLaneOffsets(ctx context.Context, conn Querier, cluster, campaignsTopic string) ([]LaneOffset, error) {
	rows, err := conn.Query(ctx, `SELECT lane, next_offset, cluster_id = $1 AND campaigns_topic_id = $2 FROM `+t.Lane+` ORDER BY lane`, cluster, campaignsTopic)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", t.Lane, err)
	}
	lanes, err := pgx.CollectRows(rows, pgx.RowToStructByPos[LaneOffset])
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", t.Lane, err)
	}
	return lanes, nil
}

// ReadDecided reads P, the last decided step of a lane.
func (t Tables) ReadDecided(ctx context.Context, conn Querier, lane int32) (decided int64, err error) {
	if err := conn.QueryRow(ctx, `SELECT seq FROM `+t.Lane+` WHERE lane = $1`, lane).Scan(&decided); err != nil {
		return 0, fmt.Errorf("read %s: %w", t.Lane, err)
	}
	return decided, nil
}

// ReadPendingVersions reads the row versions of the given campaigns, as far as they are
// pending on the lane.
func (t Tables) ReadPendingVersions(ctx context.Context, conn Querier, lane int32, keys []campaign.Key) (map[campaign.Key]int64, error) {
	campaigns, restaurants := make([]string, len(keys)), make([]string, len(keys))
	for i, k := range keys {
		campaigns[i], restaurants[i] = k.Campaign, k.Restaurant
	}
	rows, err := conn.Query(ctx, `SELECT k.campaign, k.restaurant, c.version FROM unnest($1::text[], $2::text[]) AS k(campaign, restaurant)
JOIN `+t.Campaign+` c ON c.adv_campaign_id = k.campaign AND c.restaurant_id = k.restaurant WHERE c.lane = $3 AND c.state = 'pending'`, campaigns, restaurants, lane)
	if err != nil {
		return nil, fmt.Errorf("look up campaigns: %w", err)
	}
	versions := map[campaign.Key]int64{}
	var k campaign.Key
	var version int64
	if _, err = pgx.ForEachRow(rows, []any{&k.Campaign, &k.Restaurant, &version}, func() error {
		versions[k] = version
		return nil
	}); err != nil {
		return nil, fmt.Errorf("look up campaigns: %w", err)
	}
	return versions, nil
}

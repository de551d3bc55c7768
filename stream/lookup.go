package stream

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/stream/campaign"
)

// campaignLookup reads what the campaign table holds for messages. For one
// goroutine at a time per batch.
type campaignLookup struct {
	lane    int32
	t       tables
	reader  querier
	table   *feedbackTable
	letters letterMaker
	timeout time.Duration
}

// fillVersionsAnew is fill for messages that may have been looked up before.
func (l *campaignLookup) fillVersionsAnew(ctx context.Context, batch []message) error {
	for i := range batch {
		batch[i].accepted, batch[i].shared = nil, false
	}
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	return l.fillVersions(ctx, batch)
}

// fillVersions notes what the campaign table holds for the batch's keys. Steps
// that are still in flight are not in it; decide knows those itself. Most ids are
// new, so it is asked first which are not.
func (l *campaignLookup) fillVersions(ctx context.Context, batch []message) error {
	if err := l.refuseUnencodable(ctx, batch); err != nil {
		return err
	}
	byID := make(map[string][]*message, len(batch))
	for i := range batch {
		if c := batch[i].campaign; c != nil {
			byID[c.ID] = append(byID[c.ID], &batch[i])
		}
	}
	if len(byID) == 0 {
		return nil
	}
	rows, err := l.reader.Query(ctx, knownIDsSQL(l.t), slices.Collect(maps.Keys(byID)))
	if err != nil {
		return fmt.Errorf("look up campaigns: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("look up campaigns: %w", err)
	}
	var there []*message
	for _, id := range ids {
		there = append(there, byID[id]...)
	}
	return l.fillAccepted(ctx, there)
}

// knownIDsSQL asks for each id by itself: LIMIT keeps the planner from turning it
// into a join over the whole table.
func knownIDsSQL(t tables) string {
	return `SELECT k.campaign FROM unnest($1::text[]) AS k(campaign)
CROSS JOIN LATERAL (SELECT FROM ` + t.campaign + ` c WHERE c.adv_campaign_id = k.campaign LIMIT 1) AS c`
}

// knownKeysSQL gives each key with its row, NULLs where there is none, and
// whether the campaign has other restaurants too.
func knownKeysSQL(t tables) string {
	return `SELECT k.campaign, k.restaurant, coalesce(c.version, 0), coalesce(c.lane, -1), coalesce(c.msg_lane, -1), coalesce(c.msg_offset, -1), coalesce(c.msg_time, -1), c.fingerprint,
  EXISTS (SELECT FROM ` + t.campaign + ` o WHERE o.adv_campaign_id = k.campaign AND o.restaurant_id <> k.restaurant)
FROM unnest($1::text[], $2::text[]) AS k(campaign, restaurant)
LEFT JOIN LATERAL (SELECT c.version, c.lane, c.msg_lane, c.msg_offset, c.msg_time, c.fingerprint FROM ` + t.campaign + ` c WHERE c.adv_campaign_id = k.campaign AND c.restaurant_id = k.restaurant LIMIT 1) AS c ON true`
}

// readKnown calls fn with what the campaign table holds for each key, nil if
// nothing, and whether the campaign has other restaurants.
func (t tables) readKnown(ctx context.Context, conn querier, keys []campaign.Key, fn func(k campaign.Key, n *campaign.Version, shared bool)) error {
	campaigns, restaurants := make([]string, len(keys)), make([]string, len(keys))
	for i, k := range keys {
		campaigns[i], restaurants[i] = k.Campaign, k.Restaurant
	}
	rows, err := conn.Query(ctx, knownKeysSQL(t), campaigns, restaurants)
	if err != nil {
		return fmt.Errorf("look up campaigns: %w", err)
	}
	var k campaign.Key
	var n campaign.Version
	var content []byte
	var shared bool
	_, err = pgx.ForEachRow(rows, []any{&k.Campaign, &k.Restaurant, &n.RowVersion, &n.Owner, &n.Lane, &n.Offset, &n.Time, &content, &shared}, func() error {
		if content == nil {
			fn(k, nil, shared)
			return nil
		}
		found := n
		copy(found.Fingerprint[:], content)
		fn(k, &found, shared)
		return nil
	})
	if err != nil {
		return fmt.Errorf("look up campaigns: %w", err)
	}
	return nil
}

// fillAccepted is fill for messages whose ids the campaign table has.
func (l *campaignLookup) fillAccepted(ctx context.Context, batch []*message) error {
	byKey := make(map[campaign.Key][]*message, len(batch))
	for _, m := range batch {
		k := m.campaign.Key()
		byKey[k] = append(byKey[k], m)
	}
	if len(byKey) == 0 {
		return nil
	}
	return l.t.readKnown(ctx, l.reader, slices.Collect(maps.Keys(byKey)), func(k campaign.Key, n *campaign.Version, shared bool) {
		for _, m := range byKey[k] {
			m.accepted, m.shared = n, shared
		}
	})
}

package sink

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/precondition"
	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
)

// Late subscribers: what join.late_subscribers reads and writes beside the steps. A
// campaign is SERVED once a step has looked at a client of it: its row is finished, or
// pending or rejoin with a cursor.

// lateIndexes are the indexes of the campaign table that only late subscribers need.
// %[1]s is CONCURRENTLY or nothing, %[2]s the schema. The first one has the campaigns
// of a restaurant in the order in which ReadServed reads them; no step but an edit
// changes its columns. Its condition keeps the planner from using it for statements by
// key, which do not have the condition: without statistics the index seems as good as
// the primary key.
var lateIndexes = []tableIndex{
	{"campaign_restaurant", `CREATE INDEX %[1]sIF NOT EXISTS campaign_restaurant ON %[2]s.campaign (lane, restaurant_id, adv_campaign_datetime_end, adv_campaign_id) WHERE ` + inRestaurants},
	{"campaign_rejoin", `CREATE INDEX %[1]sIF NOT EXISTS campaign_rejoin ON %[2]s.campaign (lane, adv_campaign_datetime_end) WHERE state = '` + StateRejoin + `'`},
}

// inRestaurants is the condition of campaign_restaurant: the states of campaigns that are
// joined, or may be without a command.
const inRestaurants = `state IN ('` + StatePending + `', '` + StateFinished + `', '` + StateRejoin + `')`

func concurrentIf(concurrently bool) string {
	if concurrently {
		return "CONCURRENTLY "
	}
	return ""
}

// readCampaignIndexes returns the names of the campaign table's valid indexes.
func readCampaignIndexes(ctx context.Context, q Querier, t Tables) (valid map[string]bool, err error) {
	names, err := QueryTexts(ctx, q, `SELECT c.relname FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = pg_catalog.to_regclass($1) AND i.indisvalid`, t.Campaign)
	if err != nil {
		return nil, fmt.Errorf("look for the indexes of %s: %w", t.Campaign, err)
	}
	valid = map[string]bool{}
	for _, name := range names {
		valid[name] = true
	}
	return valid, nil
}

// setupLate creates the indexes of lateIndexes with the option on. With the option off
// it names those that are there: each new campaign costs an entry in them.
func setupLate(ctx context.Context, conn *pgx.Conn, cfg Config, t Tables) (did []string, err error) {
	valid, err := readCampaignIndexes(ctx, conn, t)
	if err != nil {
		return nil, err
	}
	for _, index := range lateIndexes {
		name := t.Schema + "." + index.name
		switch {
		case valid[index.name] && cfg.LateSubscribers:
			did = append(did, fmt.Sprintf("index %s: there already", name))
		case valid[index.name]:
			did = append(did, fmt.Sprintf("index %s: there, and not needed while join.late_subscribers is false; to drop it: DROP INDEX CONCURRENTLY %[1]s", name))
		case cfg.LateSubscribers:
			if err := t.createIndex(ctx, conn, index, true); err != nil {
				return did, err
			}
			did = append(did, fmt.Sprintf("index %s: created", name))
		}
	}
	return did, nil
}

// checkLateIndexes checks that the look-up of a restaurant's campaigns does not read
// the whole table.
func checkLateIndexes(ctx context.Context, f *Facts) ([]precondition.Finding, error) {
	if !f.Cfg.LateSubscribers {
		return nil, nil
	}
	valid, err := readCampaignIndexes(ctx, f.Conn, f.T)
	if err != nil {
		return nil, err
	}
	for _, index := range lateIndexes {
		if !valid[index.name] {
			return []precondition.Finding{{Level: precondition.Fail, Object: "table " + f.T.Campaign,
				Found:  "it has no valid index " + index.name + ", and join.late_subscribers is true",
				Effect: "each change of a subscription would read the whole table",
				Fix:    "dinnerbell setup"}}, nil
		}
	}
	return nil, nil
}

// LateRow is a campaign that a step notifies late subscribers of, and how many.
type LateRow struct {
	Key     campaign.Key
	Version int64 // that the row must still have
	Clients int64
	Refusal string // why the feedback table takes no row of it; "": it does
}

// notifyLateSQL counts late subscribers ($5) of campaigns. The rows must be those that
// the look-up has read: another message, or an operator, raises the version. The states
// are named so that the condition of campaign_restaurant does not follow. A refusal ($6)
// is for a finished campaign: one that is under way meets it itself.
func notifyLateSQL(t Tables) string {
	return expectCounts(`UPDATE ` + t.Campaign + ` AS c SET notified = c.notified + u.clients, audience = ` + metAudience(lateAudience, `u.clients`, `c.already`) + `,
  refusal = CASE WHEN c.state = '` + StateFinished + `' AND u.refusal <> '' THEN u.refusal ELSE c.refusal END
FROM unnest($1::text[], $2::text[], $3::int4[], $4::int8[], $5::int8[], $6::text[]) WITH ORDINALITY AS u(campaign, restaurant, lane, version, clients, refusal, n)
WHERE c.adv_campaign_id = u.campaign AND c.restaurant_id = u.restaurant AND c.lane = u.lane AND c.version = u.version
  AND c.state NOT IN ('` + StateExpired + `', '` + StateParked + `', '` + StatePaused + `', '` + StateCancelled + `')`)
}

// lateAudience is the audience of row c. Readers add the counts of a finished campaign up
// where it is NULL, and not those of a refused one, so that the refusal of a campaign that
// has met everybody stores the sum.
const lateAudience = `CASE WHEN c.state = '` + StateFinished + `' AND u.refusal <> '' AND (c.finished_at IS NULL OR c.finished_at < to_timestamp(c.adv_campaign_datetime_end))
    THEN coalesce(c.audience, c.notified + c.already) ELSE c.audience END`

// lateArgs are the arguments of notifyLateSQL.
func lateArgs(lane int32, rows []LateRow) []any {
	var campaigns, restaurants, refusals []string
	var lanes []int32
	var versions, clients []int64
	for _, r := range rows {
		refusals = append(refusals, r.Refusal)
		campaigns, restaurants = append(campaigns, r.Key.Campaign), append(restaurants, r.Key.Restaurant)
		lanes, versions, clients = append(lanes, lane), append(versions, r.Version), append(clients, r.Clients)
	}
	return []any{campaigns, restaurants, lanes, versions, clients, refusals}
}

// LateRestaurant asks for the served campaigns of one restaurant, from a place in the
// order of (end, campaign) on.
type LateRestaurant struct {
	Restaurant string
	Least      id.ID // least client: a cursor before it has still to pass all clients
	AfterEnd   int64 // campaigns end after this Unix second, or in it and
	AfterID    string
}

// ServedCampaign is a campaign that a lane has joined with subscriptions, all or a part.
type ServedCampaign struct {
	*campaign.Campaign
	Of      int // index of the LateRestaurant
	Version int64
	Cursor  id.ID // the last client that was looked at; "" if all were
	From    campaign.Position
}

// ServedSQL selects served campaigns that the feedback table takes, of lane $1 over the restaurants $2, whose least
// clients are $3, behind ($4, $5) in the order of (end, campaign): at most $6.
func (t Tables) ServedSQL() string {
	return `SELECT k.n, c.* FROM unnest($2::text[], $3::bytea[], $4::int8[], $5::text[]) WITH ORDINALITY AS k(restaurant, least, after_end, after_id, n)
CROSS JOIN LATERAL (
  SELECT c.adv_campaign_id, c.restaurant_id, c.version, c.adv_campaign_content, c.adv_campaign_owner, c.adv_campaign_owner_contact,
    c.adv_campaign_datetime_start, c.adv_campaign_datetime_end, c.datetime_created, CASE WHEN c.state <> '` + StateFinished + `' THEN c.cursor END AS cursor, c.msg_lane, c.msg_offset
  FROM ` + t.Campaign + ` c WHERE c.lane = $1 AND c.restaurant_id = k.restaurant AND (c.adv_campaign_datetime_end, c.adv_campaign_id) > (k.after_end, k.after_id)
    AND c.` + inRestaurants + ` AND c.refusal = '' AND (c.state = '` + StateFinished + `' OR c.cursor >= k.least)
  ORDER BY c.adv_campaign_datetime_end, c.adv_campaign_id LIMIT $6) AS c
ORDER BY k.n, c.adv_campaign_datetime_end, c.adv_campaign_id LIMIT $6`
}

// ReadServed returns served campaigns of a lane, over all restaurants of ask, in the
// order of ask and then of (end, campaign): at most limit, and none once so many
// bytes of contents are read. rest asks for those that are left; nil if there are none.
func (t Tables) ReadServed(ctx context.Context, q Querier, lane int32, ask []LateRestaurant, limit, bytes int) (list []ServedCampaign, rest []LateRestaurant, err error) {
	restaurants, least, ends, ids := make([]string, len(ask)), make([][]byte, len(ask)), make([]int64, len(ask)), make([]string, len(ask))
	for i, a := range ask {
		restaurants[i], least[i], ends[i], ids[i] = a.Restaurant, []byte(a.Least), a.AfterEnd, a.AfterID
	}
	rows, err := q.Query(ctx, t.ServedSQL(), lane, restaurants, least, ends, ids, limit)
	if err != nil {
		return nil, nil, fmt.Errorf("look up campaigns of lane %d: %w", lane, err)
	}
	defer rows.Close()
	for bytes > 0 && rows.Next() {
		c, s := &campaign.Campaign{}, ServedCampaign{}
		var cursor []byte
		if err := rows.Scan(&s.Of, &c.ID, &c.RestaurantID, &s.Version, &c.Content, &c.Owner, &c.OwnerContact, &c.Start, &c.End, &c.Created, &cursor, &s.From.Lane, &s.From.Offset); err != nil {
			return nil, nil, fmt.Errorf("look up campaigns of lane %d: %w", lane, err)
		}
		s.Campaign, s.Cursor = c, id.ID(cursor)
		s.Of--
		list = append(list, s)
		bytes -= c.Size()
	}
	rows.Close()
	if err := rows.Err(); err != nil {
		return nil, nil, fmt.Errorf("look up campaigns of lane %d: %w", lane, err)
	}
	if len(list) < limit && bytes > 0 {
		return list, nil, nil
	}
	last := list[len(list)-1]
	rest = append(rest, ask[last.Of:]...)
	rest[0].AfterEnd, rest[0].AfterID = last.End, last.ID
	return list, rest, nil
}

// LateState is what became of a campaign since late subscribers of it were looked up.
type LateState int

// The states of ReadLateStates.
const (
	LateLost    LateState = iota // another lane has it, it is held, or it is joined from its first client
	LateSame                     // the row is as it was looked up
	LateChanged                  // somebody has raised its version, and it goes on where it was
)

// ReadLateStates returns what became of the rows.
func (t Tables) ReadLateStates(ctx context.Context, q Querier, lane int32, rows []LateRow) (map[campaign.Key]LateState, error) {
	found, err := q.Query(ctx, `SELECT c.adv_campaign_id, c.restaurant_id, c.version = u.version, c.state = '`+StateFinished+`' OR c.cursor <> ''
FROM unnest($1::text[], $2::text[], $3::int4[], $4::int8[], $5::int8[], $6::text[]) AS u(campaign, restaurant, lane, version, clients, refusal)
CROSS JOIN `+t.rowByKeySQL("u")+` WHERE c.lane = u.lane AND c.refusal = '' AND c.`+inRestaurants, lateArgs(lane, rows)...)
	if err != nil {
		return nil, fmt.Errorf("look up campaigns: %w", err)
	}
	states := map[campaign.Key]LateState{}
	var k campaign.Key
	var same, served bool
	if _, err = pgx.ForEachRow(found, []any{&k.Campaign, &k.Restaurant, &same, &served}, func() error {
		switch {
		case same:
			states[k] = LateSame
		case served:
			states[k] = LateChanged
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("look up campaigns: %w", err)
	}
	return states, nil
}

// EachRestaurant calls fn for the restaurant and the end of each campaign of a lane that
// ends after a Unix second and is joined, or may be without a command.
func (t Tables) EachRestaurant(ctx context.Context, q Querier, lane int32, after int64, fn func(restaurant string, end int64)) error {
	rows, err := q.Query(ctx, `SELECT c.restaurant_id, c.adv_campaign_datetime_end FROM `+t.Campaign+` c WHERE c.lane = $1 AND c.adv_campaign_datetime_end > $2 AND c.`+inRestaurants, lane, after)
	if err != nil {
		return fmt.Errorf("read restaurants of lane %d: %w", lane, err)
	}
	var restaurant string
	var end int64
	if _, err = pgx.ForEachRow(rows, []any{&restaurant, &end}, func() error { fn(restaurant, end); return nil }); err != nil {
		return fmt.Errorf("read restaurants of lane %d: %w", lane, err)
	}
	return nil
}

// Rejoin has the lane's campaigns that are not over at a Unix second joined again from
// their first client, and sets the lane's position in the source. It returns how many
// campaigns that are, or ErrTakenOver if the epoch is not the lane's. One statement: a
// position without the campaigns would lose clients. It locks the lane's row before the
// campaigns, as a step does.
func (t Tables) Rejoin(ctx context.Context, q Querier, lane int32, epoch int64, source string, lsn id.LSN, now int64) (campaigns int64, err error) {
	err = q.QueryRow(ctx, `WITH owned AS (
  UPDATE `+t.Lane+` SET source_id = $3, source_lsn = $4 WHERE lane = $1 AND epoch = $2 RETURNING lane),
again AS (
  UPDATE `+t.Campaign+` AS c SET state = CASE c.state WHEN '`+StatePending+`' THEN c.state ELSE '`+StateRejoin+`' END, cursor = '', contested = true, already = 0
  FROM owned WHERE c.lane = owned.lane AND c.adv_campaign_datetime_end > $5
    AND c.`+inRestaurants+` AND c.refusal = '' AND (c.state = '`+StateFinished+`' OR c.cursor <> '') RETURNING 1)
SELECT (SELECT count(*) FROM again) FROM owned`, lane, epoch, source, int64(lsn), now).Scan(&campaigns)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, ErrTakenOver
	}
	if err != nil {
		return 0, fmt.Errorf("have the campaigns of lane %d joined again: %w", lane, err)
	}
	return campaigns, nil
}

// ReadRejoins returns campaigns of a lane that wait to be joined again, those that end
// first in front, without the keys of except: at most limit.
func (t Tables) ReadRejoins(ctx context.Context, q Querier, lane int32, except []campaign.Key, limit int) ([]DueCampaign, error) {
	campaigns, restaurants := splitKeys(except)
	rows, err := q.Query(ctx, `SELECT `+dueColumns+` FROM `+t.Campaign+` c WHERE c.lane = $1 AND c.state = '`+StateRejoin+`'
  AND NOT EXISTS (SELECT FROM unnest($2::text[], $3::text[]) AS k(campaign, restaurant) WHERE k.campaign = c.adv_campaign_id AND k.restaurant = c.restaurant_id)
ORDER BY c.adv_campaign_datetime_end LIMIT $4`, lane, campaigns, restaurants, limit)
	if err != nil {
		return nil, fmt.Errorf("load campaigns of lane %d to join again: %w", lane, err)
	}
	list, err := pgx.CollectRows(rows, scanDue)
	if err != nil {
		return nil, fmt.Errorf("load campaigns of lane %d to join again: %w", lane, err)
	}
	return list, nil
}

// ReadHandled returns the least position of all lanes in a source: every lane has handled
// the changes of the subscriptions up to there. 0 if no lane has a position in it.
func (t Tables) ReadHandled(ctx context.Context, q Querier, source string) (id.LSN, error) {
	var lsn int64
	if err := q.QueryRow(ctx, `SELECT coalesce(min(source_lsn), 0) FROM `+t.Lane+` WHERE source_id = $1`, source).Scan(&lsn); err != nil {
		return 0, fmt.Errorf("read positions of the lanes: %w", err)
	}
	return id.LSN(lsn), nil
}

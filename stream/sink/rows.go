package sink

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/record"
)

// StepStatements are the statements of a step's transaction.
type StepStatements struct {
	Begin, Path, Copy, Lane, Insert, Edit, Repeat, Move, Outbox, Clean, Shape, InTime, Commit *Statement
}

// NewStepStatements makes the statements; they must be prepared on each connection.
func NewStepStatements(t Tables) *StepStatements {
	return &StepStatements{
		Begin: &Statement{Name: "begin", Sql: `BEGIN`},
		Copy:  &Statement{Name: "copy feedback rows", Sql: `COPY ` + t.Feedback + ` (` + record.ColumnList + `) FROM STDIN (FORMAT binary)`, Rows: true},
		Path:  &Statement{Name: "set search path", Sql: `SELECT pg_catalog.set_config('search_path', $1::text, true)`},
		Lane: &Statement{Name: "move lane", Stands: OnMiss(ErrTakenOver), Sql: ExpectRows("1", `UPDATE `+t.Lane+` SET seq = $3 + 1, next_offset = greatest(next_offset, $4), notified = notified + $5, expired = expired + $6, dead = dead + $7,
  shipped = $8, notifications_ends = $9
WHERE lane = $1 AND epoch = $2 AND seq = $3`)},
		Insert: &Statement{Name: "insert campaigns", Stands: map[string]error{UniqueViolation: ErrStaleRow}, Sql: insertRowsSQL(t)},
		Edit:   &Statement{Name: "edit campaigns", Stands: OnMiss(ErrStaleRow), Sql: editRowsSQL(t)},
		Repeat: &Statement{Name: "repeat campaigns", Stands: OnMiss(ErrStaleRow), Sql: repeatRowsSQL(t)},
		Move:   &Statement{Name: "move campaigns", Stands: OnMiss(ErrStaleRow), Sql: moveRowsSQL(t)},
		Outbox: &Statement{Name: "write outbox", Sql: `INSERT INTO ` + t.Outbox + ` (lane, seq, notifications, payload) VALUES ($1, $2, $3, $4)`},
		Clean:  &Statement{Name: "clean outbox", Sql: `DELETE FROM ` + t.Outbox + ` WHERE lane = $1 AND seq <= $2`},
		Shape:  &Statement{Name: "compare the feedback table", Stands: OnMiss(ErrTableAltered), Sql: TreeSQL + ` SELECT 1 / (` + ShapeSQL + ` = $3::text)::int4`},
		InTime: &Statement{Name: "look at the clock", Stands: OnMiss(ErrCampaignEnded), Sql: `SELECT 1 / (extract(epoch FROM clock_timestamp()) < $1::float8)::int4`},
		Commit: &Statement{Name: "commit", Sql: `COMMIT`, Rows: true},
	}
}

// All lists the statements, to be prepared.
func (q *StepStatements) All() []*Statement {
	return []*Statement{q.Begin, q.Path, q.Copy, q.Lane, q.Insert, q.Edit, q.Repeat, q.Move, q.Outbox, q.Clean, q.Shape, q.InTime, q.Commit}
}

// rowSet holds campaign rows column by column, as unnest takes them.
type rowSet struct {
	campaigns, restaurants     []string
	contents, owners, contacts []string
	starts, ends, created      []int64
	lanes, msgLanes            []int32
	versions, offsets, times   []int64
	fingerprints, cursors      [][]byte
	states                     []string
	contested                  []bool
	// The state of the row that must still be there.
	oldVersions, oldOffsets []int64
	oldLanes                []int32
}

// CampaignRow is one row of the campaign table as a step changes it.
type CampaignRow struct {
	*campaign.Campaign
	OwnerLane   int32 // the lane that delivers it
	Version     int64
	At          campaign.Position // of the message
	MessageTime int64
	Fingerprint campaign.Fingerprint
	Replaces    *campaign.Version // the version that must still be there; nil: no row
	State       string
	Cursor      id.ID
	Contested   bool
}

// RowSets are a step's rows by how the step changes them.
type RowSets struct {
	Inserts []*CampaignRow // of keys without a row
	Edits   rowSet         // new messages in place of known ones
	Repeats rowSet         // identical messages
	Moves   rowSet         // progress of campaigns that were accepted before
}

func (s *rowSet) Len() int { return len(s.campaigns) }

func (s *rowSet) addKey(r *CampaignRow) {
	s.campaigns, s.restaurants = append(s.campaigns, r.ID), append(s.restaurants, r.RestaurantID)
}

// addMessage adds the message that the row holds from now on, and the state of
// the row that it takes the place of.
func (s *rowSet) addMessage(r *CampaignRow) {
	s.msgLanes, s.offsets, s.times = append(s.msgLanes, r.At.Lane), append(s.offsets, r.At.Offset), append(s.times, r.MessageTime)
	s.oldVersions, s.oldLanes, s.oldOffsets = append(s.oldVersions, r.Replaces.RowVersion), append(s.oldLanes, r.Replaces.Lane), append(s.oldOffsets, r.Replaces.Offset)
}

func (s *rowSet) addProgress(r *CampaignRow) {
	s.lanes, s.versions = append(s.lanes, r.OwnerLane), append(s.versions, r.Version)
	s.states, s.cursors = append(s.states, r.State), append(s.cursors, []byte(r.Cursor))
}

func (s *rowSet) AddEdit(r *CampaignRow) {
	s.addKey(r)
	s.addMessage(r)
	s.addProgress(r)
	s.contents, s.owners, s.contacts = append(s.contents, r.Content), append(s.owners, r.Owner), append(s.contacts, r.OwnerContact)
	s.starts, s.ends, s.created = append(s.starts, r.Start), append(s.ends, r.End), append(s.created, r.Created)
	s.fingerprints, s.contested = append(s.fingerprints, r.Fingerprint[:]), append(s.contested, r.Contested)
}

func (s *rowSet) AddRepeat(r *CampaignRow) {
	s.addKey(r)
	s.addMessage(r)
}

func (s *rowSet) AddMove(r *CampaignRow) {
	s.addKey(r)
	s.addProgress(r)
}

// rowColumns and rowArrays belong to the first seventeen parameters.
const (
	rowColumns = `adv_campaign_id, restaurant_id, lane, version, msg_lane, msg_offset, msg_time, fingerprint,
  adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
  adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, state, cursor, contested`
	rowArrays = `$1::text[], $2::text[], $3::int4[], $4::int8[], $5::int4[], $6::int8[], $7::int8[], $8::bytea[],
  $9::text[], $10::text[], $11::text[], $12::int8[], $13::int8[], $14::int8[], $15::text[], $16::bytea[], $17::boolean[]`
)

func (s *rowSet) EditArgs() []any {
	return []any{s.campaigns, s.restaurants, s.lanes, s.versions, s.msgLanes, s.offsets, s.times, s.fingerprints,
		s.contents, s.owners, s.contacts, s.starts, s.ends, s.created, s.states, s.cursors, s.contested, s.oldVersions, s.oldLanes, s.oldOffsets}
}

func (s *rowSet) RepeatArgs() []any {
	return []any{s.campaigns, s.restaurants, s.msgLanes, s.offsets, s.times, s.oldVersions, s.oldLanes, s.oldOffsets}
}

func (s *rowSet) MoveArgs() []any {
	return []any{s.campaigns, s.restaurants, s.lanes, s.versions, s.states, s.cursors}
}

// everyRow: each row of the set must be changed, or the step is stale.
const everyRow = `cardinality($1::text[])`

func insertRowsSQL(t Tables) string {
	return `COPY ` + t.Campaign + ` (` + rowColumns + `) FROM STDIN (FORMAT binary)`
}

// EncodeRows returns new rows as a binary COPY stream of rowColumns.
func EncodeRows(rows []*CampaignRow) []byte {
	dst := make([]byte, 0, len(rows)*512)
	dst = append(dst, record.CopySignature...)
	for _, r := range rows {
		dst = binary.BigEndian.AppendUint16(dst, 17)
		dst = record.AppendField(record.AppendField(dst, r.ID), r.RestaurantID)
		dst = record.AppendInt8(record.AppendInt4(dst, r.OwnerLane), r.Version)
		dst = record.AppendInt8(record.AppendInt8(record.AppendInt4(dst, r.At.Lane), r.At.Offset), r.MessageTime)
		dst = record.AppendField(dst, r.Fingerprint[:])
		dst = record.AppendField(record.AppendField(record.AppendField(dst, r.Content), r.Owner), r.OwnerContact)
		dst = record.AppendInt8(record.AppendInt8(record.AppendInt8(dst, r.Start), r.End), r.Created)
		dst = record.AppendField(record.AppendField(dst, r.State), r.Cursor)
		dst = record.AppendBool(dst, r.Contested)
	}
	return append(dst, record.CopyTrailer...)
}

func editRowsSQL(t Tables) string {
	return ExpectRows(everyRow, `UPDATE `+t.Campaign+` AS c SET lane = u.lane, version = u.version, msg_lane = u.msg_lane, msg_offset = u.msg_offset, msg_time = u.msg_time,
  fingerprint = u.fingerprint, adv_campaign_content = u.adv_campaign_content, adv_campaign_owner = u.adv_campaign_owner,
  adv_campaign_owner_contact = u.adv_campaign_owner_contact, adv_campaign_datetime_start = u.adv_campaign_datetime_start,
  adv_campaign_datetime_end = u.adv_campaign_datetime_end, datetime_created = u.datetime_created, state = u.state, cursor = u.cursor,
  contested = u.contested, accepted_at = now()
FROM unnest(`+rowArrays+`, $18::int8[], $19::int4[], $20::int8[]) AS u(`+rowColumns+`, old_version, old_lane, old_offset)
WHERE c.adv_campaign_id = u.adv_campaign_id AND c.restaurant_id = u.restaurant_id
  AND c.version = u.old_version AND c.msg_lane = u.old_lane AND c.msg_offset = u.old_offset`)
}

// repeatRowsSQL leaves the version alone: the lane that delivers the campaign
// goes on with it.
func repeatRowsSQL(t Tables) string {
	return ExpectRows(everyRow, `UPDATE `+t.Campaign+` AS c SET msg_lane = u.msg_lane, msg_offset = u.msg_offset, msg_time = u.msg_time
FROM unnest($1::text[], $2::text[], $3::int4[], $4::int8[], $5::int8[], $6::int8[], $7::int4[], $8::int8[])
  AS u(campaign, restaurant, msg_lane, msg_offset, msg_time, old_version, old_lane, old_offset)
WHERE c.adv_campaign_id = u.campaign AND c.restaurant_id = u.restaurant
  AND c.version = u.old_version AND c.msg_lane = u.old_lane AND c.msg_offset = u.old_offset`)
}

func moveRowsSQL(t Tables) string {
	return ExpectRows(everyRow, `UPDATE `+t.Campaign+` AS c SET state = u.state, cursor = u.cursor
FROM unnest($1::text[], $2::text[], $3::int4[], $4::int8[], $5::text[], $6::bytea[]) AS u(campaign, restaurant, lane, version, state, cursor)
WHERE c.adv_campaign_id = u.campaign AND c.restaurant_id = u.restaurant AND c.lane = u.lane AND c.version = u.version`)
}

// ClockSkew returns how far our clock, now, is ahead of Postgres', with an error of at
// most off: half of the time that the query takes.
func ClockSkew(ctx context.Context, conn *pgx.Conn, now func() time.Time) (skew, off time.Duration, err error) {
	var theirs time.Time
	before := now()
	if err := conn.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&theirs); err != nil {
		return 0, 0, fmt.Errorf("read Postgres' clock: %w", err)
	}
	off = now().Sub(before) / 2
	return before.Add(off).Sub(theirs), off, nil
}

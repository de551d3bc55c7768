package stream

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/record"
	"dinnerbell/stream/sink"
)

// stepStatements are what a step's transaction is made of.
type stepStatements struct {
	begin, path, copy, lane, insert, edit, repeat, move, outbox, clean, shape, inTime, commit *sink.Statement
}

func newStepStatements(t sink.Tables) *stepStatements {
	return &stepStatements{
		begin: &sink.Statement{Name: "begin", Sql: `BEGIN`},
		copy:  &sink.Statement{Name: "copy feedback rows", Sql: `COPY ` + t.Feedback + ` (` + record.ColumnList + `) FROM STDIN (FORMAT binary)`, Rows: true},
		path:  &sink.Statement{Name: "set search path", Sql: `SELECT pg_catalog.set_config('search_path', $1::text, true)`},
		lane: &sink.Statement{Name: "move lane", Stands: sink.OnMiss(sink.ErrTakenOver), Sql: sink.ExpectRows("1", `UPDATE `+t.Lane+` SET seq = $3 + 1, next_offset = greatest(next_offset, $4), notified = notified + $5, expired = expired + $6, dead = dead + $7,
  shipped = $8, notifications_ends = $9
WHERE lane = $1 AND epoch = $2 AND seq = $3`)},
		insert: &sink.Statement{Name: "insert campaigns", Stands: map[string]error{sink.UniqueViolation: sink.ErrStaleRow}, Sql: insertRowsSQL(t)},
		edit:   &sink.Statement{Name: "edit campaigns", Stands: sink.OnMiss(sink.ErrStaleRow), Sql: editRowsSQL(t)},
		repeat: &sink.Statement{Name: "repeat campaigns", Stands: sink.OnMiss(sink.ErrStaleRow), Sql: repeatRowsSQL(t)},
		move:   &sink.Statement{Name: "move campaigns", Stands: sink.OnMiss(sink.ErrStaleRow), Sql: moveRowsSQL(t)},
		outbox: &sink.Statement{Name: "write outbox", Sql: `INSERT INTO ` + t.Outbox + ` (lane, seq, notifications, payload) VALUES ($1, $2, $3, $4)`},
		clean:  &sink.Statement{Name: "clean outbox", Sql: `DELETE FROM ` + t.Outbox + ` WHERE lane = $1 AND seq <= $2`},
		shape:  &sink.Statement{Name: "compare the feedback table", Stands: sink.OnMiss(sink.ErrTableAltered), Sql: sink.TreeSQL + ` SELECT 1 / (` + sink.ShapeSQL + ` = $3::text)::int4`},
		inTime: &sink.Statement{Name: "look at the clock", Stands: sink.OnMiss(sink.ErrCampaignEnded), Sql: `SELECT 1 / (extract(epoch FROM clock_timestamp()) < $1::float8)::int4`},
		commit: &sink.Statement{Name: "commit", Sql: `COMMIT`, Rows: true},
	}
}

func (q *stepStatements) all() []*sink.Statement {
	return []*sink.Statement{q.begin, q.path, q.copy, q.lane, q.insert, q.edit, q.repeat, q.move, q.outbox, q.clean, q.shape, q.inTime, q.commit}
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

// sinkRow is one row of the campaign table as a step changes it.
type sinkRow struct {
	*campaign.Campaign
	owner       int32 // the lane that delivers it
	version     int64
	at          campaign.Position // of the message
	messageTime int64
	fingerprint campaign.Fingerprint
	replaces    *campaign.Version // the version that must still be there; nil: no row
	state       string
	cursor      id.ID
	contested   bool
}

// rowSets are a step's rows by how the step changes them.
type rowSets struct {
	inserts []*sinkRow // of keys without a row
	edits   rowSet     // new messages in place of known ones
	repeats rowSet     // identical messages
	moves   rowSet     // progress of campaigns that were accepted before
}

func (s *rowSet) len() int { return len(s.campaigns) }

func (s *rowSet) addKey(r *sinkRow) {
	s.campaigns, s.restaurants = append(s.campaigns, r.ID), append(s.restaurants, r.RestaurantID)
}

// addMessage adds the message that the row holds from now on, and the state of
// the row that it takes the place of.
func (s *rowSet) addMessage(r *sinkRow) {
	s.msgLanes, s.offsets, s.times = append(s.msgLanes, r.at.Lane), append(s.offsets, r.at.Offset), append(s.times, r.messageTime)
	s.oldVersions, s.oldLanes, s.oldOffsets = append(s.oldVersions, r.replaces.RowVersion), append(s.oldLanes, r.replaces.Lane), append(s.oldOffsets, r.replaces.Offset)
}

func (s *rowSet) addProgress(r *sinkRow) {
	s.lanes, s.versions = append(s.lanes, r.owner), append(s.versions, r.version)
	s.states, s.cursors = append(s.states, r.state), append(s.cursors, []byte(r.cursor))
}

func (s *rowSet) addEdit(r *sinkRow) {
	s.addKey(r)
	s.addMessage(r)
	s.addProgress(r)
	s.contents, s.owners, s.contacts = append(s.contents, r.Content), append(s.owners, r.Owner), append(s.contacts, r.OwnerContact)
	s.starts, s.ends, s.created = append(s.starts, r.Start), append(s.ends, r.End), append(s.created, r.Created)
	s.fingerprints, s.contested = append(s.fingerprints, r.fingerprint[:]), append(s.contested, r.contested)
}

func (s *rowSet) addRepeat(r *sinkRow) {
	s.addKey(r)
	s.addMessage(r)
}

func (s *rowSet) addMove(r *sinkRow) {
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

func (s *rowSet) editArgs() []any {
	return []any{s.campaigns, s.restaurants, s.lanes, s.versions, s.msgLanes, s.offsets, s.times, s.fingerprints,
		s.contents, s.owners, s.contacts, s.starts, s.ends, s.created, s.states, s.cursors, s.contested, s.oldVersions, s.oldLanes, s.oldOffsets}
}

func (s *rowSet) repeatArgs() []any {
	return []any{s.campaigns, s.restaurants, s.msgLanes, s.offsets, s.times, s.oldVersions, s.oldLanes, s.oldOffsets}
}

func (s *rowSet) moveArgs() []any {
	return []any{s.campaigns, s.restaurants, s.lanes, s.versions, s.states, s.cursors}
}

// everyRow: each row of the set must be hit, or the step is stale.
const everyRow = `cardinality($1::text[])`

func insertRowsSQL(t sink.Tables) string {
	return `COPY ` + t.Campaign + ` (` + rowColumns + `) FROM STDIN (FORMAT binary)`
}

// copyRows is new rows as a binary COPY stream, its columns those of rowColumns.
func copyRows(rows []*sinkRow) []byte {
	dst := make([]byte, 0, len(rows)*512)
	dst = append(dst, record.CopySignature...)
	for _, r := range rows {
		dst = binary.BigEndian.AppendUint16(dst, 17)
		dst = record.AppendField(record.AppendField(dst, r.ID), r.RestaurantID)
		dst = record.AppendInt8(record.AppendInt4(dst, r.owner), r.version)
		dst = record.AppendInt8(record.AppendInt8(record.AppendInt4(dst, r.at.Lane), r.at.Offset), r.messageTime)
		dst = record.AppendField(dst, r.fingerprint[:])
		dst = record.AppendField(record.AppendField(record.AppendField(dst, r.Content), r.Owner), r.OwnerContact)
		dst = record.AppendInt8(record.AppendInt8(record.AppendInt8(dst, r.Start), r.End), r.Created)
		dst = record.AppendField(record.AppendField(dst, r.state), r.cursor)
		dst = record.AppendBool(dst, r.contested)
	}
	return append(dst, record.CopyTrailer...)
}

func editRowsSQL(t sink.Tables) string {
	return sink.ExpectRows(everyRow, `UPDATE `+t.Campaign+` AS c SET lane = u.lane, version = u.version, msg_lane = u.msg_lane, msg_offset = u.msg_offset, msg_time = u.msg_time,
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
func repeatRowsSQL(t sink.Tables) string {
	return sink.ExpectRows(everyRow, `UPDATE `+t.Campaign+` AS c SET msg_lane = u.msg_lane, msg_offset = u.msg_offset, msg_time = u.msg_time
FROM unnest($1::text[], $2::text[], $3::int4[], $4::int8[], $5::int8[], $6::int8[], $7::int4[], $8::int8[])
  AS u(campaign, restaurant, msg_lane, msg_offset, msg_time, old_version, old_lane, old_offset)
WHERE c.adv_campaign_id = u.campaign AND c.restaurant_id = u.restaurant
  AND c.version = u.old_version AND c.msg_lane = u.old_lane AND c.msg_offset = u.old_offset`)
}

func moveRowsSQL(t sink.Tables) string {
	return sink.ExpectRows(everyRow, `UPDATE `+t.Campaign+` AS c SET state = u.state, cursor = u.cursor
FROM unnest($1::text[], $2::text[], $3::int4[], $4::int8[], $5::text[], $6::bytea[]) AS u(campaign, restaurant, lane, version, state, cursor)
WHERE c.adv_campaign_id = u.campaign AND c.restaurant_id = u.restaurant AND c.lane = u.lane AND c.version = u.version`)
}

// clockSkew is how far our clock, now, is ahead of Postgres', more or less by at
// most off: half of the time that asking takes.
func clockSkew(ctx context.Context, conn *pgx.Conn, now func() time.Time) (skew, off time.Duration, err error) {
	var theirs time.Time
	before := now()
	if err := conn.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&theirs); err != nil {
		return 0, 0, fmt.Errorf("read Postgres' clock: %w", err)
	}
	off = now().Sub(before) / 2
	return before.Add(off).Sub(theirs), off, nil
}

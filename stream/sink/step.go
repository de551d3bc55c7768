package sink

import (
	"context"
	"encoding/binary"
	"math"
	"slices"

	"github.com/jackc/pgx/v5"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/record"
)

// StepStatements holds the statements of a step's transaction, prepared on the lane's
// own connection.
type StepStatements struct {
	begin, path, copy, lane, insert, edit, repeat, move, late, outbox, clean, shape, inTime, commit *Statement
}

// PrepareStep prepares the statements of a step's transaction.
func PrepareStep(ctx context.Context, conn *pgx.Conn, t Tables, table *FeedbackTable) (*StepStatements, error) {
	q := newStepStatements(t, table)
	err := Prepare(ctx, conn, q.begin, q.path, q.copy, q.lane, q.insert, q.edit, q.repeat, q.move, q.late, q.outbox, q.clean, q.shape, q.inTime, q.commit)
	return q, err
}

func newStepStatements(t Tables, table *FeedbackTable) *StepStatements {
	return &StepStatements{
		begin: &Statement{Name: "begin", SQL: `BEGIN`},
		copy:  &Statement{Name: "copy feedback rows", SQL: `COPY ` + t.Feedback + ` (` + record.ColumnList + `) FROM STDIN (FORMAT binary)`, WritesRows: true},
		path:  &Statement{Name: "set search path", SQL: `SELECT pg_catalog.set_config('search_path', $1::text, true)`},
		lane: &Statement{Name: "move lane", Meanings: OnMiss(ErrTakenOver), SQL: ExpectRows("1", `UPDATE `+t.Lane+` SET seq = $3 + 1, next_offset = greatest(next_offset, $4), notified = notified + $5, expired = expired + $6, dead = dead + $7,
  shipped = $8, notifications_ends = $9, source_lsn = greatest(source_lsn, $10)
WHERE lane = $1 AND epoch = $2 AND seq = $3`)},
		insert: &Statement{Name: "insert campaigns", Meanings: map[string]error{UniqueViolation: ErrStaleRow}, SQL: insertRowsSQL(t)},
		edit:   &Statement{Name: "edit campaigns", Meanings: OnMiss(ErrStaleRow), SQL: editRowsSQL(t)},
		repeat: &Statement{Name: "repeat campaigns", Meanings: OnMiss(ErrStaleRow), SQL: repeatRowsSQL(t)},
		move:   &Statement{Name: "move campaigns", Meanings: OnMiss(ErrStaleRow), SQL: moveRowsSQL(t)},
		late:   &Statement{Name: "notify late subscribers", Meanings: OnMiss(ErrStaleRow), SQL: notifyLateSQL(t)},
		outbox: &Statement{Name: "write outbox", SQL: `INSERT INTO ` + t.Outbox + ` (lane, seq, notifications, payload) VALUES ($1, $2, $3, $4)`},
		clean:  &Statement{Name: "clean outbox", SQL: `DELETE FROM ` + t.Outbox + ` WHERE lane = $1 AND seq <= $2`},
		shape:  &Statement{Name: "compare the feedback table", Meanings: OnMiss(ErrTableAltered), SQL: table.shapeSQL(func(text string) string { return `1 / (` + text + ` = $3::text)::int4` })},
		inTime: &Statement{Name: "look at the clock", Meanings: OnMiss(ErrCampaignEnded), SQL: `SELECT 1 / (extract(epoch FROM clock_timestamp()) < $1::float8)::int4`},
		commit: &Statement{Name: "commit", SQL: `COMMIT`, WritesRows: true},
	}
}

// AddFeedbackRows adds the beginning of a step's transaction to the pipeline, and
// the step's feedback rows as a binary COPY in CopyData messages; frames is empty
// where no row goes by COPY.
func (q *StepStatements) AddFeedbackRows(p *Pipeline, table *FeedbackTable, frames []byte, rows int) {
	p.AddCommand(q.begin, "BEGIN")
	if table.RunsUserCode {
		p.Add(q.path, table.SearchPath())
	}
	if len(frames) > 0 {
		p.Copy(q.copy, frames, rows)
	}
}

// StepChanges holds all changes of a step's transaction beside the feedback rows.
type StepChanges struct {
	Lane       int32
	Epoch      int64
	Seq        int64 // of the step; the lane row must hold the one before
	NextOffset int64 // 0: does not move

	Notifications, Expired, Refused int64 // added to the lane's counters

	Shipped int64   // K
	Ends    []int64 // of the notifications topic, per partition, as the broker has acknowledged them

	Campaigns *CampaignRows
	Late      []LateRow
	Payload   []byte // of the outbox row

	SourceLSN id.LSN // changes of the subscriptions up to here are handled for late subscribers; 0: does not move

	// Notifies reports whether the step writes feedback rows. Postgres must then
	// reach the commit before the Unix second CommitBefore, by its own clock.
	Notifies     bool
	CommitBefore float64
}

// AddChanges adds all other changes of a step and the commit to the pipeline. A
// compare-and-swap that misses fails the transaction; so does the clock, once a
// campaign of the step has ended. The clock is Postgres' own, since the server runs
// the statements whenever it comes to them, even if the daemon no longer waits.
// The counts that it returns are there once the pipeline's answers are received.
func (q *StepStatements) AddChanges(p *Pipeline, table *FeedbackTable, c *StepChanges) *StepCounts {
	counts := &StepCounts{}
	if table.RunsUserCode {
		p.Add(q.path, "pg_catalog")
	}
	p.Add(q.lane, c.Lane, c.Epoch, c.Seq-1, c.NextOffset, c.Notifications, c.Expired, c.Refused, c.Shipped, c.Ends, int64(c.SourceLSN))
	q.addCampaignRows(p, c.Campaigns, counts)
	if len(c.Late) > 0 {
		for _, r := range c.Late {
			counts.late.campaigns, counts.late.restaurants = append(counts.late.campaigns, r.Key.Campaign), append(counts.late.restaurants, r.Key.Restaurant)
		}
		p.AddQuery(q.late, counts.late.resultColumns(), lateArgs(c.Lane, c.Late)...)
	}
	p.Add(q.outbox, c.Lane, c.Seq, c.Notifications, c.Payload)
	p.Add(q.clean, c.Lane, c.Shipped)
	if c.Notifies {
		p.Add(q.shape, table.OID, table.Name, table.Shape)
		p.Add(q.inTime, c.CommitBefore)
	}
	if table.RunsUserCode { // deferred triggers run at the commit
		p.Add(q.path, table.SearchPath())
	}
	p.AddCommand(q.commit, "COMMIT")
	return counts
}

func (q *StepStatements) addCampaignRows(p *Pipeline, rows *CampaignRows, counts *StepCounts) {
	if len(rows.inserts) > 0 {
		p.CopySmall(q.insert, copyRows(rows.inserts))
	}
	if rows.edits.len() > 0 {
		counts.edits.campaigns, counts.edits.restaurants = rows.edits.campaigns, rows.edits.restaurants
		p.AddQuery(q.edit, counts.edits.resultColumns(), rows.edits.editArgs()...)
	}
	if rows.repeats.len() > 0 {
		p.Add(q.repeat, rows.repeats.repeatArgs()...)
	}
	if rows.moves.len() > 0 {
		counts.moves.campaigns, counts.moves.restaurants = rows.moves.campaigns, rows.moves.restaurants
		p.AddQuery(q.move, counts.moves.resultColumns(), rows.moves.moveArgs()...)
	}
}

// rowSet holds campaign rows column by column, as unnest expects them.
type rowSet struct {
	campaigns, restaurants     []string
	contents, owners, contacts []string
	starts, ends, created      []int64
	lanes, msgLanes            []int32
	versions, offsets, times   []int64
	fingerprints, cursors      [][]byte
	states                     []string
	contested                  []bool
	audiences                  []*int64
	notified, already          []int64
	cutOff                     []bool
	refusals                   []string
	// The version that the row must still hold.
	oldVersions, oldOffsets []int64
	oldLanes                []int32
}

// The states of a campaign row.
const (
	StatePending   = "pending"   // scheduled, or live with a cursor
	StateFinished  = "finished"  // the cursor has passed every client, or the campaign has ended
	StateExpired   = "expired"   // its end had passed when it was received
	StateRejoin    = "rejoin"    // finished, and waits to be joined again for late subscribers
	StateParked    = "parked"    // waits for an operator: its audience exceeds limits.max_audience
	StatePaused    = "paused"    // an operator stopped it for a while
	StateCancelled = "cancelled" // an operator stopped it for good
)

// stateList is the list of the states for SQL.
const stateList = `'` + StatePending + `', '` + StateFinished + `', '` + StateExpired + `', '` + StateRejoin + `', '` + StateParked + `', '` + StatePaused + `', '` + StateCancelled + `'`

// CampaignRow is a row of the campaign table as a step writes it.
type CampaignRow struct {
	Campaign  *campaign.Campaign
	Accepted  campaign.Version // the message that the row holds, its row version and its owner
	Contested bool             // a client may have been notified of an earlier version
	State     string
	Cursor    id.ID             // last client that the fan-out has passed
	Replaces  *campaign.Version // the version that an edited or repeated row must hold before

	Audience *int64 // subscribers of the restaurant; nil: not counted
	Notified int64  // clients whom the step notifies
	Already  int64  // clients whom the step leaves out because they had the campaign from elsewhere
	CutOff   bool   // the campaign's end has finished it, before everybody was looked at
	Refusal  string // why the feedback table takes no row of it; "": it does
}

// finished returns when a new row was finished, in microseconds since 2000, as COPY
// writes a timestamp; nil: when it was accepted, or not yet.
func (r *CampaignRow) finished() *int64 {
	const year2000 = 946_684_800
	if !r.CutOff {
		return nil
	}
	return new((r.Campaign.End - year2000) * 1e6)
}

// countedAudience returns the audience that a new row holds. Most campaigns are
// finished by their first step and have met everybody: readers add their counts up.
func (r *CampaignRow) countedAudience() *int64 {
	if r.State == StateFinished && !r.CutOff && r.Audience != nil && *r.Audience == r.Notified+r.Already {
		return nil
	}
	return r.Audience
}

// CampaignRows are a step's changes of the campaign table. Rows must be added in
// the order of their keys, so that two lanes that lock the same campaigns lock them
// in the same order.
type CampaignRows struct {
	inserts []CampaignRow
	edits   rowSet
	repeats rowSet
	moves   rowSet
}

// Insert adds a campaign of which the table has no row.
func (c *CampaignRows) Insert(r CampaignRow) { c.inserts = append(c.inserts, r) }

// Edit adds a message that takes the place of the one that the row holds.
func (c *CampaignRows) Edit(r CampaignRow) { c.edits.addEdit(&r) }

// Repeat adds an identical message: only position and time change.
func (c *CampaignRows) Repeat(r CampaignRow) { c.repeats.addRepeat(&r) }

// Move adds the progress of a campaign that was accepted before.
func (c *CampaignRows) Move(r CampaignRow) { c.moves.addMove(&r) }

func (s *rowSet) len() int { return len(s.campaigns) }

func (s *rowSet) addKey(r *CampaignRow) {
	s.campaigns, s.restaurants = append(s.campaigns, r.Campaign.ID), append(s.restaurants, r.Campaign.RestaurantID)
}

// addMessage adds the message that the row holds from now on, and the version that it
// replaces.
func (s *rowSet) addMessage(r *CampaignRow) {
	s.msgLanes, s.offsets, s.times = append(s.msgLanes, r.Accepted.Lane), append(s.offsets, r.Accepted.Offset), append(s.times, r.Accepted.Time)
	s.oldVersions, s.oldLanes, s.oldOffsets = append(s.oldVersions, r.Replaces.RowVersion), append(s.oldLanes, r.Replaces.Lane), append(s.oldOffsets, r.Replaces.Offset)
}

func (s *rowSet) addProgress(r *CampaignRow) {
	s.lanes, s.versions = append(s.lanes, r.Accepted.Owner), append(s.versions, r.Accepted.RowVersion)
	s.states, s.cursors = append(s.states, r.State), append(s.cursors, []byte(r.Cursor))
	s.audiences, s.notified, s.already = append(s.audiences, r.Audience), append(s.notified, r.Notified), append(s.already, r.Already)
	s.cutOff, s.refusals = append(s.cutOff, r.CutOff), append(s.refusals, r.Refusal)
}

func (s *rowSet) addEdit(r *CampaignRow) {
	s.addKey(r)
	s.addMessage(r)
	s.addProgress(r)
	c := r.Campaign
	s.contents, s.owners, s.contacts = append(s.contents, c.Content), append(s.owners, c.Owner), append(s.contacts, c.OwnerContact)
	s.starts, s.ends, s.created = append(s.starts, c.Start), append(s.ends, c.End), append(s.created, c.Created)
	s.fingerprints, s.contested = append(s.fingerprints, slices.Clone(r.Accepted.Fingerprint[:])), append(s.contested, r.Contested)
}

func (s *rowSet) addRepeat(r *CampaignRow) {
	s.addKey(r)
	s.addMessage(r)
}

func (s *rowSet) addMove(r *CampaignRow) {
	s.addKey(r)
	s.addProgress(r)
}

// rowColumns and rowArrays name the first twenty parameters.
const (
	rowColumns = `adv_campaign_id, restaurant_id, lane, version, msg_lane, msg_offset, msg_time, fingerprint,
  adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
  adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, state, cursor, contested, audience, notified, already`
	rowArrays = `$1::text[], $2::text[], $3::int4[], $4::int8[], $5::int4[], $6::int8[], $7::int8[], $8::bytea[],
  $9::text[], $10::text[], $11::text[], $12::int8[], $13::int8[], $14::int8[], $15::text[], $16::bytea[], $17::boolean[], $18::int8[], $19::int8[], $20::int8[]`
)

func (s *rowSet) editArgs() []any {
	return []any{s.campaigns, s.restaurants, s.lanes, s.versions, s.msgLanes, s.offsets, s.times, s.fingerprints,
		s.contents, s.owners, s.contacts, s.starts, s.ends, s.created, s.states, s.cursors, s.contested,
		s.audiences, s.notified, s.already, s.oldVersions, s.oldLanes, s.oldOffsets, s.cutOff, s.refusals}
}

func (s *rowSet) repeatArgs() []any {
	return []any{s.campaigns, s.restaurants, s.msgLanes, s.offsets, s.times, s.oldVersions, s.oldLanes, s.oldOffsets}
}

func (s *rowSet) moveArgs() []any {
	return []any{s.campaigns, s.restaurants, s.lanes, s.versions, s.states, s.cursors, s.audiences, s.notified, s.already, s.cutOff, s.refusals}
}

// everyRow is the expected count of a statement that must change each row of its
// set; otherwise the step is stale.
const everyRow = `cardinality($1::text[])`

func insertRowsSQL(t Tables) string {
	return `COPY ` + t.Campaign + ` (` + rowColumns + `, finished_at, refusal) FROM STDIN (FORMAT binary)`
}

// copyRows encodes new rows as a binary COPY stream, its columns those of rowColumns
// and two more.
func copyRows(rows []CampaignRow) []byte {
	dst := make([]byte, 0, len(rows)*512)
	dst = append(dst, record.CopySignature...)
	for i := range rows {
		r := &rows[i]
		c, v := r.Campaign, &r.Accepted
		dst = binary.BigEndian.AppendUint16(dst, 22)
		dst = record.AppendField(record.AppendField(dst, c.ID), c.RestaurantID)
		dst = record.AppendInt8(record.AppendInt4(dst, v.Owner), v.RowVersion)
		dst = record.AppendInt8(record.AppendInt8(record.AppendInt4(dst, v.Lane), v.Offset), v.Time)
		dst = record.AppendField(dst, v.Fingerprint[:])
		dst = record.AppendField(record.AppendField(record.AppendField(dst, c.Content), c.Owner), c.OwnerContact)
		dst = record.AppendInt8(record.AppendInt8(record.AppendInt8(dst, c.Start), c.End), c.Created)
		dst = record.AppendField(record.AppendField(dst, r.State), r.Cursor)
		dst = record.AppendBool(dst, r.Contested)
		dst = appendNullableInt8(dst, r.countedAudience())
		dst = record.AppendInt8(record.AppendInt8(dst, r.Notified), r.Already)
		dst = record.AppendField(appendNullableInt8(dst, r.finished()), r.Refusal)
	}
	return append(dst, record.CopyTrailer...)
}

// appendNullableInt8 appends an int8 field of a COPY; nil is NULL.
func appendNullableInt8(dst []byte, v *int64) []byte {
	if v == nil {
		return binary.BigEndian.AppendUint32(dst, math.MaxUint32)
	}
	return record.AppendInt8(dst, *v)
}

// finishedAt is the time of the step that finishes row c. A row that its end has cut
// off is finished at its end or later, and no other row is.
const finishedAt = `CASE WHEN u.state <> 'finished' THEN NULL
    WHEN u.cut_off THEN greatest(now(), to_timestamp(c.adv_campaign_datetime_end))
    ELSE least(now(), to_timestamp(c.adv_campaign_datetime_end) - '1 microsecond'::interval) END`

// editRowsSQL begins a new fan-out, whose counts begin anew, except the number of
// clients who have the campaign. A cancel only ends the fan-out before.
func editRowsSQL(t Tables) string {
	return expectCounts(`UPDATE ` + t.Campaign + ` AS c SET lane = u.lane, version = u.version, msg_lane = u.msg_lane, msg_offset = u.msg_offset, msg_time = u.msg_time,
  fingerprint = u.fingerprint, adv_campaign_content = u.adv_campaign_content, adv_campaign_owner = u.adv_campaign_owner,
  adv_campaign_owner_contact = u.adv_campaign_owner_contact, adv_campaign_datetime_start = u.adv_campaign_datetime_start,
  adv_campaign_datetime_end = u.adv_campaign_datetime_end, datetime_created = u.datetime_created, state = u.state, cursor = u.cursor,
  contested = u.contested, accepted_at = now(), notified = c.notified + u.notified,
  audience = CASE WHEN u.state = 'expired' THEN c.audience ELSE ` + metAudience(`u.audience`, `u.notified`, `u.already`) + ` END,
  already = CASE WHEN u.state = 'expired' THEN c.already ELSE u.already END,
  started_at = CASE WHEN u.state <> 'expired' THEN NULL WHEN c.cursor <> '' THEN coalesce(c.started_at, c.accepted_at) ELSE c.started_at END,
  finished_at = CASE WHEN u.cut_off THEN greatest(now(), to_timestamp(u.adv_campaign_datetime_end)) END, refusal = u.refusal
FROM unnest(` + rowArrays + `, $21::int8[], $22::int4[], $23::int8[], $24::boolean[], $25::text[]) WITH ORDINALITY AS u(` + rowColumns + `, old_version, old_lane, old_offset, cut_off, refusal, n)
WHERE c.adv_campaign_id = u.adv_campaign_id AND c.restaurant_id = u.restaurant_id
  AND c.version = u.old_version AND c.msg_lane = u.old_lane AND c.msg_offset = u.old_offset`)
}

// repeatRowsSQL keeps the version: the lane that delivers the campaign goes on with
// its fan-out.
func repeatRowsSQL(t Tables) string {
	return ExpectRows(everyRow, `UPDATE `+t.Campaign+` AS c SET msg_lane = u.msg_lane, msg_offset = u.msg_offset, msg_time = u.msg_time
FROM unnest($1::text[], $2::text[], $3::int4[], $4::int8[], $5::int8[], $6::int8[], $7::int4[], $8::int8[])
  AS u(campaign, restaurant, msg_lane, msg_offset, msg_time, old_version, old_lane, old_offset)
WHERE c.adv_campaign_id = u.campaign AND c.restaurant_id = u.restaurant
  AND c.version = u.old_version AND c.msg_lane = u.old_lane AND c.msg_offset = u.old_offset`)
}

// metAudience is the audience of row c with the expression counted for it: at least the
// clients who have the campaign or had it before, since some of these may have
// unsubscribed, or subscribed later. NULL stays.
func metAudience(counted, notified, already string) string {
	return `CASE WHEN ` + counted + ` IS NOT NULL THEN greatest(` + counted + `, c.notified + ` + notified + ` + ` + already + `) END`
}

// moveRowsSQL adds to the counts. Of a campaign that its end has cut off, a step behind the
// one that finished it may move the row once more: the log has its audience already. A row that was inserted in the middle of its fan-out
// was started when it was accepted.
func moveRowsSQL(t Tables) string {
	return expectCounts(`UPDATE ` + t.Campaign + ` AS c SET state = u.state, cursor = u.cursor, audience = ` + metAudience(`CASE WHEN c.state <> 'finished' THEN coalesce(u.audience, c.audience) ELSE c.audience END`, `u.notified`, `c.already + u.already`) + `,
  notified = c.notified + u.notified, already = c.already + u.already,
  started_at = coalesce(c.started_at, CASE WHEN c.cursor <> '' THEN c.accepted_at WHEN u.cursor <> '' THEN now() END),
  finished_at = ` + finishedAt + `, refusal = u.refusal
FROM unnest($1::text[], $2::text[], $3::int4[], $4::int8[], $5::text[], $6::bytea[], $7::int8[], $8::int8[], $9::int8[], $10::boolean[], $11::text[]) WITH ORDINALITY
  AS u(campaign, restaurant, lane, version, state, cursor, audience, notified, already, cut_off, refusal, n)
WHERE c.adv_campaign_id = u.campaign AND c.restaurant_id = u.restaurant AND c.lane = u.lane AND c.version = u.version`)
}

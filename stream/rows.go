package stream

import "encoding/binary"

// rowSet holds campaign rows column by column, as unnest takes them.
type rowSet struct {
	campaigns, restaurants     []string
	contents, owners, contacts []string
	starts, ends, created      []int64
	lanes                      []int32
	offsets, times             []int64
	fingerprints, cursors      [][]byte
	states                     []string
	replacesLanes              []int32
	replacesOffsets            []int64
}

// rowSets splits a step's rows by what happens to them.
type rowSets struct {
	inserts []*row // keys that nothing is known of
	edits   rowSet // new messages in place of known ones
	repeats rowSet // identical messages
	moves   rowSet // progress of campaigns that were accepted before
}

func newRowSets(st *step) *rowSets {
	sets := &rowSets{}
	for _, r := range st.sortedRows() {
		switch {
		case r.repeats:
			sets.repeats.add(r)
		case !r.accept:
			sets.moves.add(r)
		case r.replaces == nil:
			sets.inserts = append(sets.inserts, r)
		default:
			sets.edits.add(r)
		}
	}
	return sets
}

func (s *rowSet) len() int64 { return int64(len(s.campaigns)) }

func (s *rowSet) add(r *row) {
	s.campaigns, s.restaurants = append(s.campaigns, r.ID), append(s.restaurants, r.RestaurantID)
	s.lanes, s.offsets = append(s.lanes, r.version.lane), append(s.offsets, r.version.offset)
	s.states, s.cursors = append(s.states, r.state), append(s.cursors, []byte(r.cursor))
	if r.accept {
		s.addContent(r)
	}
	if r.accept || r.repeats {
		s.times = append(s.times, r.msgTime)
	}
	if r.replaces != nil {
		s.replacesLanes = append(s.replacesLanes, r.replaces.version.lane)
		s.replacesOffsets = append(s.replacesOffsets, r.replaces.version.offset)
	}
}

func (s *rowSet) addContent(r *row) {
	s.contents, s.owners, s.contacts = append(s.contents, r.Content), append(s.owners, r.Owner), append(s.contacts, r.OwnerContact)
	s.starts, s.ends, s.created = append(s.starts, r.Start), append(s.ends, r.End), append(s.created, r.Created)
	s.fingerprints = append(s.fingerprints, r.fingerprint[:])
}

// rowColumns and rowArrays belong to the first fourteen parameters.
const (
	rowColumns = `adv_campaign_id, restaurant_id, lane, msg_offset, msg_time, fingerprint,
  adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
  adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, state, cursor`
	rowArrays = `$1::text[], $2::text[], $3::int4[], $4::int8[], $5::int8[], $6::bytea[],
  $7::text[], $8::text[], $9::text[], $10::int8[], $11::int8[], $12::int8[], $13::text[], $14::bytea[]`
)

func (s *rowSet) editArgs() []any {
	return []any{s.campaigns, s.restaurants, s.lanes, s.offsets, s.times, s.fingerprints,
		s.contents, s.owners, s.contacts, s.starts, s.ends, s.created, s.states, s.cursors, s.replacesLanes, s.replacesOffsets}
}

func (s *rowSet) repeatArgs() []any {
	return []any{s.campaigns, s.restaurants, s.lanes, s.offsets, s.times, s.replacesLanes, s.replacesOffsets}
}

func (s *rowSet) moveArgs() []any {
	return []any{s.campaigns, s.restaurants, s.lanes, s.offsets, s.states, s.cursors}
}

// everyRow: each row of the set must be hit, or the step is stale.
const everyRow = `cardinality($1::text[])`

func insertRowsSQL(t tables) string {
	return `COPY ` + t.campaign + ` (` + rowColumns + `) FROM STDIN (FORMAT binary)`
}

// copyRows is new rows as a binary COPY stream, its columns those of rowColumns.
func copyRows(rows []*row) []byte {
	dst := make([]byte, 0, len(rows)*512)
	dst = append(dst, copySignature...)
	for _, r := range rows {
		dst = binary.BigEndian.AppendUint16(dst, 14)
		dst = appendCopyField(appendCopyField(dst, r.ID), r.RestaurantID)
		dst = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(dst, 4), uint32(r.version.lane))
		dst = appendCopyInt8(appendCopyInt8(dst, r.version.offset), r.msgTime)
		dst = appendCopyField(dst, r.fingerprint[:])
		dst = appendCopyField(appendCopyField(appendCopyField(dst, r.Content), r.Owner), r.OwnerContact)
		dst = appendCopyInt8(appendCopyInt8(appendCopyInt8(dst, r.Start), r.End), r.Created)
		dst = appendCopyField(appendCopyField(dst, r.state), r.cursor)
	}
	return append(dst, copyTrailer...)
}

func editRowsSQL(t tables) string {
	return expecting(everyRow, `UPDATE `+t.campaign+` AS c SET lane = u.lane, msg_offset = u.msg_offset, msg_time = u.msg_time, fingerprint = u.fingerprint,
  adv_campaign_content = u.adv_campaign_content, adv_campaign_owner = u.adv_campaign_owner, adv_campaign_owner_contact = u.adv_campaign_owner_contact,
  adv_campaign_datetime_start = u.adv_campaign_datetime_start, adv_campaign_datetime_end = u.adv_campaign_datetime_end,
  datetime_created = u.datetime_created, state = u.state, cursor = u.cursor, accepted_at = now()
FROM unnest(`+rowArrays+`, $15::int4[], $16::int8[]) AS u(`+rowColumns+`, old_lane, old_offset)
WHERE c.adv_campaign_id = u.adv_campaign_id AND c.restaurant_id = u.restaurant_id AND c.lane = u.old_lane AND c.msg_offset = u.old_offset`)
}

func repeatRowsSQL(t tables) string {
	return expecting(everyRow, `UPDATE `+t.campaign+` AS c SET lane = u.lane, msg_offset = u.msg_offset, msg_time = u.msg_time
FROM unnest($1::text[], $2::text[], $3::int4[], $4::int8[], $5::int8[], $6::int4[], $7::int8[]) AS u(campaign, restaurant, lane, msg_offset, msg_time, old_lane, old_offset)
WHERE c.adv_campaign_id = u.campaign AND c.restaurant_id = u.restaurant AND c.lane = u.old_lane AND c.msg_offset = u.old_offset`)
}

func moveRowsSQL(t tables) string {
	return expecting(everyRow, `UPDATE `+t.campaign+` AS c SET state = u.state, cursor = u.cursor
FROM unnest($1::text[], $2::text[], $3::int4[], $4::int8[], $5::text[], $6::bytea[]) AS u(campaign, restaurant, lane, msg_offset, state, cursor)
WHERE c.adv_campaign_id = u.campaign AND c.restaurant_id = u.restaurant AND c.lane = u.lane AND c.msg_offset = u.msg_offset`)
}

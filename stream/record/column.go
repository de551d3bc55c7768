// Package record holds the bytes that one step writes: the notifications of Kafka, the
// feedback rows that COPY sends, the payload of the outbox row, and dead letters. It is
// pure: no Kafka, no Postgres, no Pebble.
package record

import (
	"encoding/binary"
	"math"
	"slices"
	"strings"

	"dinnerbell/state/id"
)

// The columns of the feedback table that a notification fills, in the order of COPY.
// The client comes last, so that the columns before it are constant per campaign.
const (
	RestaurantColumn = iota
	CampaignColumn
	ContentColumn
	OwnerColumn
	ContactColumn
	StartColumn
	EndColumn
	CreatedColumn
	TriggerColumn
	ClientColumn
	Columns
)

// ColumnNames are the names of the ten columns.
var ColumnNames = [Columns]string{
	"restaurant_id", "adv_campaign_id", "adv_campaign_content", "adv_campaign_owner", "adv_campaign_owner_contact",
	"adv_campaign_datetime_start", "adv_campaign_datetime_end", "datetime_created", "trigger_datetime_created", "client_id",
}

// ColumnList is the column list of COPY and INSERT.
var ColumnList = strings.Join(ColumnNames[:], ", ")

// IsNumberColumn reports whether a column holds a time in Unix seconds.
func IsNumberColumn(column int) bool { return column >= StartColumn && column <= TriggerColumn }

// IsIDColumn reports whether a column holds an id.
func IsIDColumn(column int) bool {
	return column == RestaurantColumn || column == CampaignColumn || column == ClientColumn
}

// Kind is the form in which COPY sends a column's values.
type Kind uint8

// The kinds: of texts up to KindUUID, of numbers (Unix seconds) the others.
const (
	KindNone Kind = iota
	KindText
	KindChar // blank-padded: it carries only values that fill it
	KindUUID
	KindInt4
	KindInt8
	KindNumeric
	KindFloat8
	KindTimestamp // of UTC
	KindTimestampTZ
)

// isNumeric reports whether the kind is one of numbers.
func (k Kind) isNumeric() bool { return k >= KindInt4 }

// CanCarry reports whether a column of this kind can carry the values of the column'th
// column.
func (k Kind) CanCarry(column int) bool {
	switch {
	case k == KindNone, k.isNumeric() != IsNumberColumn(column):
		return false
	case k == KindUUID:
		return IsIDColumn(column)
	case k == KindChar: // it would pad any other text
		return IsIDColumn(column)
	}
	return true
}

// ColumnKinds are the kinds of a feedback table's ten columns. They differ between
// deployments.
type ColumnKinds [Columns]Kind

// ContractKinds are the kinds of the contract's table.
var ContractKinds = ColumnKinds{
	RestaurantColumn: KindText, CampaignColumn: KindText, ContentColumn: KindText, OwnerColumn: KindText, ContactColumn: KindText,
	StartColumn: KindInt8, EndColumn: KindInt8, CreatedColumn: KindInt8, TriggerColumn: KindInt4, ClientColumn: KindText,
}

// appendText appends a text value as a field of a binary COPY tuple. The column
// can carry the value.
func (k Kind) appendText(dst []byte, text string) []byte {
	if k == KindUUID {
		if id, err := id.Pack(text); err == nil {
			mark := len(dst)
			if out, ok := id.AppendUUID(append(dst, 0, 0, 0, 16)); ok {
				return out
			}
			dst = dst[:mark]
		}
	}
	return AppendField(dst, text)
}

// postgresEpoch is 2000-01-01T00:00:00Z, from which timestamps count microseconds.
const postgresEpoch = 946684800

// appendNumber appends Unix seconds as a field of a binary COPY tuple. The column
// can carry the value.
func (k Kind) appendNumber(dst []byte, n int64) []byte {
	switch k {
	case KindInt4:
		return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(dst, 4), uint32(int32(n)))
	case KindTimestamp, KindTimestampTZ:
		return AppendInt8(dst, (n-postgresEpoch)*1_000_000)
	case KindFloat8:
		return AppendInt8(dst, int64(math.Float64bits(float64(n))))
	case KindNumeric:
		return appendCopyNumeric(dst, n)
	case KindNone, KindText, KindChar, KindUUID, KindInt8:
	}
	return AppendInt8(dst, n)
}

// appendCopyNumeric appends a whole number as numeric_recv reads it: digits of base
// 10000, the weight of the first digit, the sign, the scale.
func appendCopyNumeric(dst []byte, n int64) []byte {
	var digits []uint16 // least first
	sign, u := uint16(0), uint64(n)
	if n < 0 {
		sign, u = 0x4000, uint64(-n)
	}
	for ; u > 0; u /= 10000 {
		digits = append(digits, uint16(u%10000))
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(8+2*len(digits)))
	for _, v := range []uint16{uint16(len(digits)), uint16(max(len(digits), 1) - 1), sign, 0} {
		dst = binary.BigEndian.AppendUint16(dst, v)
	}
	for _, digit := range slices.Backward(digits) {
		dst = binary.BigEndian.AppendUint16(dst, digit)
	}
	return dst
}

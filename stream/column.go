package stream

import (
	"encoding/binary"
	"math"
	"slices"
	"strings"

	"dinnerbell/state/id"
)

// The columns of the feedback table that a notification fills, in the order of
// COPY. The client comes last, so that all before it is constant per campaign.
const (
	colRestaurant = iota
	colCampaign
	colContent
	colOwner
	colContact
	colStart
	colEnd
	colCreated
	colTrigger
	colClient
	feedbackColumns
)

var feedbackNames = [feedbackColumns]string{
	"restaurant_id", "adv_campaign_id", "adv_campaign_content", "adv_campaign_owner", "adv_campaign_owner_contact",
	"adv_campaign_datetime_start", "adv_campaign_datetime_end", "datetime_created", "trigger_datetime_created", "client_id",
}

// copyColumns is the column list of COPY and INSERT.
var copyColumns = strings.Join(feedbackNames[:], ", ")

func isNumber(column int) bool { return column >= colStart && column <= colTrigger }
func isID(column int) bool {
	return column == colRestaurant || column == colCampaign || column == colClient
}

// kind is how a column's values travel.
type kind uint8

// Kinds. Texts: text to uuid; numbers, Unix seconds, the others.
const (
	kindNone kind = iota
	kindText
	kindChar // blank-padded: it carries only what fills it
	kindUUID
	kindInt4
	kindInt8
	kindNumeric
	kindFloat8
	kindTimestamp // of UTC
	kindTimestampTZ
)

func (k kind) number() bool { return k >= kindInt4 }

// fits tells whether a column of this kind can carry the values of the column'th
// of the ten.
func (k kind) fits(column int) bool {
	switch {
	case k == kindNone, k.number() != isNumber(column):
		return false
	case k == kindUUID:
		return isID(column)
	case k == kindChar: // it would pad anything else
		return isID(column)
	}
	return true
}

// columnKinds are the kinds of a feedback table's ten columns. They differ between
// deployments.
type columnKinds [feedbackColumns]kind

// contractKinds are those of the table of the contract.
var contractKinds = columnKinds{
	colRestaurant: kindText, colCampaign: kindText, colContent: kindText, colOwner: kindText, colContact: kindText,
	colStart: kindInt8, colEnd: kindInt8, colCreated: kindInt8, colTrigger: kindInt4, colClient: kindText,
}

// appendText appends a text value as a field of a binary COPY tuple. The column
// can carry the value.
func (k kind) appendText(dst []byte, text string) []byte {
	if k == kindUUID {
		if id, err := id.Pack(text); err == nil {
			mark := len(dst)
			if out, ok := id.AppendUUID(append(dst, 0, 0, 0, 16)); ok {
				return out
			}
			dst = dst[:mark]
		}
	}
	return appendCopyField(dst, text)
}

// postgresEpoch is 2000-01-01T00:00:00Z, from which timestamps count microseconds.
const postgresEpoch = 946684800

// appendNumber appends Unix seconds as a field of a binary COPY tuple. The column
// can carry the value.
func (k kind) appendNumber(dst []byte, n int64) []byte {
	switch k {
	case kindInt4:
		return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(dst, 4), uint32(int32(n)))
	case kindTimestamp, kindTimestampTZ:
		return appendCopyInt8(dst, (n-postgresEpoch)*1_000_000)
	case kindFloat8:
		return appendCopyInt8(dst, int64(math.Float64bits(float64(n))))
	case kindNumeric:
		return appendCopyNumeric(dst, n)
	case kindNone, kindText, kindChar, kindUUID, kindInt8:
	}
	return appendCopyInt8(dst, n)
}

// appendCopyNumeric appends a whole number as numeric_recv reads it: digits of
// base 10000, the weight of the first, sign, scale.
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

package stream

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"dinnerbell/state"
)

// feedbackTable is the user's table as one look at the catalogue found it. Its
// column types differ between deployments; every statement on it is typed by
// them, and a value that a type cannot carry unchanged is refused before it is
// sent.
type feedbackTable struct {
	name    string // quoted
	oid     uint32
	columns [feedbackColumns]column // in the order of COPY

	hasFeedback bool     // the column of the client's answer
	triggers    []string // BEFORE INSERT FOR EACH ROW, enabled: they can change and drop rows
	ownCode     bool     // triggers, constraints, defaults or indexes may call functions of the user's with each row
	byteLimits  bool     // the n of varchar(n) counts bytes: SQL_ASCII
	shape       string   // what a step's transaction compares, see const shape
	encoding    string   // of the database
}

// The columns that a notification fills, in the order of COPY. The client comes
// last, so that all before it is constant per campaign.
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

// column is one of the ten, with the base type of a domain.
type column struct {
	name  string
	kind  kind
	typ   string // as SQL spells it, a domain by its own name
	limit int    // n of varchar(n), char(n); digits before the point of numeric(p, s); 0: none
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

// kindsByOID are the base types that can carry a value.
// https://github.com/postgres/postgres/blob/master/src/include/catalog/pg_type.dat
var kindsByOID = map[uint32]kind{
	25: kindText, 1043: kindText, 1042: kindChar, 2950: kindUUID,
	23: kindInt4, 20: kindInt8, 1700: kindNumeric, 701: kindFloat8, 1114: kindTimestamp, 1184: kindTimestampTZ,
}

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

// contractTable is the table of the contract, for what is rendered without a sink.
func contractTable() *feedbackTable {
	t := &feedbackTable{hasFeedback: true, encoding: "UTF8"}
	for i, name := range feedbackNames {
		t.columns[i] = column{name: name, kind: kindText, typ: "text"}
		if isNumber(i) {
			t.columns[i].kind, t.columns[i].typ = kindInt8, "bigint"
		}
	}
	t.columns[colTrigger].kind, t.columns[colTrigger].typ = kindInt4, "integer"
	return t
}

// param makes an SQL expression of the column's type out of a text or int8 parameter.
func (c *column) param(p string) string {
	switch c.kind {
	case kindUUID:
		return p + "::text::uuid"
	case kindChar:
		return p + "::text::bpchar"
	case kindText:
		return p + "::text"
	case kindTimestamp:
		return "pg_catalog.timezone('UTC', pg_catalog.to_timestamp(" + p + "::int8::float8))"
	case kindTimestampTZ:
		return "pg_catalog.to_timestamp(" + p + "::int8::float8)"
	case kindNone, kindInt4, kindInt8, kindNumeric, kindFloat8:
	}
	return p + "::int8"
}

// read makes a text or int8 expression out of the column of the table that alias
// names.
func (c *column) read(alias string) string {
	ref := alias + "." + c.name
	switch c.kind {
	case kindTimestamp, kindTimestampTZ: // extract takes the one for UTC, and knows the other's zone
		return "extract(epoch FROM " + ref + ")::int8"
	case kindInt4, kindInt8, kindNumeric, kindFloat8:
		return ref + "::int8"
	case kindNone, kindText, kindChar, kindUUID:
	}
	return ref + "::text"
}

// appendText appends a text value as a field of a binary COPY tuple. The value
// has passed refusesText.
func (c *column) appendText(dst []byte, text string) []byte {
	if c.kind == kindUUID {
		if id, err := state.PackID(text); err == nil {
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

// appendNumber appends Unix seconds as a field of a binary COPY tuple. The value
// has passed refusesNumber.
func (c *column) appendNumber(dst []byte, n int64) []byte {
	switch c.kind {
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

// refusesCampaign says why the table cannot carry a campaign unchanged; "" if
// nothing is seen against it.
func (t *feedbackTable) refusesCampaign(c *Campaign) string {
	for i, text := range [...]string{colRestaurant: c.RestaurantID, colCampaign: c.ID, colContent: c.Content, colOwner: c.Owner, colContact: c.OwnerContact} {
		if why := t.refusesText(i, text); why != "" {
			return why
		}
	}
	for i, n := range [...]int64{colStart: c.Start, colEnd: c.End, colCreated: c.Created} {
		if i < colStart {
			continue
		}
		if why := t.columns[i].refusesNumber(n); why != "" {
			return t.refusal(i, why)
		}
	}
	return ""
}

// refusesClient says the same of a client's id.
func (t *feedbackTable) refusesClient(id state.ID) string {
	c := &t.columns[colClient]
	if c.kind == kindText && (c.limit == 0 || id.TextLen() <= c.limit) {
		return ""
	}
	if c.kind == kindUUID && id.IsUUID() {
		return ""
	}
	if t.refusesText(colClient, id.Text()) == "" {
		return ""
	}
	why := fmt.Sprintf("has more than %d characters", c.limit) // without the id: clients are gathered by the reason
	switch c.kind {
	case kindUUID:
		why = "is not a lower-case UUID, and would be given back in another form or not be taken"
	case kindChar:
		why = fmt.Sprintf("has not exactly %d characters, and would be padded or not be taken", c.limit)
	case kindNone, kindText, kindInt4, kindInt8, kindNumeric, kindFloat8, kindTimestamp, kindTimestampTZ:
	}
	return t.refusal(colClient, why)
}

func (t *feedbackTable) refusal(column int, why string) string {
	return fmt.Sprintf("%s %s: column of type %s in feedback table %s", feedbackNames[column], why, t.columns[column].typ, t.name)
}

func (t *feedbackTable) refusesText(column int, text string) string {
	c := &t.columns[column]
	length, unit := len(text), "bytes"
	if c.limit > 0 && !t.byteLimits && length > c.limit {
		length, unit = utf8.RuneCountInString(text), "characters"
	}
	switch c.kind {
	case kindUUID:
		id, err := state.PackID(text)
		if err != nil || !id.IsUUID() {
			return t.refusal(column, fmt.Sprintf("%.80q is not a lower-case UUID, and would be given back in another form or not be taken", text))
		}
	case kindChar:
		if !t.byteLimits {
			length, unit = utf8.RuneCountInString(text), "characters"
		}
		if c.limit > 0 && length != c.limit || strings.HasSuffix(text, " ") {
			return t.refusal(column, fmt.Sprintf("%.80q has %d %s, and would be padded or not be taken", text, length, unit))
		}
	case kindText:
		if c.limit > 0 && length > c.limit {
			return t.refusal(column, fmt.Sprintf("has %d %s", length, unit))
		}
	case kindNone, kindInt4, kindInt8, kindNumeric, kindFloat8, kindTimestamp, kindTimestampTZ:
	}
	return ""
}

func (c *column) refusesNumber(n int64) string {
	fits := true
	switch c.kind {
	case kindInt4:
		fits = n == int64(int32(n))
	case kindNumeric:
		fits = c.limit == 0 || c.limit > 18 || max(n, -n) < int64(math.Pow10(c.limit))
	case kindNone, kindText, kindChar, kindUUID, kindInt8, kindFloat8, kindTimestamp, kindTimestampTZ:
	}
	if fits {
		return ""
	}
	return fmt.Sprintf("%d does not fit", n)
}

// holdsUnicode tells that the database can hold every text.
func (t *feedbackTable) holdsUnicode() bool { return t.encoding == "UTF8" || t.encoding == "SQL_ASCII" }

// path is the search_path under which the user's own code runs: that of the
// table's schema, behind the built-in functions.
func (t *feedbackTable) path() string {
	schema, _, _ := strings.Cut(t.name, ".")
	return "pg_catalog, " + schema + ", public, pg_temp"
}

// clientsSQL reads, as text, who has campaign $1.
func (t *feedbackTable) clientsSQL() string {
	return `SELECT ` + t.columns[colClient].read("f") + ` FROM ` + t.name + ` f WHERE f.adv_campaign_id = ` + t.columns[colCampaign].param("$1")
}

// missingSQL lists those of the clients $2 that have no row of campaign $1, of
// which more is asked by and. OFFSET keeps the planner from turning the look-ups
// into a join of the clients with all of the campaign's rows.
func (t *feedbackTable) missingSQL(and string) string {
	return `SELECT c.id FROM pg_catalog.unnest($2::text[]) AS c(id) WHERE NOT EXISTS (SELECT FROM ` + t.name + ` f
  WHERE f.adv_campaign_id = ` + t.columns[colCampaign].param("$1") + ` AND f.client_id = ` + t.columns[colClient].param("c.id") + and + ` OFFSET 0)`
}

// readSQL are the ten columns, in the order of COPY, as text and int8.
func (t *feedbackTable) readSQL(alias string) string {
	out := make([]string, feedbackColumns)
	for i := range t.columns {
		out[i] = t.columns[i].read(alias)
	}
	return strings.Join(out, ", ")
}

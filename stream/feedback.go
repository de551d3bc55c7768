package stream

import (
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
)

// feedbackTable is the user's table as one look at the catalogue found it. Its
// column types differ between deployments; every statement on it is typed by
// them, and a value that a type cannot carry unchanged is refused before it is
// sent.
type feedbackTable struct {
	schema string // quoted
	name   string // quoted and qualified
	oid    uint32
	kinds  columnKinds
	types  [feedbackColumns]columnType

	hasFeedback bool     // the column of the client's answer
	triggers    []string // BEFORE INSERT FOR EACH ROW, enabled: they can change and drop rows
	ownCode     bool     // triggers, constraints, defaults or indexes may call functions of the user's with each row
	byteLimits  bool     // the n of varchar(n) counts bytes: SQL_ASCII
	shape       string   // what a step's transaction compares, see const shape
	encoding    string   // of the database
}

// columnType is what SQL knows of a column beside its kind.
type columnType struct {
	sql   string // as SQL spells it, a domain by its own name
	limit int    // n of varchar(n), char(n); digits before the point of numeric(p, s); 0: none
}

// kindsByOID are the base types that can carry a value.
// https://github.com/postgres/postgres/blob/master/src/include/catalog/pg_type.dat
var kindsByOID = map[uint32]kind{
	25: kindText, 1043: kindText, 1042: kindChar, 2950: kindUUID,
	23: kindInt4, 20: kindInt8, 1700: kindNumeric, 701: kindFloat8, 1114: kindTimestamp, 1184: kindTimestampTZ,
}

// contractTable is the table of the contract, for what is rendered without a sink.
func contractTable() *feedbackTable {
	t := &feedbackTable{kinds: contractKinds, hasFeedback: true, encoding: "UTF8"}
	for i, k := range t.kinds {
		t.types[i].sql = "text"
		switch k {
		case kindInt4:
			t.types[i].sql = "integer"
		case kindInt8:
			t.types[i].sql = "bigint"
		case kindNone, kindText, kindChar, kindUUID, kindNumeric, kindFloat8, kindTimestamp, kindTimestampTZ:
		}
	}
	return t
}

// paramSQL makes an expression of the column's type out of a text or int8
// parameter p.
func (t *feedbackTable) paramSQL(column int, p string) string {
	switch t.kinds[column] {
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

// columnSQL makes a text or int8 expression out of the column of the table that
// alias names.
func (t *feedbackTable) columnSQL(column int, alias string) string {
	ref := alias + "." + feedbackNames[column]
	switch t.kinds[column] {
	case kindTimestamp, kindTimestampTZ: // extract takes the one for UTC, and knows the other's zone
		return "extract(epoch FROM " + ref + ")::int8"
	case kindInt4, kindInt8, kindNumeric, kindFloat8:
		return ref + "::int8"
	case kindNone, kindText, kindChar, kindUUID:
	}
	return ref + "::text"
}

// refusesCampaign says why the table cannot carry a campaign unchanged; "" if
// nothing is seen against it.
func (t *feedbackTable) refusesCampaign(c *campaign.Campaign) string {
	for i, text := range [...]string{colRestaurant: c.RestaurantID, colCampaign: c.ID, colContent: c.Content, colOwner: c.Owner, colContact: c.OwnerContact} {
		if why := t.refusesText(i, text); why != "" {
			return why
		}
	}
	for i, n := range [...]int64{colStart: c.Start, colEnd: c.End, colCreated: c.Created} {
		if i < colStart {
			continue
		}
		if why := t.refusesNumber(i, n); why != "" {
			return t.refusal(i, why)
		}
	}
	return ""
}

// refusesClient says the same of a client's id.
func (t *feedbackTable) refusesClient(id id.ID) string {
	kind, limit := t.kinds[colClient], t.types[colClient].limit
	if kind == kindText && (limit == 0 || id.TextLen() <= limit) {
		return ""
	}
	if kind == kindUUID && id.IsUUID() {
		return ""
	}
	if t.refusesText(colClient, id.Text()) == "" {
		return ""
	}
	why := fmt.Sprintf("has more than %d characters", limit) // without the id: clients are gathered by the reason
	switch kind {
	case kindUUID:
		why = "is not a lower-case UUID, and would be given back in another form or not be taken"
	case kindChar:
		why = fmt.Sprintf("has not exactly %d characters, and would be padded or not be taken", limit)
	case kindNone, kindText, kindInt4, kindInt8, kindNumeric, kindFloat8, kindTimestamp, kindTimestampTZ:
	}
	return t.refusal(colClient, why)
}

func (t *feedbackTable) refusal(column int, why string) string {
	return fmt.Sprintf("%s %s: column of type %s in feedback table %s", feedbackNames[column], why, t.types[column].sql, t.name)
}

func (t *feedbackTable) refusesText(column int, text string) string {
	limit := t.types[column].limit
	length, unit := len(text), "bytes"
	if limit > 0 && !t.byteLimits && length > limit {
		length, unit = utf8.RuneCountInString(text), "characters"
	}
	switch t.kinds[column] {
	case kindUUID:
		id, err := id.Pack(text)
		if err != nil || !id.IsUUID() {
			return t.refusal(column, fmt.Sprintf("%.80q is not a lower-case UUID, and would be given back in another form or not be taken", text))
		}
	case kindChar:
		if !t.byteLimits {
			length, unit = utf8.RuneCountInString(text), "characters"
		}
		if limit > 0 && length != limit || strings.HasSuffix(text, " ") {
			return t.refusal(column, fmt.Sprintf("%.80q has %d %s, and would be padded or not be taken", text, length, unit))
		}
	case kindText:
		if limit > 0 && length > limit {
			return t.refusal(column, fmt.Sprintf("has %d %s", length, unit))
		}
	case kindNone, kindInt4, kindInt8, kindNumeric, kindFloat8, kindTimestamp, kindTimestampTZ:
	}
	return ""
}

func (t *feedbackTable) refusesNumber(column int, n int64) string {
	limit := t.types[column].limit
	fits := true
	switch t.kinds[column] {
	case kindInt4:
		fits = n == int64(int32(n))
	case kindNumeric:
		fits = limit == 0 || limit > 18 || max(n, -n) < int64(math.Pow10(limit))
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
	return "pg_catalog, " + t.schema + ", public, pg_temp"
}

// clientsSQL reads, as text, who has campaign $1.
func (t *feedbackTable) clientsSQL() string {
	return `SELECT ` + t.columnSQL(colClient, "f") + ` FROM ` + t.name + ` f WHERE f.adv_campaign_id = ` + t.paramSQL(colCampaign, "$1")
}

// missingSQL lists those of the clients $2 that have no row of campaign $1, of
// which more is asked by and. OFFSET keeps the planner from turning the look-ups
// into a join of the clients with all of the campaign's rows.
func (t *feedbackTable) missingSQL(and string) string {
	return `SELECT c.id FROM pg_catalog.unnest($2::text[]) AS c(id) WHERE NOT EXISTS (SELECT FROM ` + t.name + ` f
  WHERE f.adv_campaign_id = ` + t.paramSQL(colCampaign, "$1") + ` AND f.client_id = ` + t.paramSQL(colClient, "c.id") + and + ` OFFSET 0)`
}

// readSQL are the ten columns, in the order of COPY, as text and int8.
func (t *feedbackTable) readSQL(alias string) string {
	out := make([]string, feedbackColumns)
	for i := range out {
		out[i] = t.columnSQL(i, alias)
	}
	return strings.Join(out, ", ")
}

package sink

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/state/id"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/record"
)

// FeedbackTable is the user's feedback table as ReadCatalogue has found it. Its column
// types differ between deployments: every statement on the table casts to them, and
// the daemon refuses a value that a type cannot carry unchanged before it is sent.
type FeedbackTable struct {
	schema string // quoted
	Name   string // quoted and qualified
	OID    uint32
	Kinds  record.ColumnKinds
	types  [record.Columns]columnType

	HasID        bool     // the column "id", whatever its type
	HasFeedback  bool     // the column of the client's answer
	Triggers     []string // BEFORE INSERT FOR EACH ROW, enabled: they can change and drop rows
	RunsUserCode bool     // triggers, constraints, defaults or indexes may call functions of the user's with each row
	byteLimits   bool     // the n of varchar(n) counts bytes: SQL_ASCII
	partitioned  bool
	Shape        string // what a step's transaction compares, see shapeSQL
	Encoding     string // of the database
}

// columnType is the SQL type of a column, beside its kind.
type columnType struct {
	sql   string // as SQL spells it, a domain by its own name
	limit int    // n of varchar(n), char(n); digits before the point of numeric(p, s); 0: none
}

// kindsByOID maps the base types that can carry a value to their kind.
// https://github.com/postgres/postgres/blob/master/src/include/catalog/pg_type.dat
var kindsByOID = map[uint32]record.Kind{
	25: record.KindText, 1043: record.KindText, 1042: record.KindChar, 2950: record.KindUUID,
	23: record.KindInt4, 20: record.KindInt8, 1700: record.KindNumeric, 701: record.KindFloat8, 1114: record.KindTimestamp, 1184: record.KindTimestampTZ,
}

// ContractTable returns the table that the contract defines.
func ContractTable() *FeedbackTable {
	t := &FeedbackTable{Kinds: record.ContractKinds, HasID: true, HasFeedback: true, Encoding: "UTF8"}
	for i, k := range t.Kinds {
		t.types[i].sql = "text"
		switch k {
		case record.KindInt4:
			t.types[i].sql = "integer"
		case record.KindInt8:
			t.types[i].sql = "bigint"
		case record.KindNone, record.KindText, record.KindChar, record.KindUUID, record.KindNumeric, record.KindFloat8, record.KindTimestamp, record.KindTimestampTZ:
		}
	}
	return t
}

// ParamSQL casts a text or int8 parameter p to the column's type.
func (t *FeedbackTable) ParamSQL(column int, p string) string {
	switch t.Kinds[column] {
	case record.KindUUID:
		return p + "::text::uuid"
	case record.KindChar:
		return p + "::text::bpchar"
	case record.KindText:
		return p + "::text"
	case record.KindTimestamp:
		return "pg_catalog.timezone('UTC', pg_catalog.to_timestamp(" + p + "::int8::float8))"
	case record.KindTimestampTZ:
		return "pg_catalog.to_timestamp(" + p + "::int8::float8)"
	case record.KindNone, record.KindInt4, record.KindInt8, record.KindNumeric, record.KindFloat8:
	}
	return p + "::int8"
}

// ColumnSQL casts the column of the table alias to text or int8.
func (t *FeedbackTable) ColumnSQL(column int, alias string) string {
	ref := alias + "." + record.ColumnNames[column]
	switch t.Kinds[column] {
	case record.KindTimestamp, record.KindTimestampTZ: // extract takes a timestamp for UTC, and knows the zone of a timestamptz
		return "extract(epoch FROM " + ref + ")::int8"
	case record.KindInt4, record.KindInt8, record.KindNumeric, record.KindFloat8:
		return ref + "::int8"
	case record.KindNone, record.KindText, record.KindChar, record.KindUUID:
	}
	return ref + "::text"
}

// CampaignMisfit returns why the table cannot carry a campaign unchanged; "" if it can,
// as far as the column types show.
func (t *FeedbackTable) CampaignMisfit(c *campaign.Campaign) string {
	for i, text := range [...]string{record.RestaurantColumn: c.RestaurantID, record.CampaignColumn: c.ID, record.ContentColumn: c.Content, record.OwnerColumn: c.Owner, record.ContactColumn: c.OwnerContact} {
		if why := t.textMisfit(i, text); why != "" {
			return why
		}
	}
	for i, n := range [...]int64{record.StartColumn: c.Start, record.EndColumn: c.End, record.CreatedColumn: c.Created} {
		if i < record.StartColumn {
			continue
		}
		if why := t.numberMisfit(i, n); why != "" {
			return t.describeMisfit(i, why)
		}
	}
	return ""
}

// CampaignIDMisfit returns why the table cannot carry a campaign's id unchanged; "" if it
// can.
func (t *FeedbackTable) CampaignIDMisfit(campaign string) string {
	return t.textMisfit(record.CampaignColumn, campaign)
}

// ClientMisfit returns why the table cannot carry a client's id unchanged; "" if it can.
func (t *FeedbackTable) ClientMisfit(id id.ID) string {
	kind, limit := t.Kinds[record.ClientColumn], t.types[record.ClientColumn].limit
	if kind == record.KindText && (limit == 0 || id.TextLen() <= limit) {
		return ""
	}
	if kind == record.KindUUID && id.IsUUID() {
		return ""
	}
	if t.textMisfit(record.ClientColumn, id.Text()) == "" {
		return ""
	}
	why := fmt.Sprintf("has more than %d characters", limit) // without the id: dead letters gather clients by the reason
	switch kind {
	case record.KindUUID:
		why = "is not a lower-case UUID, and would be given back in another form or not be taken"
	case record.KindChar:
		why = fmt.Sprintf("has not exactly %d characters, and would be padded or not be taken", limit)
	case record.KindNone, record.KindText, record.KindInt4, record.KindInt8, record.KindNumeric, record.KindFloat8, record.KindTimestamp, record.KindTimestampTZ:
	}
	return t.describeMisfit(record.ClientColumn, why)
}

func (t *FeedbackTable) describeMisfit(column int, why string) string {
	return fmt.Sprintf("%s %s: column of type %s in feedback table %s", record.ColumnNames[column], why, t.types[column].sql, t.Name)
}

func (t *FeedbackTable) textMisfit(column int, text string) string {
	limit := t.types[column].limit
	length, unit := len(text), "bytes"
	if limit > 0 && !t.byteLimits && length > limit {
		length, unit = utf8.RuneCountInString(text), "characters"
	}
	switch t.Kinds[column] {
	case record.KindUUID:
		id, err := id.Pack(text)
		if err != nil || !id.IsUUID() {
			return t.describeMisfit(column, fmt.Sprintf("%.80q is not a lower-case UUID, and would be given back in another form or not be taken", text))
		}
	case record.KindChar:
		if !t.byteLimits {
			length, unit = utf8.RuneCountInString(text), "characters"
		}
		if limit > 0 && length != limit || strings.HasSuffix(text, " ") {
			return t.describeMisfit(column, fmt.Sprintf("%.80q has %d %s, and would be padded or not be taken", text, length, unit))
		}
	case record.KindText:
		if limit > 0 && length > limit {
			return t.describeMisfit(column, fmt.Sprintf("has %d %s", length, unit))
		}
	case record.KindNone, record.KindInt4, record.KindInt8, record.KindNumeric, record.KindFloat8, record.KindTimestamp, record.KindTimestampTZ:
	}
	return ""
}

func (t *FeedbackTable) numberMisfit(column int, n int64) string {
	limit := t.types[column].limit
	fits := true
	switch t.Kinds[column] {
	case record.KindInt4:
		fits = n == int64(int32(n))
	case record.KindNumeric:
		fits = limit == 0 || limit > 18 || max(n, -n) < int64(math.Pow10(limit))
	case record.KindNone, record.KindText, record.KindChar, record.KindUUID, record.KindInt8, record.KindFloat8, record.KindTimestamp, record.KindTimestampTZ:
	}
	if fits {
		return ""
	}
	return fmt.Sprintf("%d does not fit", n)
}

// HoldsUnicode reports whether the database can hold every text.
func (t *FeedbackTable) HoldsUnicode() bool { return t.Encoding == "UTF8" || t.Encoding == "SQL_ASCII" }

// EncodingMisfit returns why the encoding of the database cannot hold a text; "" if it
// can.
func (t *FeedbackTable) EncodingMisfit(ctx context.Context, q Querier, text string) (string, error) {
	_, err := q.Exec(ctx, `SELECT pg_catalog.convert_from($1::bytea, 'UTF8')`, []byte(text))
	refused, ok := errors.AsType[*pgconn.PgError](err)
	switch {
	case err == nil:
		return "", nil
	case !ok || !RefusesRow(refused):
		return "", fmt.Errorf("try the encoding of the sink's database: %w", err)
	}
	return "the sink's database, of encoding " + t.Encoding + ", cannot hold it: " + refused.Message, nil
}

// SearchPath returns the search_path for the user's own code: the built-in functions
// first, then the table's schema and public.
func (t *FeedbackTable) SearchPath() string {
	return "pg_catalog, " + t.schema + ", public, pg_temp"
}

// ClientsSQL selects, as text, the clients with a row of campaign $1, and '1' where the
// row is of restaurant $2, else ”.
func (t *FeedbackTable) ClientsSQL() string {
	return `SELECT ` + t.ColumnSQL(record.ClientColumn, "f") + `, CASE WHEN ` + t.ColumnSQL(record.RestaurantColumn, "f") + ` = $2::text THEN '1' ELSE '' END FROM ` + t.Name + ` f WHERE f.adv_campaign_id = ` + t.ParamSQL(record.CampaignColumn, "$1")
}

// MissingSQL selects those of the clients $2 that have no row of campaign $1; and adds
// conditions on the row. OFFSET keeps the planner from turning the look-ups into a
// join of the clients with all of the campaign's rows.
func (t *FeedbackTable) MissingSQL(and string) string {
	return `SELECT c.id FROM pg_catalog.unnest($2::text[]) AS c(id) WHERE NOT EXISTS (SELECT FROM ` + t.Name + ` f
  WHERE f.adv_campaign_id = ` + t.ParamSQL(record.CampaignColumn, "$1") + ` AND f.client_id = ` + t.ParamSQL(record.ClientColumn, "c.id") + and + ` OFFSET 0)`
}

// CountOwnSQL counts those of the clients $2 whose row of campaign $1 is of restaurant $3.
func (t *FeedbackTable) CountOwnSQL() string {
	return `SELECT count(*) FROM pg_catalog.unnest($2::text[]) AS c(id) WHERE EXISTS (SELECT FROM ` + t.Name + ` f
  WHERE f.adv_campaign_id = ` + t.ParamSQL(record.CampaignColumn, "$1") + ` AND f.client_id = ` + t.ParamSQL(record.ClientColumn, "c.id") + ` AND ` + t.ColumnSQL(record.RestaurantColumn, "f") + ` = $3::text OFFSET 0)`
}

// RowSQL lists the ten columns, in the order of COPY, as text and int8.
func (t *FeedbackTable) RowSQL(alias string) string {
	out := make([]string, record.Columns)
	for i := range out {
		out[i] = t.ColumnSQL(i, alias)
	}
	return strings.Join(out, ", ")
}

// InsertSQL inserts one campaign's rows for the clients that have none. It returns the
// stored campaign and client and, where triggers can change a row, the name of another
// column whose stored value differs.
func (t *FeedbackTable) InsertSQL() string {
	values := make([]string, record.Columns)
	other := ""
	for i := range values {
		values[i] = t.ParamSQL(i, fmt.Sprintf("$%d", i+1))
		if len(t.Triggers) > 0 && i != record.CampaignColumn && i != record.ClientColumn {
			other += fmt.Sprintf(" WHEN f.%s IS DISTINCT FROM %s THEN '%[1]s'", record.ColumnNames[i], values[i])
		}
	}
	if other = "CASE" + other + " ELSE '' END"; len(t.Triggers) == 0 {
		other = "''"
	}
	values[record.ClientColumn] = t.ParamSQL(record.ClientColumn, "c.id")
	return `INSERT INTO ` + t.Name + ` AS f (` + record.ColumnList + `)
SELECT ` + strings.Join(values, ", ") + ` FROM pg_catalog.unnest($10::text[]) AS c(id)
ON CONFLICT (adv_campaign_id, client_id) DO NOTHING RETURNING ` + t.ColumnSQL(record.CampaignColumn, "f") + `, ` + t.ColumnSQL(record.ClientColumn, "f") + `, ` + other
}

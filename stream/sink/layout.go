package sink

import (
	"fmt"
	"slices"
	"strings"
)

// daemonTable defines one of the daemon's own tables. Setup creates the table by the
// definition, and the preconditions compare the table with it.
type daemonTable struct {
	name    string
	columns []daemonColumn
	key     []string // the columns of the primary key; nil: none
	checks  []string // further constraints
	storage string   // storage parameters; "": the server's
}

// daemonColumn defines one column. typ and fallback are written as Postgres shows them,
// so that they can be compared.
type daemonColumn struct {
	name     string
	typ      string
	null     bool
	fallback string // its DEFAULT; "": none
	about    string // what it holds, for the reader of the statement

	// vital: without its values lanes cannot go on, so that an added column with the
	// DEFAULT does not stand in for a lost one. A column that is NOT NULL without a
	// DEFAULT is vital too.
	vital bool
}

// daemonTables are the daemon's own tables, in the order in which setup creates them.
var daemonTables = []daemonTable{
	// One row per partition of the campaigns topic. Every step changes it by a
	// compare-and-swap on (epoch, seq).
	{name: "lane", key: []string{"lane"}, storage: "fillfactor = 50", columns: []daemonColumn{
		{name: "lane", typ: "integer"},
		{name: "epoch", typ: "bigint", fallback: "0", vital: true, about: "counts owners"},
		{name: "seq", typ: "bigint", fallback: "0", vital: true, about: "P: the last decided step"},
		{name: "next_offset", typ: "bigint", about: "of the campaigns partition"},
		{name: "cluster_id", typ: "text", about: "the Kafka that the positions count in"},
		{name: "campaigns_topic_id", typ: "text"},
		{name: "notifications_topic_id", typ: "text"},
		{name: "progress_topic_id", typ: "text"},
		{name: "shipped", typ: "bigint", fallback: "0", about: "K as of the last step: the progress topic may be ahead, never behind"},
		{name: "notifications_ends", typ: "bigint[]", fallback: "'{}'::bigint[]", about: "per partition: the notifications topic reached this end, it may never be shorter"},
		{name: "notified", typ: "bigint", fallback: "0", about: "notifications decided so far"},
		{name: "expired", typ: "bigint", fallback: "0", about: "campaigns that were over on arrival"},
		{name: "dead", typ: "bigint", fallback: "0", about: "messages refused"},
		{name: "source_id", typ: "text", fallback: "''::text", about: "the source in which source_lsn counts"},
		{name: "source_lsn", typ: "bigint", fallback: "0", about: "subscription changes up to here are handled for late subscribers; 0: none"},
	}},
	// The newest message per (campaign, restaurant), over all lanes. A statement that
	// changes a row names the state that it expects: the version for the progress of
	// a fan-out, version and message for another message. Rows stay for some days
	// after the campaign's end, so that an older message that arrives late through
	// another lane is recognised as older.
	{name: "campaign", key: []string{"adv_campaign_id", "restaurant_id"}, storage: "fillfactor = 70", columns: []daemonColumn{
		{name: "adv_campaign_id", typ: "text"},
		{name: "restaurant_id", typ: "text"},
		{name: "lane", typ: "integer", about: "delivers it"},
		{name: "version", typ: "bigint", about: "raised whenever something else is to be delivered"},
		{name: "msg_lane", typ: "integer", about: "of the newest message, an identical repeat too: its partition,"},
		{name: "msg_offset", typ: "bigint", about: "its offset"},
		{name: "msg_time", typ: "bigint", about: "and its time in milliseconds, as Kafka gave it"},
		{name: "fingerprint", typ: "bytea", about: "of all eight fields: an identical repeat is seen as one"},
		{name: "adv_campaign_content", typ: "text"},
		{name: "adv_campaign_owner", typ: "text"},
		{name: "adv_campaign_owner_contact", typ: "text"},
		{name: "adv_campaign_datetime_start", typ: "bigint"},
		{name: "adv_campaign_datetime_end", typ: "bigint"},
		{name: "datetime_created", typ: "bigint"},
		{name: "state", typ: "text"},
		{name: "cursor", typ: "bytea", about: "packed id of the last client looked at"},
		{name: "contested", typ: "boolean", about: "somebody may have been notified before this version"},
		{name: "accepted_at", typ: "timestamp with time zone", fallback: "now()"},
		{name: "audience", typ: "bigint", null: true, about: "subscribers when it was accepted or joined; NULL: not counted, or all are in notified and already"},
		{name: "notified", typ: "bigint", fallback: "0", about: "clients whom it notified, over all versions"},
		{name: "already", typ: "bigint", fallback: "0", about: "clients whom this version left out because they had the campaign from elsewhere"},
		{name: "approved", typ: "boolean", fallback: "false", about: "an operator let it go although its audience exceeds limits.max_audience"},
		{name: "operator_time", typ: "bigint", fallback: "0", about: "milliseconds, of an operator's last command; after a cancel only a later message revives it"},
		{name: "operator", typ: "text", fallback: "''::text", about: "that command, and who gave it"},
		{name: "started_at", typ: "timestamp with time zone", null: true, about: "of its first step; NULL: accepted_at, where a step has served it"},
		{name: "finished_at", typ: "timestamp with time zone", null: true, about: "of the step that finished it; NULL: accepted_at; from its end on: the end cut it off"},
		{name: "refusal", typ: "text", fallback: "''::text", about: "why the feedback table took no row of it when it was finished; '': it took them"},
	}, checks: []string{"CONSTRAINT campaign_state_check CHECK (state IN (" + stateList + "))"}},
	// Decided steps, until after they are shipped. A row is written once and never
	// changed.
	{name: "outbox", key: []string{"lane", "seq"}, columns: []daemonColumn{
		{name: "lane", typ: "integer"},
		{name: "seq", typ: "bigint"},
		{name: "notifications", typ: "integer"},
		{name: "payload", typ: "bytea"},
	}},
	{name: layoutTable, columns: []daemonColumn{{name: "version", typ: "integer"}}},
}

// layoutTable holds the version of the layout, in one row.
const layoutTable = "layout"

// daemonIndexes are the indexes of the campaign table beside its key. %[1]s is
// CONCURRENTLY or nothing, %[2]s the schema.
var daemonIndexes = []tableIndex{
	{"campaign_pending", `CREATE INDEX %[1]sIF NOT EXISTS campaign_pending ON %[2]s.campaign (lane, adv_campaign_datetime_start) WHERE state = 'pending'`},
	// finds the campaigns that operators have changed lately; few rows are in it
	{"campaign_operator", `CREATE INDEX %[1]sIF NOT EXISTS campaign_operator ON %[2]s.campaign (lane, operator_time) WHERE operator_time > 0`},
	// finds the campaigns that wait for an operator
	{"campaign_held", `CREATE INDEX %[1]sIF NOT EXISTS campaign_held ON %[2]s.campaign (lane) WHERE state IN ('parked', 'paused')`},
}

// tableIndex is an index of the campaign table: its name, and the statement that creates
// it.
type tableIndex struct{ name, sql string }

// inSchema returns the statement that creates an index inside a transaction, with %[1]s
// in the place of the schema.
func inSchema(index tableIndex) string { return fmt.Sprintf(index.sql, "", "%[1]s") }

// creationSQL returns the statements that create the schema and the tables, in order.
// They are safe to repeat. schema is quoted.
func creationSQL(schema string) []string {
	statements := []string{"CREATE SCHEMA IF NOT EXISTS " + schema}
	for i := range daemonTables {
		statements = append(statements, daemonTables[i].createSQL(schema)...)
	}
	return statements
}

// insertLayoutSQL notes the version of the layout, once.
func insertLayoutSQL(schema string, version int) string {
	return fmt.Sprintf("INSERT INTO %s.layout SELECT %d WHERE NOT EXISTS (SELECT FROM %[1]s.layout)", schema, version)
}

// createSQL returns the statements that create the table.
func (t *daemonTable) createSQL(schema string) []string {
	name := schema + "." + t.name
	var b strings.Builder
	b.WriteString("CREATE TABLE IF NOT EXISTS " + name + " (")
	constraints := slices.Clone(t.checks)
	if len(t.key) > 0 {
		constraints = append(constraints, "PRIMARY KEY ("+strings.Join(t.key, ", ")+")")
	}
	for i, c := range t.columns {
		b.WriteString("\n  " + c.definition())
		if i < len(t.columns)-1 || len(constraints) > 0 {
			b.WriteByte(',')
		}
		if c.about != "" {
			b.WriteString(" -- " + c.about)
		}
	}
	if len(constraints) > 0 {
		b.WriteString("\n  " + strings.Join(constraints, ",\n  "))
	}
	b.WriteString("\n)")
	if t.storage != "" {
		b.WriteString(" WITH (" + t.storage + ")")
	}
	if t.name != "outbox" {
		return []string{b.String()}
	}
	// EXTERNAL: packed ids do not compress.
	return []string{b.String(), "ALTER TABLE " + name + " ALTER COLUMN payload SET STORAGE EXTERNAL"}
}

// definition returns the column as CREATE TABLE and ADD COLUMN have it.
func (c *daemonColumn) definition() string {
	text := c.name + " " + c.typ
	if !c.null {
		text += " NOT NULL"
	}
	if c.fallback != "" {
		text += " DEFAULT " + c.fallback
	}
	return text
}

// isVital reports whether the column's values cannot be made up.
func (c *daemonColumn) isVital() bool { return c.vital || !c.null && c.fallback == "" }

// layoutVersion counts the changes of the daemon's tables. A daemon works only on its
// own layout.
const layoutVersion = 4

// migrations hold the statements that bring a layout to the next one, in one
// transaction: migrations[n] begins with layout n. %[1]s is the schema.
var migrations = map[int][]string{
	// Each campaign row gets a version of its own, and separate columns for the lane
	// that delivers the campaign and the partition of the newest message.
	1: {
		`ALTER TABLE %[1]s.campaign ADD COLUMN version int8 NOT NULL DEFAULT 1, ADD COLUMN msg_lane int4, ADD COLUMN contested boolean NOT NULL DEFAULT false`,
		`UPDATE %[1]s.campaign SET msg_lane = lane`,
		`ALTER TABLE %[1]s.campaign ALTER COLUMN msg_lane SET NOT NULL, ALTER COLUMN version DROP DEFAULT, ALTER COLUMN contested DROP DEFAULT`,
	},
	// A lane gets the position in the source up to which late subscribers are handled;
	// a campaign gets more states, counters, and what an operator decided about it.
	2: {
		`ALTER TABLE %[1]s.lane ADD COLUMN source_id text NOT NULL DEFAULT '', ADD COLUMN source_lsn int8 NOT NULL DEFAULT 0`,
		`ALTER TABLE %[1]s.campaign DROP CONSTRAINT IF EXISTS campaign_state_check, ADD CONSTRAINT campaign_state_check CHECK (state IN (` + stateList + `)),
  ADD COLUMN audience int8, ADD COLUMN notified int8 NOT NULL DEFAULT 0, ADD COLUMN already int8 NOT NULL DEFAULT 0,
  ADD COLUMN approved boolean NOT NULL DEFAULT false, ADD COLUMN operator_time int8 NOT NULL DEFAULT 0, ADD COLUMN operator text NOT NULL DEFAULT '',
  ADD COLUMN started_at timestamptz, ADD COLUMN finished_at timestamptz`,
		inSchema(daemonIndexes[1]), inSchema(daemonIndexes[2]),
	},
	// A campaign that the feedback table refuses says so, and a cancelled one is not
	// approved any more.
	3: {
		`ALTER TABLE %[1]s.campaign ADD COLUMN refusal text NOT NULL DEFAULT ''`,
		`UPDATE %[1]s.campaign SET approved = false WHERE approved AND state = 'cancelled'`,
	},
}

// cameWith names the column of the campaign table by which a layout is told where its
// number is lost: the latest layout first.
var cameWith = []struct {
	layout int
	column string
}{{4, "refusal"}, {3, "finished_at"}, {2, "version"}, {1, "fingerprint"}}

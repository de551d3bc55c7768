// Package pgsession holds the one list of the Postgres settings that dinnerbell's
// connections pin, with the reason of each.
//
// A role, a database, postgresql.conf, PGOPTIONS, PGTZ and the URL can each give
// a session other settings than the ones that the code was written for, and a
// promoted standby can have another postgresql.conf. A setting belongs in the
// list if it changes how a value reads, or whether a statement can run at all.
//
// https://www.postgresql.org/docs/current/runtime-config-client.html
package pgsession

import (
	"fmt"
	"hash/fnv"
	"maps"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Setting is one setting and the value that a session has it at.
type Setting struct {
	Name  string // as Postgres spells it
	Value string
	Since int // the first major version that knows it; 0: all that are supported
}

// Reading decides how values read as text. The text of a row's key is the key in
// the local state, and the text of an id is the id, so that another value would
// make another row of a row that did not change. A change of this list must change
// TextVersion; then every local state is rebuilt once.
var Reading = []Setting{
	{Name: "TimeZone", Value: "UTC"},              // timestamptz
	{Name: "DateStyle", Value: "ISO, YMD"},        // date, timestamp, timestamptz, ranges of them
	{Name: "IntervalStyle", Value: "postgres"},    // interval
	{Name: "bytea_output", Value: "hex"},          // bytea
	{Name: "extra_float_digits", Value: "1"},      // float4, float8, point and its like: the shortest text that reads back the same
	{Name: "lc_monetary", Value: "C"},             // money
	{Name: "search_path", Value: "pg_catalog"},    // regclass and its like are qualified by it; and nobody's own function replaces a built-in one
	{Name: "quote_all_identifiers", Value: "off"}, // the same types, format('%I')
}

// Running decides whether and how statements run.
var Running = []Setting{
	{Name: "client_encoding", Value: "UTF8"},                         // ids are UTF-8 in Kafka
	{Name: "standard_conforming_strings", Value: "on"},               // quoting in statements
	{Name: "default_transaction_read_only", Value: "off"},            // publication, outbox and rows are written
	{Name: "default_transaction_isolation", Value: "read committed"}, // others end transactions by serialization failures, or show the past
	{Name: "default_transaction_deferrable", Value: "off"},           // a deferrable transaction waits for others
	{Name: "statement_timeout", Value: "0"},                          // it cuts a snapshot
	{Name: "lock_timeout", Value: "0"},                               // it cuts a wait behind DDL
	{Name: "idle_in_transaction_session_timeout", Value: "0"},        // it ends the transaction that holds a snapshot
	{Name: "idle_session_timeout", Value: "0"},                       // it ends the barrier's connection
	{Name: "transaction_timeout", Value: "0", Since: 17},             // it cuts a snapshot
	{Name: "client_min_messages", Value: "warning"},                  // a message per row is slower than the rows
	{Name: "exit_on_error", Value: "off"},                            // a statement that may fail does not end the session
	{Name: "jit", Value: "off"},                                      // to compile the barrier's query takes longer than to run it
	{Name: "enable_seqscan", Value: "on"},                            // without it a table is copied in the order of an index
	{Name: "enable_tidscan", Value: "on"},                            // without it each range of a large table's blocks is read by reading all of it
}

// oldest is the oldest major version that is supported.
const oldest = 14

// Merge gives the settings of several lists; of one setting's values the last
// counts.
func Merge(lists ...[]Setting) []Setting {
	var merged []Setting
	at := map[string]int{}
	for _, list := range lists {
		for _, s := range list {
			key := strings.ToLower(s.Name)
			if i, ok := at[key]; ok {
				merged[i] = s
				continue
			}
			at[key] = len(merged)
			merged = append(merged, s)
		}
	}
	return merged
}

// Startup puts the settings into the startup message that cfg's connections begin
// with, where they hold from the first statement on and win over role, database
// and options. Settings that the oldest supported server does not know are left
// out, since it would refuse the connection: SQL has them.
func Startup(cfg *pgx.ConnConfig, settings []Setting) {
	for _, s := range settings {
		// The URL may have the same setting in another spelling, and of two the
		// later in the message counts: map order would decide.
		maps.DeleteFunc(cfg.RuntimeParams, func(name, _ string) bool { return strings.EqualFold(name, s.Name) })
		if s.Since <= oldest {
			cfg.RuntimeParams[s.Name] = s.Value
		}
	}
}

// SQL gives one statement that makes the settings in a session that has begun,
// those that the server knows. It also undoes what a login trigger or a preloaded
// library has set since the startup message. It needs no privilege and works on a
// replication connection.
//
// A database of encoding SQL_ASCII holds any bytes, and its server refuses to send
// a value that is not UTF-8 to a client that wants UTF-8: one such value in any
// column would end every snapshot and the stream. There client_encoding is
// SQL_ASCII too, values come as they are, and whoever reads one must check it.
// https://www.postgresql.org/docs/current/multibyte.html
func SQL(settings []Setting) string {
	values := make([]string, len(settings))
	for i, s := range settings {
		values[i] = fmt.Sprintf("(%s, %s)", quoteSetting(s.Name), quoteSetting(s.Value))
	}
	return "SELECT pg_catalog.set_config(s.name, CASE WHEN s.name OPERATOR(pg_catalog.=) 'client_encoding'" +
		" AND pg_catalog.current_setting('server_encoding') OPERATOR(pg_catalog.=) 'SQL_ASCII' THEN 'SQL_ASCII' ELSE v.value END, false) FROM (VALUES " + strings.Join(values, ", ") +
		") AS v (name, value) JOIN pg_catalog.pg_settings s ON pg_catalog.lower(s.name) OPERATOR(pg_catalog.=) pg_catalog.lower(v.name)"
}

// quoteSetting makes a literal. No value has a backslash, so that it reads the same
// whatever standard_conforming_strings is.
func quoteSetting(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// TextVersion names the present content of Reading. A local state that was
// written under another one holds keys that may read otherwise now.
func TextVersion() string {
	sum := fnv.New32a()
	for _, s := range Reading {
		_, _ = sum.Write([]byte(s.Name + "=" + s.Value + ";")) // never fails
	}
	return fmt.Sprintf("%08x", sum.Sum32())
}

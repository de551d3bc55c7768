package status

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// metricInfo describes one metric for docs/metrics.md.
type metricInfo struct {
	name, kind, help string
	labels           []string
}

// catalogue lists the metrics that are read from the status. It is filled while the
// package's variables are set, and read only afterwards.
var catalogue []metricInfo

// kindOf returns the type of a metric of the status.
func kindOf(name string) string {
	if strings.HasSuffix(name, "_total") {
		return "counter"
	}
	return "gauge"
}

// worries say when a metric shows something that an operator should look at. A metric
// without an entry is for looking around.
var worries = map[string]string{
	"ready":                          "0 for minutes",
	"halted":                         "1: campaigns wait until an operator acts",
	"clock_skew_seconds":             "more than 1 either way: campaigns start and end by this machine's clock",
	"source_state":                   "connecting, waiting or snapshot for minutes, halted at all",
	"source_lag_seconds":             "more than seconds: campaigns wait at the barrier",
	"source_fresh_timestamp_seconds": "minutes before now",
	"source_reconnects_total":        "rises again and again",
	"source_snapshots_total":         "rises: the stream was lost",
	"slot_wal_status":                "unreserved, lost",
	"slot_held_bytes":                "more than the source's disk can spare",
	"slot_safe_bytes":                "near 0",
	"state":                          "rebuilding, disk_full",
	"state_free_bytes":               "near dinnerbell_state_reserve_bytes",
	"state_quarantines_total":        "rises: the disk damages files",
	"checkpoint_failed":              "1 for long: a restore would go far back",
	"lane_lag_seconds":               "more than campaigns may be late",
	"lane_lag_messages":              "rises and does not fall",
	"lane_oldest_campaign_seconds":   "more than campaigns may be late",
	"lane_held_by_transaction":       "1 for minutes",
	"lane_session_failures_total":    "rises again and again",
	"campaign_delivered_seconds":     "its 0.99 quantile exceeds what campaigns may be late",
	"step_shipped_seconds":           "seconds: Kafka is slow",
	"source_applied_seconds":         "seconds: the mirror or the link is slow",
	"freshness_wait_seconds":         "seconds: the mirror is behind",
	"dead_letters_total":             "rises: a producer sends messages that are no campaigns",
	"unservable_clients_total":       "rises: clients get no notifications",
	"conflicts_total":                "rises with each campaign: somebody else writes feedback rows",
	"early_aborts_total":             "rises with each step: Postgres commits slowly",
	"campaigns":                      "parked or paused for long: an operator is asked",
	"bad_ids_total":                  "rises: another service writes rows that cannot be ids",
	"source_failovers_total":         "rises: the source was promoted",
}

// sections are the parts of the reference, by prefixes of the names. A name belongs to
// the first part that has a prefix of it.
var sections = []struct {
	title    string
	prefixes []string
}{
	{"Ready or not", []string{"build_info", "ready", "halted", "clock_skew"}},
	{"The mirror of the subscriptions", []string{"source_", "slot_", "subscriptions", "freshness", "bad_ids", "null_ids"}},
	{"The local state", []string{"state", "checkpoint"}},
	{"Lanes", []string{"lane_"}},
	{"Campaigns and notifications", []string{""}},
}

// Reference returns the tables of docs/metrics.md.
func Reference() string {
	all := append(slices.Clone(catalogue), durationInfos()...)
	var out strings.Builder
	done := map[string]bool{}
	for _, s := range sections {
		fmt.Fprintf(&out, "\n## %s\n| metric | type | labels | meaning | worry when |\n|---|---|---|---|---|\n", s.title)
		for _, m := range all {
			short := strings.TrimPrefix(m.name, "dinnerbell_")
			if done[m.name] || !slices.ContainsFunc(s.prefixes, func(p string) bool { return strings.HasPrefix(short, p) }) {
				continue
			}
			done[m.name] = true
			fmt.Fprintf(&out, "| `%s` | %s | %s | %s | %s |\n", m.name, m.kind, quoteAll(m.labels), strings.ReplaceAll(m.help, "|", "\\|"), worries[short])
		}
	}
	return out.String()
}

// quoteAll returns words as code.
func quoteAll(words []string) string {
	if len(words) == 0 {
		return ""
	}
	return "`" + strings.Join(words, "`, `") + "`"
}

// unknownWorries lists the entries of worries that belong to no metric.
func unknownWorries() []string {
	left := maps.Clone(worries)
	for _, m := range append(slices.Clone(catalogue), durationInfos()...) {
		delete(left, strings.TrimPrefix(m.name, "dinnerbell_"))
	}
	return slices.Sorted(maps.Keys(left))
}

// Package report collects results, prints them as a table, and writes them as
// JSON and as lines for benchstat.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
)

// Result is one entry of build/bench.json.
type Result struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"` // median over the runs
	Unit  string  `json:"unit"`
	// Limit names the comparison: a limit of the machine, an alternative, or
	// "goal", a fixed figure; "" without a comparison.
	Limit      string   `json:"limit"`
	LimitValue *float64 `json:"limit_value"` // median; null without a limit
	Ratio      *float64 `json:"ratio"`       // value ÷ limit_value
	Runs       int      `json:"runs"`
	Spread     float64  `json:"spread"` // (largest - smallest) ÷ median, over the runs

	samples []float64
}

// Report collects results, for one goroutine.
type Report struct{ results []Result }

// Add adds a result with the values of all runs. limits are the values of the
// comparison that limit names; without limits, limit is ignored.
func (r *Report) Add(name, unit string, values []float64, limit string, limits ...float64) {
	if len(values) == 0 {
		return
	}
	res := Result{Name: name, Value: Median(values), Unit: unit, Runs: len(values), samples: values}
	if res.Value != 0 {
		res.Spread = (slices.Max(values) - slices.Min(values)) / res.Value
	}
	if len(limits) > 0 {
		beside := Median(limits)
		res.Limit, res.LimitValue = limit, &beside
		if beside != 0 {
			ratio := res.Value / beside
			res.Ratio = &ratio
		}
	}
	r.results = append(r.results, res)
}

// AddRatio adds values ÷ others, run by run; the table shows the goal beside
// the ratio.
func (r *Report) AddRatio(name string, values, others []float64) {
	ratios := make([]float64, 0, len(values))
	for i := range values {
		ratios = append(ratios, values[i]/others[i])
	}
	r.Add(name, "ratio", ratios, "")
}

// Median returns the median of a result, 0 if there is no such result.
func (r *Report) Median(name string) float64 {
	for i := range r.results {
		if r.results[i].Name == name {
			return r.results[i].Value
		}
	}
	return 0
}

// Write prints the table and writes the results as JSON and, for benchstat, as
// lines of Go benchmarks.
func (r *Report) Write(jsonPath, benchPath string, stdout io.Writer) error {
	if len(r.results) == 0 {
		return nil
	}
	for _, path := range []string{jsonPath, benchPath} {
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			return fmt.Errorf("make folder for results: %w", err)
		}
	}
	text, err := json.MarshalIndent(r.results, "", "  ")
	if err != nil {
		return fmt.Errorf("encode results: %w", err)
	}
	if err := os.WriteFile(jsonPath, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := os.WriteFile(benchPath, []byte(r.benchLines()), 0o600); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return r.printTable(stdout)
}

// benchLines returns one line per value in the format of benchstat.
// https://golang.org/design/14313-benchmark-format
func (r *Report) benchLines() string {
	var b strings.Builder
	for i := range r.results {
		for _, v := range r.results[i].samples {
			_, _ = fmt.Fprintf(&b, "Benchmark%s 1 %g %s\n", camelCase(r.results[i].Name), v, strings.ReplaceAll(r.results[i].Unit, " ", "-"))
		}
	}
	return b.String()
}

// camelCase turns fanout_throughput into FanoutThroughput.
func camelCase(name string) string {
	var b strings.Builder
	for word := range strings.SplitSeq(name, "_") {
		if word != "" {
			b.WriteString(strings.ToUpper(word[:1]) + word[1:])
		}
	}
	return b.String()
}

func (r *Report) printTable(stdout io.Writer) error {
	t := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(t, "name\tvalue\tunit\tlimit\tat\tratio\tgoal\truns\tspread\t") // Flush returns the errors
	for i := range r.results {
		res := &r.results[i]
		limit, ratio := "", ""
		if res.LimitValue != nil {
			limit = formatFigure(*res.LimitValue)
		}
		if res.Ratio != nil {
			ratio = fmt.Sprintf("%.2f", *res.Ratio)
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%.0f%%\t\n",
			res.Name, formatFigure(res.Value), res.Unit, res.Limit, limit, ratio, goals[res.Name], res.Runs, 100*res.Spread)
	}
	return t.Flush()
}

// goals stand beside the results in the table. Nothing depends on them.
var goals = map[string]string{
	"fanout_throughput_kfake":        "ratio ≥ 0.8",
	"fanout_throughput_kafka":        "ratio ≥ 0.8",
	"fanout_throughput_2lanes_kfake": "ratio ≥ 0.8",
	"fanout_throughput_2lanes_kafka": "ratio ≥ 0.8",
	"small_fanout_100":               "ratio ≥ 0.75",
	"small_fanout_10":                "ratio ≥ 0.5",
	"latency_p50_kfake":              "ratio ≤ 1, 5.5 ms",
	"latency_p99_kfake":              "ratio ≤ 1.5, 12 ms",
	"latency_10hz_p50_kfake":         "ratio ≤ 1, 5.5 ms",
	"latency_10hz_p99_kfake":         "ratio ≤ 1.5, 12 ms",
	"cdc_drain_single":               "ratio ≥ 0.95",
	"cdc_drain_bulk":                 "ratio ≥ 0.95",
	"cdc_latency_p50":                "≤ 2 ms",
	"cdc_latency_p99":                "≤ 10 ms",
	"barrier_p99":                    "≤ 5 ms",
	"rebuild":                        "ratio ≥ 0.4",
	"rebuild_online":                 "ratio ≥ 0.4",
	"restart":                        "≤ 1 s",
	"disk":                           "≤ 64 B",
	"memory_peak":                    "≤ 300 MB",
	"flatness":                       "≤ 1.1",
	"cpu_daemon_kfake":               "≤ 2.0 s",
	"cpu_daemon_kafka":               "≤ 2.0 s",
	"cpu_postgres_kfake":             "≤ 8 s",
	"cpu_postgres_kafka":             "≤ 8 s",
	"by_hand_throughput_kafka":       "ours ahead",
	"by_hand_small_100":              "ours ahead",
	"by_hand_throughput_kfake":       "ours ahead",
	"scheduled_p99_kfake":            "≤ 150 ms",
	"scheduled_p99_kafka":            "≤ 150 ms",
	"late_p50_kfake":                 "≤ 10 ms",
	"late_p99_kfake":                 "≤ 50 ms",
	"late_drain":                     "ratio ≥ 0.9",
	"late_drain_bulk":                "ratio ≥ 0.9",
	"fairness_p99_kfake":             "≤ 100 ms",
	"fairness_p99_kafka":             "≤ 100 ms",
	"fairness_share_kfake":           "≥ 0.95",
	"fairness_share_kafka":           "≥ 0.95",
}

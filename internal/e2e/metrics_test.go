package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"dinnerbell/internal/testenv/envtest"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	alertsFile    = "deploy/prometheus/alerts.yaml"
	dashboardFile = "deploy/grafana/dashboard.json"
)

// Every alert says in a sentence what is wrong and links to a recipe of its own.
func TestAlertsHaveRecipes(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(envtest.Root(t), "docs/operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	tests, err := os.ReadFile(filepath.Join(envtest.Root(t), "deploy/prometheus/alerts_test.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range list(t, readYAML(t, alertsFile), "groups", "name=dinnerbell", "rules") {
		name := fmt.Sprint(node(t, rule, "alert"))
		node(t, rule, "for")
		if s := node(t, rule, "labels", "severity"); !slices.Contains([]any{"critical", "warning", "info"}, s) {
			t.Errorf("%s: severity %v", name, s)
		}
		if s := fmt.Sprint(node(t, rule, "annotations", "summary")); !strings.HasSuffix(s, ".") {
			t.Errorf("%s: summary %q is no sentence", name, s)
		}
		if url := node(t, rule, "annotations", "runbook_url"); url != "docs/operations.md#"+strings.ToLower(name) {
			t.Errorf("%s: runbook_url is %v", name, url)
		}
		if !strings.Contains(string(text), "\n### "+name+"\n") {
			t.Errorf("docs/operations.md has no recipe %q", name)
		}
		for _, test := range []string{name + " fires", name + " is silent"} {
			if !strings.Contains(string(tests), "name: "+test+"\n") {
				t.Errorf("alerts_test.yaml has no test %q", test)
			}
		}
	}
}

// query is an expression of a rule or a panel.
type query struct{ where, expr string }

// ruleQueries returns the expressions of the alerts.
func ruleQueries(t *testing.T) (out []query) {
	t.Helper()
	for _, rule := range list(t, readYAML(t, alertsFile), "groups", "name=dinnerbell", "rules") {
		out = append(out, query{fmt.Sprint(node(t, rule, "alert")), fmt.Sprint(node(t, rule, "expr"))})
	}
	return out
}

// dashboardQueries returns the expressions of the dashboard's panels.
func dashboardQueries(t *testing.T) (out []query) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(envtest.Root(t), dashboardFile))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Panels []struct {
			Title   string `json:"title"`
			Targets []struct {
				Expr string `json:"expr"`
			} `json:"targets"`
		} `json:"panels"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatalf("%s: %v", dashboardFile, err)
	}
	for _, p := range doc.Panels {
		for _, q := range p.Targets {
			out = append(out, query{p.Title, q.Expr})
		}
	}
	if len(out) == 0 {
		t.Fatalf("%s has no query", dashboardFile)
	}
	return out
}

var (
	metricName  = regexp.MustCompile(`\b(?:dinnerbell|process|go)_\w+`)
	selector    = regexp.MustCompile(`\b((?:dinnerbell|process|go)_\w+)\{([^}]*)\}`)
	matcher     = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)`)
	seriesLine  = regexp.MustCompile(`(?m)^((?:dinnerbell|process|go)_\w+)(?:\{([^}]*)\})? `)
	rangeOfPage = strings.NewReplacer("$__rate_interval", "5m", `"$instance"`, `".*"`)
)

// absent are metrics that this daemon does not serve: its source has no
// max_slot_wal_keep_size, and every connection to Kafka was made.
var absent = []string{"dinnerbell_slot_safe_bytes", "dinnerbell_kafka_connect_errors_total"}

// servedLabels returns the labels of each metric that a daemon serves.
func servedLabels(text string) map[string][]string {
	out := map[string][]string{}
	for _, m := range seriesLine.FindAllStringSubmatch(text, -1) {
		out[m[1]] = append(out[m[1]], "instance", "job") // of the scrape
		for _, l := range matcher.FindAllStringSubmatch(m[2], -1) {
			out[m[1]] = append(out[m[1]], l[1])
		}
	}
	return out
}

// Every metric and label that an alert or a panel names exists on the /metrics of a
// daemon that has worked, and promtool finds no fault in metrics and queries.
func TestRulesAndDashboardNameRealMetrics(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client ' || n, 'r' FROM generate_series(1, 50) n`)
	d.setup(2)
	d.start()
	d.awaitReady()
	d.produce(0, newCampaign("c0", "r"))
	if err := d.campaigns.ProduceSync(t.Context(), &kgo.Record{Topic: d.topicName("campaigns"), Partition: 1, Value: []byte("no campaign")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	d.checkOnce(map[string]string{"c0": "r"}, patience)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('more', 'r')`)
	text := d.metricsWith(`dinnerbell_lane_lag_messages{partition="1"} 0`, `dinnerbell_dead_letters_total{reason="not_json"} 1`, "dinnerbell_campaign_delivered_seconds_count 1", "dinnerbell_source_lag_bytes ", "dinnerbell_kafka_connects_total{")
	d.stop()

	served := servedLabels(text)
	for _, q := range slices.Concat(ruleQueries(t), dashboardQueries(t)) {
		for _, name := range metricName.FindAllString(q.expr, -1) {
			if served[name] == nil && !slices.Contains(absent, name) {
				t.Errorf("%s: nothing serves %s", q.where, name)
			}
		}
		for _, s := range selector.FindAllStringSubmatch(q.expr, -1) {
			for _, l := range matcher.FindAllStringSubmatch(s[2], -1) {
				if served[s[1]] != nil && !slices.Contains(served[s[1]], l[1]) {
					t.Errorf("%s: %s has no label %s", q.where, s[1], l[1])
				}
			}
		}
	}
	checkWithPromtool(t, text)
}

// metricsWith returns the daemon's metrics once they have all of these texts.
func (d *deployment) metricsWith(wanted ...string) (text string) {
	d.Helper()
	address, err := d.httpAddress()
	if err != nil {
		d.Fatal(err)
	}
	envtest.Until(d, patience, func() error {
		resp, err := http.Get("http://" + address + "/metrics")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		text = string(body)
		for _, w := range wanted {
			if !strings.Contains(text, "\n"+w) {
				return fmt.Errorf("%q is not in\n%s", w, text)
			}
		}
		return nil
	})
	return text
}

// checkWithPromtool lints metrics, and parses the queries of the dashboard as rules.
func checkWithPromtool(t *testing.T, metrics string) {
	t.Helper()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("TEST_PROMTOOL") != "" {
			t.Error(err)
		}
		return // make test-alerts has it
	}
	cmd := exec.CommandContext(t.Context(), promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(metrics)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
	rules := []map[string]any{}
	for i, q := range dashboardQueries(t) {
		rules = append(rules, map[string]any{"record": fmt.Sprint("panel:", i), "expr": rangeOfPage.Replace(q.expr)})
	}
	text, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(envtest.Dir(t), "dashboard.yaml") // JSON is YAML
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), promtool, "check", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("queries of the dashboard: %v\n%s", err, out)
	}
}

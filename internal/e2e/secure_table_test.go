package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"dinnerbell/internal/testenv/envtest"
)

// faultRow is a row of the table in docs/security.md.
type faultRow struct {
	with, fault, doctor, run string
}

// lastHint matches what mends an error, at its end.
var lastHint = regexp.MustCompile(`\((?:to mend: )?([^()]*(?:\([^()]*\)[^()]*)*)\)$`)

// newFaultRow checks that both commands name the fault, and a key of the configuration or
// the certificate that is to be renewed.
func newFaultRow(d *deployment, s *securedServers, with string, f fault, seen failure) faultRow {
	d.Helper()
	row := faultRow{with: with, fault: f.name, doctor: "connects", run: "connects"}
	if f.harmless {
		if seen.level != "ok" && seen.level != "warn" {
			d.Errorf("%s, %s: doctor finds %+v", with, f.name, seen)
		}
		return row
	}
	plain := strings.NewReplacer("SCRAM-SHA-256", "MECHANISM", "SCRAM-SHA-512", "MECHANISM", "PLAIN", "MECHANISM", d.db.Name, "DATABASE", d.name, "NAME", s.dir+"/", "", "127.0.0.1", "HOST")
	row.doctor = seen.kind + ": " + neutral(plain, seen.fix)
	if m := lastHint.FindStringSubmatch(seen.run); m != nil {
		row.run = neutral(plain, m[1])
	} else {
		d.Errorf("%s, %s: run names no mending: %s", with, f.name, seen.run)
	}
	named := func(text string) bool {
		return strings.Contains(text, f.section+".") || strings.Contains(text, "renew the certificate of")
	}
	if seen.level != "FAIL" || strings.HasSuffix(seen.kind, "answered") || !named(row.doctor) || !named(row.run) {
		d.Errorf("%s, %s:\ndoctor %+v\nrun: %s", with, f.name, seen, seen.run)
	}
	return row
}

var (
	timeOfDay  = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`)
	portNumber = regexp.MustCompile(`HOST:\d+`)
)

// neutral removes from a text what differs between two runs.
func neutral(plain *strings.Replacer, text string) string {
	text = timeOfDay.ReplaceAllString(plain.Replace(text), "TIME")
	return strings.ReplaceAll(portNumber.ReplaceAllString(text, "HOST:PORT"), "|", "\\|")
}

const (
	tableBegins = "<!-- written by make test-secure UPDATE=1 -->\n"
	tableEnds   = "<!-- end -->\n"
)

// compareTable compares the table of docs/security.md with the rows, or writes the table.
func compareTable(t *testing.T, rows []faultRow) {
	t.Helper()
	var table strings.Builder
	table.WriteString("| fault | with | `doctor` says | `run` says |\n|---|---|---|---|\n")
	for len(rows) > 0 {
		same := func(r faultRow) bool { r.with = rows[0].with; return r == rows[0] }
		var with []string
		for _, r := range rows {
			if same(r) {
				with = append(with, r.with)
			}
		}
		fmt.Fprintf(&table, "| %s | %s | %s | %s |\n", rows[0].fault, strings.Join(with, ", "), rows[0].doctor, rows[0].run)
		first := rows[0]
		rows = slices.DeleteFunc(slices.Clone(rows), func(r faultRow) bool { r.with = first.with; return r == first })
	}
	compareGenerated(t, tableBegins, table.String())
}

// compareGenerated compares the part of docs/security.md behind a comment with a text, or
// writes the text there.
func compareGenerated(t *testing.T, begins, want string) {
	t.Helper()
	path := filepath.Join(envtest.Root(t), "docs", "security.md")
	text := string(readFile(t, path))
	before, rest, ok := strings.Cut(text, begins)
	old, after, ok2 := strings.Cut(rest, tableEnds)
	if !ok || !ok2 {
		t.Fatalf("docs/security.md has no place for the table: %s", begins)
	}
	switch {
	case old == want:
	case os.Getenv("UPDATE") == "1" && !t.Failed():
		if err := os.WriteFile(path, []byte(before+begins+want+tableEnds+after), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("docs/security.md has another table (make test-secure UPDATE=1):\n%s", want)
	}
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Package budget compares the cost of the hot paths with limits, in counts that do
// not depend on the clock: allocations, bytes of WAL, bytes on disk. The limits
// stand in budgets.txt; tests measure and compare. A change that costs more must
// change that file, so that reviewers see the reason.
package budget

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"testing"
)

//go:embed budgets.txt
var text string

// slack is the share of its budget below which a figure makes the test ask for a
// lower budget.
const slack = 0.8

// Check compares a measured figure with the budget of that name in budgets.txt
// and fails the test where it is over.
func Check(t testing.TB, name string, value float64) {
	t.Helper()
	limit, unit, err := lookupLimit(text, name)
	if err != nil {
		t.Fatal(err)
	}
	if problem := compareLimit(name, value, limit, unit); problem != "" {
		t.Error(problem)
		return
	}
	note := ""
	if value < slack*limit {
		note = "; the budget can be lowered"
	}
	t.Logf("%s: %.4g %s of %g%s", name, value, unit, limit, note)
}

// compareLimit returns the violation as text, "" without one.
func compareLimit(name string, value, limit float64, unit string) string {
	if value <= limit {
		return ""
	}
	return fmt.Sprintf("%s: %.4g %s, over the budget of %g: mend it, or raise the budget in internal/budget/budgets.txt and say why", name, value, unit, limit)
}

// lookupLimit finds a line "name limit unit" of budgets.txt; # begins a comment.
func lookupLimit(text, name string) (limit float64, unit string, err error) {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != name {
			continue
		}
		if len(fields) < 3 {
			return 0, "", fmt.Errorf("read budget %s: want name, limit, unit: %q", name, line)
		}
		if limit, err = strconv.ParseFloat(fields[1], 64); err != nil {
			return 0, "", fmt.Errorf("read budget %s: %w", name, err)
		}
		return limit, strings.Join(fields[2:], " "), nil
	}
	return 0, "", fmt.Errorf("read budget %s: not in budgets.txt", name)
}

package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// compareMissingTable compares a table of missing rights in docs/security.md with the rows,
// or writes the table. Rows that differ in the command alone become one.
func compareMissingTable(t *testing.T, of string, rows []missingRow) {
	t.Helper()
	var table strings.Builder
	table.WriteString("| role | without | command | says |\n|---|---|---|---|\n")
	done := map[missingRow]bool{}
	for _, r := range rows {
		key := r
		key.command = ""
		if done[key] {
			continue
		}
		done[key] = true
		var commands []string
		for _, other := range rows {
			if other.role == r.role && other.right == r.right && other.says == r.says {
				commands = append(commands, "`"+other.command+"`")
			}
		}
		fmt.Fprintf(&table, "| %s | %s | %s | %s |\n", r.role, r.right, strings.Join(commands, ", "), r.says)
	}
	compareGenerated(t, "<!-- missing rights of "+of+", written by make test-secure UPDATE=1 -->\n", table.String())
}

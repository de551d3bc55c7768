package source

import (
	"slices"
	"strings"
	"testing"
)

// A timeline history that is read keeps its branches when it is written and read again.
func FuzzParseLineage(f *testing.F) {
	for _, text := range []string{"1\t0/3000148\tno recovery target specified\n", "# comment\n\n1\t0/1\tx\n2\tFF/FFFFFFFF\ty", "1", "x\t0/1", "1\t0/", "99999999999999999999\t0/1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		lineage, err := parseLineage(text)
		if err != nil {
			return
		}
		again, err := parseLineage(strings.ReplaceAll(lineage.String(), ";", "\n"))
		if err != nil || !slices.Equal(again, lineage) {
			t.Errorf("%q: %v is read again as %v, %v", text, lineage, again, err)
		}
	})
}

// A list of standbys that is read keeps its names when they are quoted and read again.
func FuzzParseStandbys(f *testing.F) {
	for _, text := range []string{"", "*", "a, b", "FIRST 2 (a, \"b\"\"c\")", "ANY 1 (*)", "2 (a, b)", "first", "\"", "((", ")", "a,,b", "FIRST 1 (", "3 ()"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		names, err := parseStandbys(text)
		if err != nil {
			return
		}
		quoted := make([]string, len(names))
		for i, name := range names {
			quoted[i] = `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
		}
		again, err := parseStandbys(strings.Join(quoted, ", "))
		if err != nil || !slices.Equal(again, names) {
			t.Errorf("%q: %q is read again as %q, %v", text, names, again, err)
		}
	})
}

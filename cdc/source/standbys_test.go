package source

import (
	"slices"
	"testing"
)

func TestParseStandbys(t *testing.T) {
	t.Parallel()
	for value, want := range map[string][]string{
		"":                                 nil,
		"*":                                {"*"},
		"s1, s2":                           {"s1", "s2"},
		"  s1\t,\n*":                       {"s1", "*"},
		"1 (*)":                            {"*"},
		"2(s1,s2 , s3)":                    {"s1", "s2", "s3"},
		"FIRST 1 (s1, \"db-2:/a (b), c\")": {"s1", "db-2:/a (b), c"},
		"first 2 (s1)":                     {"s1"},
		"Any 1 (s1,*)":                     {"s1", "*"},
		"any, first":                       {"any", "first"},
		"any":                              {"any"},
		`"any" , "1 (*)"`:                  {"any", "1 (*)"},
		`"a ""quoted"" name",b`:            {`a "quoted" name`, "b"},
		"1, 22":                            {"1", "22"},
		"s_1$, été":                        {"s_1$", "été"},
		"2 (1, 2)":                         {"1", "2"},
		`"*"`:                              {"*"}, // Postgres compares the names alone
	} {
		got, err := parseStandbys(value)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("parseStandbys(%q) = %q, %v; want %q", value, got, err, want)
		}
	}
	for _, value := range []string{`"a`, "1 (a", "a b", "a,", "(", "a;b", "1 ()x", "FIRST 1 (a)(b)"} {
		if got, err := parseStandbys(value); err == nil {
			t.Errorf("parseStandbys(%q) = %q, want an error", value, got)
		}
	}
}

package source

import (
	"testing"
)

func TestParseLineage(t *testing.T) {
	t.Parallel()
	got, err := parseLineage("1\t0/3000148\tno recovery target specified\n\n# a comment\n2\t1/A0\tbefore 2000-01-01 00:00:00+00\n")
	if err != nil || got.String() != "1 0/3000148;2 1/A0;" {
		t.Errorf("read %q, %v", got, err)
	}
	for _, bad := range []string{"x\t0/1\t", "1x\t0/1\t", "-1\t0/1\t", "4294967296\t0/1\t", "1\n", "1\t0-1\t"} {
		if _, err := parseLineage(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

package config

import "testing"

func TestParseReserve(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Reserve{
		"512MB": {Bytes: 512_000_000}, "2GiB": {Bytes: 2 << 30}, "1.5 gb": {Bytes: 1_500_000_000}, "700B": {Bytes: 700},
		"5%": {Percent: 5}, "0.5 %": {Percent: 0.5}, "0": {Bytes: -1}, "0MB": {Bytes: -1}, "0%": {Bytes: -1},
	} {
		if got, err := parseReserve(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "512", "MB", "-1MB", "100%", "-5%", "NaN%", "NaNMB", "5MBs", "1e40GB", "five"} {
		if got, err := parseReserve(text); err == nil {
			t.Errorf("%q is read as %+v", text, got)
		}
	}
}

package config

import (
	"testing"
	"time"
)

func TestParseHistory(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"7d": 7 * 24 * time.Hour, "12h": 12 * time.Hour, "1d12h": 36 * time.Hour, "0.5d": 12 * time.Hour, "90m": 90 * time.Minute, "1w": 7 * 24 * time.Hour, "1w 1d 1h": (8*24 + 1) * time.Hour, "0": 0,
	} {
		if got, err := ParseDuration(text); err != nil || got != want {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "d", "7", "-1d", "NaNd", "1e9d", "7d-1h", "7d1w", "-5m", "nanw", "101y", "99999w", "weekly"} {
		if got, err := ParseDuration(text); err == nil {
			t.Errorf("%q is read as %v", text, got)
		}
	}
	for text, want := range map[string]Size{"256MB": 256_000_000, "1 GiB": 1 << 30, "0": 0, "0MB": 0, "700b": 700} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "512", "5%", "-1MB", "MB", "1e40GB"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q is read as %d", text, got)
		}
	}
}

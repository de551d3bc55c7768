package replication

import (
	"testing"
	"time"
)

func TestStatusEvery(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"1min": time.Second, "2s": 2 * time.Second / 3, "500ms": 500 * time.Millisecond / 3, "0": time.Second,
		"1h": time.Second, "1d": time.Second, "nonsense": time.Second / 3, "60000": time.Second / 3, "": time.Second / 3,
	} {
		if got := StatusInterval(parseDuration(text)); got != want {
			t.Errorf("wal_sender_timeout %s: every %s, want %s", text, got, want)
		}
	}
}

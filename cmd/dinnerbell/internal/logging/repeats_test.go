package logging

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// An outage is one line when it begins, one a minute while it lasts, with the last cause,
// and the line of the recovery, however the attempts fail and whoever makes them.
func TestOutageIsOneLineAMinute(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		log := New(&out, "info", "text", hide).With("part", "stream")
		kafka := log.With("said", "unable to open connection to broker")
		for i := range 175 {
			log.Warn("lane session ended", "lane", i%4, "error", fmt.Errorf("cause %d%c", i, 'a'+i%26), "again_in", time.Second)
			log.Warn("consumer group", "group", "g", "error", errors.New("cannot join"))
			kafka.Warn("kafka client", "error", "refused", "broker", i)
			if i == 90 {
				log.Info("checkpoint", "lsn", "0/1")
				log.Error("lane halted", "lane", 7)
			}
			time.Sleep(time.Second) //nolint:forbidigo // synctest's clock
		}
		log.Info("lane taken over", "lane", 1)
		log.Info("lane taken over", "lane", 2)
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		want := []string{"cause 0a", "attempts=181 for=1m0s", "checkpoint", "lane halted", "attempts=361 for=2m0s", "lane=1 attempts=525 after=2m55s", "lane=2"}
		if len(lines) != len(want) {
			t.Fatalf("%d lines:\n%s", len(lines), out.String())
		}
		for i, text := range want {
			if !strings.Contains(lines[i], text) {
				t.Errorf("line %d lacks %q: %s", i, text, lines[i])
			}
		}
		if strings.Contains(lines[6], "attempts") {
			t.Errorf("the outage ends twice: %s", lines[6])
		}
	})
}

// A part that works for a moment and fails again does not fill the log.
func TestFlappingPartIsFolded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		log := New(&out, "info", "text", hide).With("part", "stream")
		for i := range 120 {
			log.Warn("lane session ended", "lane", 0, "error", "refused", "again_in", i)
			time.Sleep(500 * time.Millisecond) //nolint:forbidigo // synctest's clock
			log.Info("lane taken over", "lane", 0)
			time.Sleep(500 * time.Millisecond) //nolint:forbidigo // synctest's clock
		}
		if got := strings.Count(out.String(), "session ended"); got > 13 {
			t.Errorf("%d lines of failures in two minutes", got)
		}
		if got := strings.Count(out.String(), "taken over"); got > 15 {
			t.Errorf("%d lines of recoveries in two minutes", got)
		}
	})
}

// What Kafka's client says of a broker that it lost is no news while it finds another,
// and is written if that lasts.
func TestKafkaClientIsHeardLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		log := New(&out, "info", "text", hide).With("part", "stream")
		kafka := log.With("said", "read from broker errored")
		for range 9 {
			kafka.Warn("kafka client", "error", "EOF")
			time.Sleep(time.Second) //nolint:forbidigo // synctest's clock
		}
		if out.Len() > 0 {
			t.Errorf("at once: %s", out.String())
		}
		for range 9 {
			kafka.Warn("kafka client", "error", "EOF")
			time.Sleep(time.Second) //nolint:forbidigo // synctest's clock
		}
		if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "for=10s") {
			t.Errorf("later: %s", got)
		}
		time.Sleep(time.Hour) //nolint:forbidigo // synctest's clock
		out.Reset()
		log.Warn("consumer group", "group", "g", "error", "refused")
		if got := out.String(); strings.Count(got, "\n") != 1 || strings.Contains(got, "attempts") {
			t.Errorf("after an hour: %s", got)
		}
	})
}

package stream

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"dinnerbell/stream/sink"
)

// Campaigns fire by this machine's clock: the start warns of a clock that is wrong.
func TestWrongClockIsNamed(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, nil)
	conn, err := w.cfg.Sink.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer sink.CloseConn(conn)
	for name, c := range map[string]struct {
		ahead time.Duration
		said  bool
	}{
		"right": {0, false}, "an hour ahead": {time.Hour, true}, "an hour behind": {-time.Hour, true},
	} {
		var log bytes.Buffer
		cfg := w.cfg
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		svc := New(cfg, w.store, w.barrier)
		if err := svc.checkClock(t.Context(), conn, func() time.Time { return time.Now().Add(c.ahead) }); err != nil {
			t.Fatal(err)
		}
		if said := strings.Contains(log.String(), "clock"); said != c.said {
			t.Errorf("%s: log is %q", name, log.String())
		}
		if skew := svc.Status().ClockSkew; (skew - c.ahead).Abs() > time.Second {
			t.Errorf("%s: skew is %s", name, skew)
		}
	}
}

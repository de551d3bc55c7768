package stream

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
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
		svc.now = func() time.Time { return time.Now().Add(c.ahead) }
		if err := svc.checkClock(t.Context(), conn); err != nil {
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

// A clock that goes wrong after the start is noticed, and named once until it is right again.
func TestClockThatGoesWrongLaterIsNamed(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, nil)
	var log bytes.Buffer // read when the watch has ended
	cfg := w.cfg
	cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
	svc := New(cfg, w.store, w.barrier)
	var clock testClock
	var looks atomic.Int64
	svc.now = func() time.Time { looks.Add(1); return clock.now() } // twice a look
	svc.clockEvery = 5 * time.Millisecond
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- svc.watchClock(ctx) }()
	for _, ahead := range []time.Duration{0, -time.Hour, 0} {
		clock.set(ahead)
		from := looks.Load()
		envtest.Until(t, envtest.Patience, func() error {
			if n := looks.Load() - from; n < 10 || (svc.Status().ClockSkew-ahead).Abs() > time.Second {
				return fmt.Errorf("%d looks, skew %s", n, svc.Status().ClockSkew)
			}
			return nil
		})
	}
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if said := log.String(); strings.Count(said, "is not Postgres'") != 1 || strings.Count(said, "agrees with Postgres' again") != 1 || strings.Count(said, "\n") != 2 {
		t.Errorf("log is %s", said)
	}
}

// testClock is this machine's clock, set forward or back, or a clock that stands still.
type testClock struct {
	ahead  atomic.Int64
	stands atomic.Pointer[time.Time]
}

func (c *testClock) now() time.Time {
	if t := c.stands.Load(); t != nil {
		return *t
	}
	return time.Now().Add(time.Duration(c.ahead.Load()))
}

// set moves the clock to a distance from this machine's.
func (c *testClock) set(ahead time.Duration) { c.ahead.Store(int64(ahead)) }

// stand stops the clock at a time.
func (c *testClock) stand(at time.Time) { c.stands.Store(&at) }

// A clock that jumps by hours loses no campaign and repeats none. A start that passed
// meanwhile, or during downtime, counts at once.
func TestClockThatJumps(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 20)})
	w.clock = &testClock{}
	svc, stop := w.start()
	w.awaitReady(svc)
	begin := time.Now().Truncate(time.Second)
	want := map[string][]string{}
	send := func(id string, start time.Duration) {
		c := w.campaign(id, "r1")
		c.Start, c.End = begin.Add(start).Unix(), begin.Add(24*time.Hour).Unix()
		w.produce(0, encodeCampaign(c))
	}
	expect := func(ids ...string) {
		t.Helper()
		for _, id := range ids {
			want[id] = w.subs["r1"]
		}
		w.expect(want)
	}
	send("half an hour", time.Hour/2)
	send("two hours", 2*time.Hour)
	send("three hours", 3*time.Hour)
	send("five hours", 5*time.Hour)
	send("now", 0)
	expect("now")
	w.clock.set(2*time.Hour + time.Minute)
	expect("half an hour", "two hours")
	w.clock.set(time.Hour)
	send("one hour", time.Hour)
	send("within the hour", 90*time.Minute)
	send("beyond the hour", 150*time.Minute) // the starts up to there were read before the clock was set back
	expect("one hour")
	w.clock.set(151 * time.Minute)
	expect("within the hour", "beyond the hour")
	stop()
	w.clock.set(4 * time.Hour)
	svc, _ = w.start()
	expect("three hours")
	w.clock.set(6 * time.Hour)
	expect("five hours")
	for _, n := range w.rows() {
		if n.trigger < n.Start {
			t.Errorf("campaign %s was decided %d s before its start", n.ID, n.Start-n.trigger)
		}
	}
	w.checkLanes(svc)
}

package sink

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// slowClock is a Postgres whose answers take the given times. Its clock is as far behind
// ours as behind says, and it is read as soon as the question leaves us.
type slowClock struct {
	Querier

	now    time.Time
	takes  []time.Duration
	behind time.Duration
	asked  int
}

func (c *slowClock) QueryRow(context.Context, string, ...any) pgx.Row {
	read := c.now.Add(-c.behind)
	c.now = c.now.Add(c.takes[min(c.asked, len(c.takes)-1)])
	c.asked++
	return clockRow(read)
}

// clockRow is the answer.
type clockRow time.Time

func (r clockRow) Scan(into ...any) error {
	at, ok := into[0].(*time.Time)
	if !ok {
		return errors.New("not a time")
	}
	*at = time.Time(r)
	return nil
}

// A slow answer makes the difference uncertain. The quickest of several answers counts,
// and one that is quick enough ends the measurement.
func TestQuickestAnswerTellsTheClock(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		takes     []time.Duration
		skew, off time.Duration
		asked     int
	}{
		"a quick one":        {[]time.Duration{2 * time.Millisecond}, 3*time.Second + time.Millisecond, time.Millisecond, 1},
		"slow, then quick":   {[]time.Duration{2 * time.Second, 2 * time.Millisecond}, 3*time.Second + time.Millisecond, time.Millisecond, 2},
		"the best of slow":   {[]time.Duration{2 * time.Second, 400 * time.Millisecond, time.Second}, 3*time.Second + 200*time.Millisecond, 200 * time.Millisecond, 3},
		"slow from the best": {[]time.Duration{300 * time.Millisecond, 400 * time.Millisecond}, 3*time.Second + 150*time.Millisecond, 150 * time.Millisecond, 3},
	} {
		clock := &slowClock{now: time.Unix(1_800_000_000, 0), takes: tc.takes, behind: 3 * time.Second}
		skew, off, err := ClockSkew(t.Context(), clock, func() time.Time { return clock.now })
		if err != nil || skew != tc.skew || off != tc.off || clock.asked != tc.asked {
			t.Errorf("%s: %s, off by at most %s, in %d questions, %v; want %s, %s, %d", name, skew, off, clock.asked, err, tc.skew, tc.off, tc.asked)
		}
	}
}

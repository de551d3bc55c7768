package demo

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/internal/testenv"
)

const (
	killEvery    = 10 * time.Second
	compareAfter = 3 * time.Second // after a kill
	burst        = 3               // campaigns that are sent right before a kill
	killsOnce    = 2               // with Once
)

// chaosResult is a comparison in the output of `demo --chaos --json`; scripts read its keys.
type chaosResult struct {
	Kills         int   `json:"kills"`
	Campaigns     int   `json:"campaigns"`     // sent so far
	Notifications int   `json:"notifications"` // records that a read_committed consumer sees
	FeedbackRows  int64 `json:"feedback_rows"`
	Missing       int64 `json:"missing"`    // in either sink
	Doubled       int64 `json:"duplicates"` // in either sink
}

// chaos kills the daemon now and then, and compares the sinks.
type chaos struct {
	next, compare    time.Time // of the next kill and comparison; zero: none is due
	kills, compared  int
	missing, doubled int64 // of the last comparison
}

// prepare makes the tables of the comparison.
func (c *chaos) prepare(ctx context.Context, d *deployment) error {
	for _, sql := range []string{checkTables, expectView} {
		if _, err := d.db.Exec(ctx, sql); err != nil {
			return fmt.Errorf("create tables of the comparison: %w", err)
		}
	}
	c.next = time.Now().Add(killEvery / 2)
	return nil
}

// runChaos kills or compares if that is due; over after the last comparison of Once.
func (t *liveTable) runChaos(ctx context.Context, r *rand.Rand, now time.Time) (over bool, err error) {
	c := &t.chaos
	switch {
	case !c.compare.IsZero() && now.After(c.compare):
		c.compare = time.Time{}
		c.next = now.Add(killEvery - compareAfter)
		err = t.compareSinks(ctx)
		return t.w.opts.Once && c.kills >= killsOnce, err
	case c.compare.IsZero() && !c.next.IsZero() && now.After(c.next):
		c.compare = now.Add(compareAfter)
		return false, t.killDaemon(ctx, r)
	}
	return false, nil
}

// killDaemon sends a few campaigns, kills the daemon within the first moments of their
// fan-out, and starts it again on the same state.
func (t *liveTable) killDaemon(ctx context.Context, r *rand.Rand) error {
	d := t.w
	for k := range burst {
		if err := t.send(ctx, k, r); err != nil { // the largest audiences
			return err
		}
	}
	testenv.Pause(ctx, time.Duration(r.IntN(100))*time.Millisecond)
	pid, began := d.daemon.PID(), time.Now()
	if err := d.daemon.Kill(); err != nil {
		return fmt.Errorf("kill daemon: %w", err)
	}
	t.chaos.kills++
	d.sayChaos(terminal.Yellow, "kill -9 %d: the daemon is gone, %d campaigns are under way", pid, len(t.open))
	if err := d.launchDaemon(ctx); err != nil {
		return err
	}
	d.sayChaos(terminal.Yellow, "started again on its state, ready after %.1f s", time.Since(began).Seconds())
	return nil
}

// compareSinks waits until all campaigns are delivered, and compares topic and table with
// a join in SQL.
func (t *liveTable) compareSinks(ctx context.Context) error {
	d := t.w
	if n := len(t.open); n > 0 {
		d.sayChaos(terminal.Yellow, "the comparison waits until all is delivered; %d campaigns are under way", n)
	}
	if _, err := d.awaitSettled(ctx, time.Now()); err != nil {
		if ctx.Err() != nil {
			return err
		}
		d.sayf("comparing all the same: %v", err) // the comparison counts them
	}
	if _, err := d.db.Exec(ctx, "TRUNCATE demo.received"); err != nil {
		return fmt.Errorf("empty table of the comparison: %w", err)
	}
	res, _, err := d.checkResult(ctx, 0)
	if err != nil {
		return err
	}
	c := &t.chaos
	c.compared++
	c.missing, c.doubled = res.Missing, res.Duplicates
	if d.opts.JSON {
		err = d.printJSON(chaosResult{Kills: c.kills, Campaigns: t.sent, Notifications: res.Notifications, FeedbackRows: res.FeedbackRows, Missing: res.Missing, Doubled: res.Duplicates})
	}
	colour := terminal.Green
	if c.missing+c.doubled > 0 {
		colour = terminal.Red
	}
	d.sayChaos(colour, "%d kills, %s notifications in both sinks: missing %d, doubled %d", c.kills, terminal.Thousands(int64(res.Notifications)), c.missing, c.doubled)
	if c.missing+c.doubled > 0 {
		return ErrWrong
	}
	return err
}

// sayChaos prints a line between those of the campaigns, or of the messages with JSON.
func (d *deployment) sayChaos(colour terminal.Colour, format string, args ...any) { //nolint:goprintffuncname // as sayf
	text := fmt.Sprintf(format, args...)
	if d.opts.JSON {
		d.sayf("%s", text)
		return
	}
	_, _ = fmt.Fprintf(d.opts.Stdout, "%-8s  %s\n", time.Now().Format(rowTimeFmt), d.opts.Style.Paint(colour, text)) // the next row reports a failing output
}

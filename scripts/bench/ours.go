package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/workload"
)

// ours is dinnerbell as a contender: the real daemon as a process, the clock
// from the first campaign's produce until the last notification is committed in
// both sinks.
type ours struct {
	d        *deployment
	producer *producer
	perf     string // folder for profiles; empty: none

	records []*kgo.Record
	shipped int64 // before the run
	total   int64 // delivered in all runs, for the check at the end
}

func (o *ours) prepare(ctx context.Context, l *load) error {
	if err := o.d.start(ctx); err != nil {
		return err
	}
	o.records = encode(o.d.in, l)
	if err := o.warmUp(ctx, l); err != nil {
		return err
	}
	if err := o.d.db.reset(ctx); err != nil {
		return err
	}
	if err := o.d.catchUp(ctx); err != nil {
		return err
	}
	st, err := o.d.status(ctx)
	o.shipped = st.Notifications.Shipped
	return err
}

// warmUp delivers one small campaign per lane: a daemon that has just started
// has connections to open and statements to prepare.
func (o *ours) warmUp(ctx context.Context, l *load) error {
	for lane := range l.lanes {
		c := l.campaigns[0]
		c.lane = int32(lane)
		c.ID, c.Restaurant = fmt.Sprintf("%s-warm-%d", c.ID, lane), workload.RestaurantID(maxLanes+lane) // of the hundreds
		st, err := o.d.status(ctx)
		if err != nil {
			return err
		}
		records := encode(o.d.in, &load{campaigns: []campaign{c}})
		if err := o.producer.send(ctx, records...); err != nil {
			return err
		}
		if err := o.d.awaitShipped(ctx, st.Notifications.Shipped+100); err != nil {
			return err
		}
		o.total += 100
	}
	return nil
}

func (o *ours) deliver(ctx context.Context, l *load) (err error) {
	if o.perf != "" {
		stop, err := profile(o.perf, o.d.daemon.PID())
		if err != nil {
			return err
		}
		defer stop()
	}
	if err := o.producer.send(ctx, o.records...); err != nil {
		return err
	}
	return o.d.awaitShipped(ctx, o.shipped+int64(l.total))
}

// settle counts the rows; the topic is counted once at the end.
func (o *ours) settle(ctx context.Context, l *load) error {
	o.total += int64(l.total)
	rows, err := o.d.db.count(ctx, "public.subscribers_feedback")
	if err != nil {
		return err
	}
	if rows != int64(l.total) {
		return fmt.Errorf("check feedback table: %d rows for %d notifications", rows, l.total)
	}
	return o.d.stop()
}

func (o *ours) pid() int { return o.d.daemon.PID() }

// profile records what a process does until stop is called: Go programs keep
// frame pointers, so perf sees their stacks.
func profile(dir string, pid int) (stop func(), err error) {
	out := filepath.Join(dir, fmt.Sprintf("daemon-%s.perf", time.Now().Format("150405.000")))
	cmd := exec.Command("perf", "record", "-q", "-F", "499", "-g", "-p", strconv.Itoa(pid), "-o", out)
	cmd.SysProcAttr = testenv.ChildAttributes(syscall.SIGKILL)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start perf: %w", err)
	}
	return func() {
		_ = cmd.Process.Signal(os.Interrupt) // it writes the file and ends
		_ = cmd.Wait()                       // "signal: interrupt"
	}, nil
}

// check reads the whole topic: each notification once.
func (o *ours) check(ctx context.Context) error {
	records, distinct, err := tally(ctx, o.d.broker, o.d.out)
	if err != nil {
		return err
	}
	if records != o.total || distinct != o.total {
		return fmt.Errorf("check topic %s: %d records, %d different, for %d notifications", o.d.out, records, distinct, o.total)
	}
	return nil
}

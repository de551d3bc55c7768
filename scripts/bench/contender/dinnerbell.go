package contender

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
	"dinnerbell/scripts/bench/deployment"
)

// Dinnerbell is dinnerbell as a contender: the real daemon as a process, the clock
// from the first campaign's produce until the last notification is committed in
// both sinks.
type Dinnerbell struct {
	Deployment *deployment.Deployment
	Producer   *deployment.CampaignProducer
	ProfileDir string // folder for profiles; empty: none

	Records       []*kgo.Record
	ShippedBefore int64 // before the run
	Total         int64 // delivered in all runs, for the check at the end
}

func (o *Dinnerbell) Prepare(ctx context.Context, l *CampaignLoad) error {
	if err := o.Deployment.Start(ctx); err != nil {
		return err
	}
	o.Records = EncodeRecords(o.Deployment.CampaignsTopic, l)
	if err := o.deliverWarmUp(ctx, l); err != nil {
		return err
	}
	if err := o.Deployment.Database.ResetFeedback(ctx); err != nil {
		return err
	}
	if err := o.Deployment.CatchUp(ctx); err != nil {
		return err
	}
	st, err := o.Deployment.Status(ctx)
	o.ShippedBefore = st.Notifications.Shipped
	return err
}

// deliverWarmUp delivers one small campaign per lane: a daemon that has just started
// has connections to open and statements to prepare.
func (o *Dinnerbell) deliverWarmUp(ctx context.Context, l *CampaignLoad) error {
	for lane := range l.Lanes {
		c := l.Campaigns[0]
		c.lane = int32(lane)
		c.ID, c.Restaurant = fmt.Sprintf("%s-warm-%d", c.ID, lane), workload.RestaurantID(deployment.MaxLanes+lane) // of the hundreds
		st, err := o.Deployment.Status(ctx)
		if err != nil {
			return err
		}
		records := EncodeRecords(o.Deployment.CampaignsTopic, &CampaignLoad{Campaigns: []Campaign{c}})
		if err := o.Producer.Send(ctx, records...); err != nil {
			return err
		}
		if err := o.Deployment.AwaitShipped(ctx, st.Notifications.Shipped+100); err != nil {
			return err
		}
		o.Total += 100
	}
	return nil
}

func (o *Dinnerbell) Deliver(ctx context.Context, l *CampaignLoad) (err error) {
	if o.ProfileDir != "" {
		stop, err := StartProfile(o.ProfileDir, o.Deployment.Daemon.PID())
		if err != nil {
			return err
		}
		defer stop()
	}
	if err := o.Producer.Send(ctx, o.Records...); err != nil {
		return err
	}
	return o.Deployment.AwaitShipped(ctx, o.ShippedBefore+int64(l.Total))
}

// Settle counts the rows; the topic is counted once at the end.
func (o *Dinnerbell) Settle(ctx context.Context, l *CampaignLoad) error {
	o.Total += int64(l.Total)
	rows, err := o.Deployment.Database.CountRows(ctx, "public.subscribers_feedback")
	if err != nil {
		return err
	}
	if rows != int64(l.Total) {
		return fmt.Errorf("check feedback table: %d rows for %d notifications", rows, l.Total)
	}
	return o.Deployment.Stop()
}

func (o *Dinnerbell) PID() int { return o.Deployment.Daemon.PID() }

// StartProfile records what a process does until stop is called: Go programs keep
// frame pointers, so perf sees their stacks.
func StartProfile(dir string, pid int) (stop func(), err error) {
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

// CheckTopic reads the whole topic: each notification once.
func (o *Dinnerbell) CheckTopic(ctx context.Context) error {
	records, distinct, err := deployment.CountRecords(ctx, o.Deployment.Broker, o.Deployment.NotificationsTopic)
	if err != nil {
		return err
	}
	if records != o.Total || distinct != o.Total {
		return fmt.Errorf("check topic %s: %d records, %d different, for %d notifications", o.Deployment.NotificationsTopic, records, distinct, o.Total)
	}
	return nil
}

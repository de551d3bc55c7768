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
	"dinnerbell/scripts/bench/deployment"
)

// Dinnerbell is the daemon as a contender. The clock runs from the produce of
// the first campaign until the last notification is committed in both sinks.
type Dinnerbell struct {
	Deployment *deployment.Deployment
	Producer   *deployment.CampaignProducer
	ProfileDir string // folder for profiles; empty: none

	Records       []*kgo.Record
	ShippedBefore int64 // notifications shipped before the run
	Total         int64 // notifications of all runs, for CheckTopic
}

// Prepare implements Contender.
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

// deliverWarmUp delivers one small campaign per lane: a daemon that has just
// started has connections to open and statements to prepare.
func (o *Dinnerbell) deliverWarmUp(ctx context.Context, l *CampaignLoad) error {
	for lane := range l.Lanes {
		st, err := o.Deployment.Status(ctx)
		if err != nil {
			return err
		}
		records := EncodeRecords(o.Deployment.CampaignsTopic, warmUpLoad(l, lane))
		if err := o.Producer.Send(ctx, records...); err != nil {
			return err
		}
		if err := o.Deployment.AwaitShipped(ctx, st.Notifications.Shipped+warmUpAudience); err != nil {
			return err
		}
		o.Total += warmUpAudience
	}
	return nil
}

// Deliver implements Contender.
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

// Settle counts the rows; CheckTopic counts the records at the end.
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

// PID implements Contender.
func (o *Dinnerbell) PID() int { return o.Deployment.Daemon.PID() }

// StartProfile records the stacks of a process until stop is called. Go
// programs keep frame pointers, which perf needs.
func StartProfile(dir string, pid int) (stop func(), err error) {
	out := filepath.Join(dir, fmt.Sprintf("daemon-%s.perf", time.Now().Format("150405.000")))
	cmd := exec.Command("perf", "record", "-q", "-F", "499", "-g", "-p", strconv.Itoa(pid), "-o", out)
	cmd.SysProcAttr = testenv.ChildAttributes(syscall.SIGKILL)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start perf: %w", err)
	}
	return func() {
		_ = cmd.Process.Signal(os.Interrupt) // perf writes the file and ends
		_ = cmd.Wait()                       // "signal: interrupt"
	}, nil
}

// CheckTopic reads the whole topic: each notification must be there once.
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

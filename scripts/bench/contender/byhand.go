package contender

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv/workload"
	"dinnerbell/scripts/bench/deployment"
)

// ByHand is a consumer as an engineer would write it by hand. The clock stops
// when its rows are committed and its records acknowledged.
type ByHand struct {
	servers                            *deployment.Servers
	program                            string
	Broker                             string
	Database                           *deployment.Database
	dir                                string
	CampaignsTopic, NotificationsTopic string
	Producer                           *deployment.CampaignProducer

	Process   *deployment.Child
	Records   []*kgo.Record
	EndBefore int64 // end offset of NotificationsTopic before the run
}

// NewByHand makes a database with the population, the topics and the process's
// folder.
func NewByHand(ctx context.Context, s *deployment.Servers, program, name, broker string, p *deployment.CampaignProducer, t *deployment.Population) (*ByHand, error) {
	b := &ByHand{servers: s, program: program, Broker: broker, dir: filepath.Join(s.Dir, name), CampaignsTopic: name + ".campaigns", NotificationsTopic: name + ".notifications", Producer: p}
	if err := os.MkdirAll(b.dir, 0o750); err != nil {
		return nil, fmt.Errorf("make folder of %s: %w", name, err)
	}
	var err error
	if b.Database, err = s.NewDatabase(ctx, name); err != nil {
		return nil, err
	}
	// Fill ends with the VACUUM that index-only scans need.
	if err := b.Database.Fill(ctx, t); err != nil {
		return nil, err
	}
	// The index for its look-ups, and the unique index that every contender
	// has.
	for _, sql := range []string{lookUpIndex, deployment.FeedbackIndex} {
		if err := b.Database.Exec(ctx, sql); err != nil {
			return nil, err
		}
	}
	return b, p.CreateTopics(ctx, b.CampaignsTopic, b.NotificationsTopic)
}

// lookUpIndex is the output of `byhand -print-index`.
const lookUpIndex = `CREATE INDEX subscribers_restaurants_look_up ON public.subscribers_restaurants (restaurant_id, client_id)`

// Launch starts the process, which begins with the records left in its topic.
func (b *ByHand) Launch() error {
	var err error
	b.Process, err = deployment.StartChild(filepath.Join(b.dir, "byhand.log"), b.program, "-postgres", b.Database.URL, "-broker", b.Broker,
		"-campaigns", b.CampaignsTopic, "-notifications", b.NotificationsTopic, "-group", b.CampaignsTopic)
	return err
}

// Start starts the process and returns after its first delivery.
func (b *ByHand) Start(ctx context.Context) error {
	if b.Process != nil {
		return nil
	}
	if err := b.Launch(); err != nil {
		return err
	}
	c, err := newCampaign(workload.RestaurantID(deployment.MaxLanes), 0, 100)
	if err != nil {
		return err
	}
	return b.deliverWarmUp(ctx, &CampaignLoad{Campaigns: []Campaign{c}, Lanes: 1})
}

// Prepare implements Contender.
func (b *ByHand) Prepare(ctx context.Context, l *CampaignLoad) error {
	if b.Process == nil {
		if err := b.Launch(); err != nil {
			return err
		}
	}
	b.Records = EncodeRecords(b.CampaignsTopic, l)
	if err := b.deliverWarmUp(ctx, l); err != nil {
		return err
	}
	if err := b.Database.ResetFeedback(ctx); err != nil {
		return err
	}
	var err error
	b.EndBefore, err = b.Producer.EndOffset(ctx, b.NotificationsTopic)
	return err
}

// deliverWarmUp delivers one small campaign per partition, as for the daemon.
// The delivery also shows that the process has joined its group.
func (b *ByHand) deliverWarmUp(ctx context.Context, l *CampaignLoad) error {
	for lane := range l.Lanes {
		records := EncodeRecords(b.CampaignsTopic, warmUpLoad(l, lane))
		before, err := b.Producer.EndOffset(ctx, b.NotificationsTopic)
		if err != nil {
			return err
		}
		if err := b.Producer.Send(ctx, records...); err != nil {
			return err
		}
		if err := b.AwaitEndOffset(ctx, before+warmUpAudience); err != nil {
			return err
		}
	}
	return nil
}

// AwaitEndOffset waits until the output topic holds n records. The topic has no
// transactions, so offsets count records.
func (b *ByHand) AwaitEndOffset(ctx context.Context, n int64) error {
	return b.Process.AwaitCount(ctx, n, func() (int64, error) { return b.Producer.EndOffset(ctx, b.NotificationsTopic) })
}

// AwaitCommitted waits until the group has committed the end of the input.
func (b *ByHand) AwaitCommitted(ctx context.Context) error {
	end, err := b.Producer.EndOffset(ctx, b.CampaignsTopic)
	if err != nil {
		return err
	}
	return b.Process.AwaitCount(ctx, end, func() (int64, error) {
		offsets, err := b.Producer.Admin.FetchOffsets(ctx, b.CampaignsTopic)
		sum := int64(0)
		offsets.Each(func(o kadm.OffsetResponse) { sum += max(o.At, 0) })
		return sum, err
	})
}

// Deliver implements Contender.
func (b *ByHand) Deliver(ctx context.Context, l *CampaignLoad) error {
	if err := b.Producer.Send(ctx, b.Records...); err != nil {
		return err
	}
	return b.AwaitEndOffset(ctx, b.EndBefore+int64(l.Total))
}

// Settle implements Contender.
func (b *ByHand) Settle(ctx context.Context, l *CampaignLoad) error {
	rows, err := b.Database.CountRows(ctx, "public.subscribers_feedback")
	if err == nil && rows != int64(l.Total) {
		err = fmt.Errorf("check feedback table of byhand: %d rows for %d notifications", rows, l.Total)
	}
	if err != nil {
		return err
	}
	return b.Stop()
}

// Stop ends the process; b may be nil.
func (b *ByHand) Stop() error {
	if b == nil || b.Process == nil {
		return nil
	}
	c := b.Process
	b.Process = nil
	return c.Stop(deployment.StopLimit)
}

// PID implements Contender.
func (b *ByHand) PID() int { return b.Process.PID() }

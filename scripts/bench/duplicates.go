package main

import (
	"context"
	"fmt"

	"dinnerbell/scripts/bench/contender"
	"dinnerbell/scripts/bench/deployment"
)

// measureDuplicates kills both contenders with SIGKILL in the middle of a large
// campaign, starts them again and counts the notifications that are in the
// topic twice. A missing notification is an error.
func (st *stage) measureDuplicates(ctx context.Context) error {
	l, err := contender.NewLoad(&st.people, deployment.KindLarge, 1, 1, false)
	if err != nil {
		return err
	}
	if err := st.killOurs(ctx, l); err != nil {
		return fmt.Errorf("dinnerbell: %w", err)
	}
	doubled, err := st.killByHand(ctx, l)
	if err != nil {
		return fmt.Errorf("by hand: %w", err)
	}
	// The check at the end of the stage shows that the daemon's topic has no
	// duplicates.
	st.report.Add("by_hand_duplicates", "notifications", []float64{doubled}, "")
	return nil
}

func (st *stage) killOurs(ctx context.Context, l *contender.CampaignLoad) error {
	if err := st.dinnerbell.Prepare(ctx, l); err != nil {
		return err
	}
	if err := st.producer.Send(ctx, st.dinnerbell.Records...); err != nil {
		return err
	}
	if err := st.deployment.AwaitShipped(ctx, st.dinnerbell.ShippedBefore+int64(l.Total/3)); err != nil {
		return err
	}
	if err := st.deployment.Kill(); err != nil {
		return err
	}
	if err := st.deployment.Start(ctx); err != nil {
		return err
	}
	if err := st.deployment.AwaitShipped(ctx, st.dinnerbell.ShippedBefore+int64(l.Total)); err != nil {
		return err
	}
	return st.dinnerbell.Settle(ctx, l)
}

func (st *stage) killByHand(ctx context.Context, l *contender.CampaignLoad) (doubled float64, err error) {
	b := st.byhand
	if err := b.Prepare(ctx, l); err != nil {
		return 0, err
	}
	// Earlier campaigns must not come again, since their records would be
	// counted, too.
	if err := b.AwaitCommitted(ctx); err != nil {
		return 0, err
	}
	_, distinctBefore, err := deployment.CountRecords(ctx, b.Broker, b.NotificationsTopic)
	if err != nil {
		return 0, err
	}
	if err := st.producer.Send(ctx, b.Records...); err != nil {
		return 0, err
	}
	if err := b.AwaitEndOffset(ctx, b.EndBefore+int64(l.Total/3)); err != nil {
		return 0, err
	}
	if err := b.Process.Kill(); err != nil {
		return 0, err
	}
	b.Process = nil
	if err := b.Launch(); err != nil {
		return 0, err
	}
	// The consumer begins the campaign again, so all notifications come again.
	cut, err := b.Producer.EndOffset(ctx, b.NotificationsTopic)
	if err != nil {
		return 0, err
	}
	if err := b.AwaitEndOffset(ctx, cut+int64(l.Total)); err != nil {
		return 0, err
	}
	if err := b.Settle(ctx, l); err != nil {
		return 0, err
	}
	records, distinct, err := deployment.CountRecords(ctx, b.Broker, b.NotificationsTopic)
	if err != nil {
		return 0, err
	}
	if got := distinct - distinctBefore; got != int64(l.Total) {
		return 0, fmt.Errorf("%d of %d notifications came", got, l.Total)
	}
	return float64(records-b.EndBefore) - float64(l.Total), nil
}

package main

import (
	"context"
	"fmt"
)

// kill: both contenders are killed with SIGKILL in the middle of a large
// campaign and started again. How many notifications are in the topic twice?
// (None may be missing, in either.)
func (st *stage) kill(ctx context.Context) error {
	l, err := newLoad(&st.people, kindLarge, 1, 1, false)
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
	// That the daemon's topic has none is the check at the end of the stage.
	st.report.add("by_hand_duplicates", "notifications", []float64{doubled}, "")
	return nil
}

func (st *stage) killOurs(ctx context.Context, l *load) error {
	if err := st.ours.prepare(ctx, l); err != nil {
		return err
	}
	if err := st.producer.send(ctx, st.ours.records...); err != nil {
		return err
	}
	if err := st.d.awaitShipped(ctx, st.ours.shipped+int64(l.total/3)); err != nil {
		return err
	}
	if err := st.d.kill(); err != nil {
		return err
	}
	if err := st.d.start(ctx); err != nil {
		return err
	}
	if err := st.d.awaitShipped(ctx, st.ours.shipped+int64(l.total)); err != nil {
		return err
	}
	return st.ours.settle(ctx, l)
}

func (st *stage) killByHand(ctx context.Context, l *load) (doubled float64, err error) {
	b := st.byhand
	if err := b.prepare(ctx, l); err != nil {
		return 0, err
	}
	// What was there before must not come again: that would be counted, too.
	if err := b.awaitCommitted(ctx); err != nil {
		return 0, err
	}
	_, distinctBefore, err := tally(ctx, b.broker, b.out)
	if err != nil {
		return 0, err
	}
	if err := st.producer.send(ctx, b.records...); err != nil {
		return 0, err
	}
	if err := b.awaitEnd(ctx, b.before+int64(l.total/3)); err != nil {
		return 0, err
	}
	if err := b.process.Kill(); err != nil {
		return 0, err
	}
	b.process = nil
	if err := b.launch(); err != nil {
		return 0, err
	}
	// It begins the campaign anew: everything comes again.
	cut, err := b.producer.ends(ctx, b.out)
	if err != nil {
		return 0, err
	}
	if err := b.awaitEnd(ctx, cut+int64(l.total)); err != nil {
		return 0, err
	}
	if err := b.settle(ctx, l); err != nil {
		return 0, err
	}
	records, distinct, err := tally(ctx, b.broker, b.out)
	if err != nil {
		return 0, err
	}
	if got := distinct - distinctBefore; got != int64(l.total) {
		return 0, fmt.Errorf("%d of %d notifications came", got, l.total)
	}
	return float64(records-b.before) - float64(l.total), nil
}

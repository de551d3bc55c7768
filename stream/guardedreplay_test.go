package stream

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/operator"
)

// meteredBarrier lets so many calls pass; the others wait until it is opened.
type meteredBarrier struct {
	left atomic.Int64
	open chan struct{}
}

func (b *meteredBarrier) Barrier(ctx context.Context) error {
	if b.left.Add(-1) >= 0 {
		return nil
	}
	select {
	case <-b.open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A replay does not wait for a campaign that an operator pauses after a step has postponed
// it and before it has come back.
func TestReplayOfACampaignThatIsPostponedAndPaused(t *testing.T) {
	t.Parallel()
	w := feedbackWorld(t, map[string][]string{"r1": clients("0000", 4500)}, feedbackDDL(""))
	barrier := &meteredBarrier{open: make(chan struct{})}
	barrier.left.Store(1000)
	w.barrier = barrier
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
	w.expect(map[string][]string{"c1": w.subs["r1"]})
	w.db.Exec(`DELETE FROM subscribers_feedback`) // so that the replay has somebody to notify
	w.db.Exec(`ALTER TABLE subscribers_feedback ADD CONSTRAINT choosy CHECK (abs(hashtext(client_id)) % 100 >= 10) NOT VALID`)
	barrier.left.Store(1) // the replay's own; the starter's waits
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := svc.Replay(ctx, ReplayRequest{}, nil)
		done <- err
	}()
	envtest.Until(t, patience, func() error {
		if barrier.left.Load() >= 0 || w.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE state = 'pending' AND version = 2 AND cursor = ''`) == 0 {
			return errors.New("the campaign is not postponed")
		}
		return nil
	})
	w.operate(operator.Pause, "c1", "", 1)
	close(barrier.open)
	if err := <-done; err != nil {
		t.Errorf("replay: %v", err)
	}
}

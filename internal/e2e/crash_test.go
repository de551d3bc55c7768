package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/internal/testenv/workload"
)

// addSubscriptions fills the source with restaurants r0… and draws their
// clients from a common pool; restaurants with larger numbers have smaller
// audiences.
func (d *deployment) addSubscriptions(restaurants, largest int) {
	d.Helper()
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id)
SELECT md5('client' || n)::uuid::text, 'r' || r FROM generate_series(0, $1 - 1) r, LATERAL generate_series(1, $2 / (r + 1)) n`, restaurants, largest)
}

// produceLoad produces a campaign every few milliseconds until ctx ends, and
// returns the campaigns with their restaurants. While the broker restarts it sends a
// campaign again; the second one changes nothing.
func (d *deployment) produceLoad(ctx context.Context, partitions int32, restaurants int, every time.Duration) map[string]string {
	produced := map[string]string{}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return produced
		case <-tick.C:
		}
		id, restaurant := fmt.Sprintf("c%d", n), fmt.Sprintf("r%d", rand.IntN(restaurants))
		if err := d.produceAnyway(int32(n)%partitions, newCampaign(id, restaurant)); err != nil {
			d.Errorf("produce campaign %s: %v", id, err)
			return produced
		}
		produced[id] = restaurant
	}
}

// produceAnyway sends a campaign until the broker has acknowledged it.
func (d *deployment) produceAnyway(partition int32, c workload.Campaign) error {
	for deadline := time.Now().Add(patience); ; {
		err := d.tryProduce(d.Context(), partition, c)
		if err == nil || time.Now().After(deadline) || !testenv.Pause(d.Context(), 50*time.Millisecond) {
			return err
		}
	}
}

// underLoad runs fault repeatedly while campaigns arrive, then checks that both
// sinks hold every subscriber of every campaign once.
func (d *deployment) underLoad(times int, fault func(n int)) {
	d.Helper()
	ctx, cancel := context.WithCancel(d.Context())
	var produced map[string]string
	var wg sync.WaitGroup
	wg.Go(func() { produced = d.produceLoad(ctx, 3, 40, 50*time.Millisecond) })
	for n := range times {
		fault(n)
	}
	cancel()
	wg.Wait()
	d.awaitReady()
	d.checkOnce(produced, 2*patience)
	d.runCommand("audit") // audit fails if an invariant does not hold
	d.Logf("%d campaigns", len(produced))
}

// pauseRandom waits for a random time, which is the fault's moment. It waits
// for no condition.
func (d *deployment) pauseRandom(most time.Duration) {
	select {
	case <-time.After(rand.N(most)):
	case <-d.Context().Done():
	}
}

func TestKilledAtRandomMoments(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	d.addSubscriptions(40, 8000)
	d.setup(3)
	d.start()
	d.underLoad(12, func(int) { // `make chaos` kills it for minutes
		d.pauseRandom(1500 * time.Millisecond)
		d.kill()
		d.start()
	})
	d.stop()
}

func TestStateDirectoryLostInTheMiddleOfAFanOut(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	d.addSubscriptions(40, 8000)
	d.setup(3)
	d.start()
	d.awaitReady()
	d.underLoad(3, func(int) {
		var before int64
		d.queryRow(&before, `SELECT count(*) FROM subscribers_feedback`)
		envtest.Until(t, patience, func() error { // the daemon is in the middle of the fan-out
			var now int64
			if d.queryRow(&now, `SELECT count(*) FROM subscribers_feedback`); now < before+5000 {
				return fmt.Errorf("%d rows", now-before)
			}
			return nil
		})
		d.kill()
		if err := os.RemoveAll(d.dir); err != nil {
			t.Fatal(err)
		}
		d.start()
	})
	d.stop()
}

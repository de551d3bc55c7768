package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
)

// subscribe fills the source with restaurants r0…, each with so many clients
// of a common pool; larger numbers have smaller audiences.
func (d *deployment) subscribe(restaurants, largest int) {
	d.Helper()
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id)
SELECT md5('client' || n)::uuid::text, 'r' || r FROM generate_series(0, $1 - 1) r, LATERAL generate_series(1, $2 / (r + 1)) n`, restaurants, largest)
}

// load produces a campaign every few milliseconds until ctx ends, and returns
// what it produced: campaign → restaurant.
func (d *deployment) load(ctx context.Context, partitions int32, restaurants int, every time.Duration) map[string]string {
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
		d.produce(int32(n)%partitions, newCampaign(id, restaurant))
		produced[id] = restaurant
	}
}

// underLoad runs fault over and over while campaigns come in, then checks that
// every subscriber got every campaign once, in both sinks.
func (d *deployment) underLoad(times int, fault func(n int)) {
	d.Helper()
	ctx, cancel := context.WithCancel(d.Context())
	var produced map[string]string
	var wg sync.WaitGroup
	wg.Go(func() { produced = d.load(ctx, 3, 40, 50*time.Millisecond) })
	for n := range times {
		fault(n)
	}
	cancel()
	wg.Wait()
	d.ready()
	d.checkOnce(produced, 2*patience)
	d.command("audit") // it fails where an invariant does not hold
	d.Logf("%d campaigns", len(produced))
}

// pause is a random moment under load. It is the fault's own timing, not a
// wait for anything.
func (d *deployment) pause(most time.Duration) {
	select {
	case <-time.After(rand.N(most)):
	case <-d.Context().Done():
	}
}

func TestKilledAtRandomMoments(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.subscribe(40, 8000)
	d.setup(3)
	d.start()
	d.underLoad(30, func(int) {
		d.pause(1500 * time.Millisecond)
		d.kill()
		d.start()
	})
	d.stop()
}

func TestStateDirectoryLostInTheMiddleOfAFanOut(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.subscribe(40, 8000)
	d.setup(3)
	d.start()
	d.ready()
	d.underLoad(3, func(int) {
		var before int64
		d.scan(&before, `SELECT count(*) FROM subscribers_feedback`)
		envtest.Until(t, patience, func() error { // it is in the middle of its work
			var now int64
			if d.scan(&now, `SELECT count(*) FROM subscribers_feedback`); now < before+5000 {
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

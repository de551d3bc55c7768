package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"dinnerbell/internal/testenv/envtest"
)

// A subscription that was committed before its campaign was produced is always
// in the audience: 1,000 tries under unrelated writes.
func TestCommittedSubscriptionIsInTheAudience(t *testing.T) {
	t.Parallel()
	const tries = 1000
	d := newDeployment(t)
	d.setup(2)
	d.db.Exec(`CREATE TABLE unrelated (n int, text text)`)
	d.start()
	d.awaitReady()

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { d.unrelatedWrites(ctx) })
	}
	produced := map[string]string{}
	for n := range tries {
		id, restaurant := fmt.Sprintf("c%d", n), fmt.Sprintf("r%d", n%7)
		d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ($1, $2)`, fmt.Sprintf("client %d", n), restaurant)
		d.produce(int32(n%2), newCampaign(id, restaurant))
		produced[id] = restaurant
	}
	envtest.Until(t, patience, func() error {
		var have int64
		d.queryRow(&have, `SELECT count(*) FROM unnest($1::int[]) n JOIN subscribers_feedback ON adv_campaign_id = 'c' || n AND client_id = 'client ' || n`, upTo(tries))
		if have != tries {
			return fmt.Errorf("%d of %d new subscribers have the campaign that came right after", have, tries)
		}
		return nil
	})
	cancel()
	wg.Wait()
	d.compareSinks(patience)
	d.stop()
}

func (d *deployment) unrelatedWrites(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		if _, err := d.db.Pool.Exec(ctx, `INSERT INTO unrelated VALUES ($1, repeat('x', 500))`, n); err != nil && ctx.Err() == nil {
			d.Errorf("unrelated write: %v", err)
			return
		}
	}
}

func upTo(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

package e2e

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
	"testing"

	"dinnerbell/internal/budget"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/internal/testenv/workload"
)

// The work for a notification and for a subscription, counted in bytes and
// compared with committed budgets. The test has a server of its own: the WAL of
// other tests would be counted, and no checkpoint may come in between, since
// after each one Postgres writes full-page images again.
func TestBudgets(t *testing.T) {
	t.Parallel()
	d := newDeploymentOn(t, envtest.DatabaseOn(t, envtest.StartPostgres(t, envtest.Dir(t), map[string]string{
		"checkpoint_timeout": "1h", "max_wal_size": "8GB", "autovacuum": "off",
	})))
	audiences := []struct {
		budget              string
		restaurants, client int
	}{
		{"wal_fanout", 1, 100_000},
		{"wal_small_100", 200, 100},
		{"wal_small_10", 1000, 10},
	}
	const id = `INSERT INTO subscribers_restaurants (client_id, restaurant_id)
SELECT md5($1 || r || 'c' || c)::uuid::text, md5($1 || r)::uuid::text FROM generate_series(1, $2::int) r, generate_series(1, $3::int) c`
	for _, a := range audiences {
		d.db.Exec(id, a.budget, a.restaurants, a.client)
	}
	d.db.Exec(id, "others", 700, 100)
	d.setup(1)
	d.start()
	d.awaitReady()

	for _, a := range audiences {
		var all []workload.Campaign
		for r := range a.restaurants {
			var restaurant string
			d.queryRow(&restaurant, `SELECT md5($1 || $2::int)::uuid::text`, a.budget, r+1)
			all = append(all, newCampaign(fmt.Sprintf("%s/%d", a.budget, r), restaurant))
		}
		before := d.walBytes()
		d.produce(0, all...)
		total := int64(a.restaurants * a.client)
		envtest.Until(t, patience, func() error {
			var have int64
			if d.queryRow(&have, `SELECT count(*) FROM subscribers_feedback WHERE starts_with(adv_campaign_id, $1)`, a.budget+"/"); have != total {
				return fmt.Errorf("%d rows of %d", have, total)
			}
			return nil
		})
		budget.Check(t, a.budget, float64(d.walBytes()-before)/float64(total))
	}
	records := d.kafka.ReadAll(d.topicName("notifications"))
	bytes := 0
	for _, r := range records {
		bytes += len(r.Key) + len(r.Value)
	}
	budget.Check(t, "kafka_record", float64(bytes)/float64(len(records)))

	var subscriptions int64
	d.queryRow(&subscriptions, `SELECT count(*) FROM subscribers_restaurants`)
	d.stop()
	budget.Check(t, "disk_subscription", float64(d.stateBytes())/float64(subscriptions))
}

func (d *deployment) walBytes() int64 {
	d.Helper()
	var n int64
	d.queryRow(&n, `SELECT pg_current_wal_insert_lsn() - '0/0'`)
	return n
}

// stateBytes returns the size of all files in state.dir. A file that
// checkpoints share with the store counts once.
func (d *deployment) stateBytes() (sum int64) {
	d.Helper()
	seen := map[uint64]bool{}
	err := filepath.WalkDir(d.dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if sys, ok := info.Sys().(*syscall.Stat_t); ok {
			if seen[sys.Ino] {
				return nil
			}
			seen[sys.Ino] = true
		}
		sum += info.Size()
		return nil
	})
	if err != nil {
		d.Fatal(err)
	}
	return sum
}

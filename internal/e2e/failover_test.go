package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/envtest"
)

// The primary, which holds source and sink, dies in the middle of fan-outs, and
// its standby is promoted: the same daemon process continues there. Every
// client is notified once, a client who subscribes on the new primary is in the
// next audience, and the daemon takes no snapshot.
func TestLongFailoverUnderFanOut(t *testing.T) {
	envtest.Long(t)
	pair := envtest.StartPair(t, 17, map[string]string{"synchronous_standby_names": "standby"})
	for _, server := range []*testenv.Postgres{pair.Standby, pair.Primary} {
		t.Cleanup(func() {
			if err := server.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
	connect := func(server *testenv.Postgres) *envtest.DB {
		t.Helper()
		pool, err := pgxpool.New(t.Context(), server.URL(""))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		return envtest.On(t, server.URL(""), pool)
	}
	db := connect(pair.Primary)
	db.Exec(testenv.ContractTables)
	d := newDeploymentOn(t, db)
	both, err := pair.URL(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	d.env = append(os.Environ(), "DINNERBELL_SOURCE_URL="+both)
	d.addSubscriptions(4, 3000)
	d.setup(2)
	d.start()
	d.awaitReady()
	standby := connect(pair.Standby)
	envtest.Until(t, patience, func() error {
		db.Exec(`CHECKPOINT`)
		if standby.Int(`SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND synced AND NOT temporary`, d.name) == 0 {
			return fmt.Errorf("slot %s is not on the standby", d.name)
		}
		return nil
	})

	ctx, cancel := context.WithCancel(t.Context())
	produced := make(chan map[string]string, 1)
	go func() { produced <- d.produceLoad(ctx, 2, 4, 20*time.Millisecond) }()
	envtest.Until(t, patience, func() error {
		if n := db.Int(`SELECT count(*) FROM subscribers_feedback`); n < 5000 {
			return fmt.Errorf("%d rows", n)
		}
		return nil
	})
	if err := pair.Primary.Kill(); err != nil {
		t.Fatal(err)
	}
	if standby.Int(`SELECT pg_promote()::int`) != 1 {
		t.Fatal("the standby was not promoted")
	}
	d.db = standby
	cancel()
	all := <-produced
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('late', 'r1')`)
	d.produce(0, newCampaign("after", "r1"))
	all["after"] = "r1"
	for id, restaurant := range all {
		// The late client may be in the audience of a campaign that waited, and
		// must be in the last campaign's.
		var want, have int64
		d.queryRow(&want, `SELECT count(DISTINCT client_id) FROM subscribers_restaurants WHERE restaurant_id = $1 AND (client_id <> 'late' OR $2 = 'after')`, restaurant, id)
		envtest.Until(t, patience, func() error {
			if d.queryRow(&have, `SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = $1 AND client_id <> CASE WHEN $1 = 'after' THEN '' ELSE 'late' END`, id); have != want {
				return fmt.Errorf("campaign %s has %d of %d", id, have, want)
			}
			return nil
		})
	}
	d.compareSinks(patience)
	var status struct {
		Source struct {
			Failovers int64 `json:"failovers"`
		} `json:"source"`
	}
	if err := json.Unmarshal([]byte(d.statusText("--json")), &status); err != nil {
		t.Fatal(err)
	}
	log := d.log.tail(1 << 20)
	if n := strings.Count(log, "taking a snapshot"); n != 1 || status.Source.Failovers != 1 {
		t.Errorf("%d snapshots and %d failovers, want one each", n, status.Source.Failovers)
	}
	d.stop()
}

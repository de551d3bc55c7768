package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state/id"
)

const (
	longPatience = 15 * time.Minute
	memoryLimit  = 300 << 20
)

// One transaction of five million rows, and 100,000 of one row: the daemon's
// memory stays bounded, the walsender's short timeout never expires, and the
// slot is never acknowledged beyond the applied changes. After kill -9 all rows
// are still there.
func TestLongVolume(t *testing.T) {
	envtest.Long(t)
	const huge, singles = 5_000_000, 100_000
	d := newDeployment(t)
	d.setup(1)
	d.db.Exec(fmt.Sprintf(`ALTER DATABASE %s SET wal_sender_timeout = '5s'`, d.db.Name))
	d.start()
	d.awaitReady()
	stop := d.watchAcknowledgement()

	start := time.Now()
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id)
		SELECT md5('client' || g)::uuid::text, 'r' || g % 1000 FROM generate_series(1, $1::int) g`, huge)
	committed := time.Now()
	d.awaitSubscriptions(huge)
	t.Logf("one transaction of %d rows: %s to commit, %s more until it is visible here; peak memory %d MB",
		huge, committed.Sub(start).Round(time.Second), time.Since(committed).Round(time.Second), d.peakMemory()>>20)

	start = time.Now()
	d.db.Exec(fmt.Sprintf(`DO $$BEGIN FOR i IN 1..%d LOOP
		INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('single ' || i, 'r' || i %% 1000); COMMIT; END LOOP; END$$`, singles))
	committed = time.Now()
	d.awaitSubscriptions(huge + singles)
	t.Logf("%d transactions of one row: %s to commit, %s more until they are visible here; peak memory %d MB",
		singles, committed.Sub(start).Round(time.Second), time.Since(committed).Round(time.Millisecond), d.peakMemory()>>20)

	// All changes are acknowledged, and in the join.
	envtest.Until(t, longPatience, func() error {
		if n := d.db.Int(`SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1 AND confirmed_flush_lsn >= $2::pg_lsn`, d.name, d.status().Source.Applied); n != 1 {
			return errors.New("not all is acknowledged")
		}
		return nil
	})
	d.produce(0, newCampaign("c", "r7"))
	d.checkOnce(map[string]string{"c": "r7"}, longPatience)
	stop()
	if st := d.status(); st.Source.LastError != "" {
		t.Errorf("the stream broke: %s", st.Source.LastError)
	}
	if peak := d.peakMemory(); peak > memoryLimit {
		t.Errorf("peak memory is %d MB, want at most %d", peak>>20, memoryLimit>>20)
	}
	d.kill()
	d.start()
	d.awaitReady()
	d.awaitSubscriptions(huge + singles)
	if n := strings.Count(d.log.tail(1<<20), "taking a snapshot"); n != 1 {
		t.Errorf("%d snapshots were taken, want the first alone", n)
	}
	d.stop()
}

// sourceStatus is the part of /api/status that these tests read.
type sourceStatus struct {
	Source struct {
		Applied       string `json:"applied_lsn"`
		Subscriptions int64  `json:"subscriptions"`
		LastError     string `json:"last_error"`
	} `json:"source"`
}

func (d *deployment) status() (s sourceStatus) {
	d.Helper()
	s, err := d.askStatus()
	if err != nil {
		d.Fatal(err)
	}
	return s
}

func (d *deployment) askStatus() (s sourceStatus, err error) {
	address, err := d.httpAddress()
	if err != nil {
		return s, err
	}
	resp, err := http.Get("http://" + address + "/api/status")
	if err != nil {
		return s, err
	}
	body, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return s, err
	}
	return s, json.Unmarshal(body, &s)
}

// awaitSubscriptions waits until the daemon holds exactly n rows.
func (d *deployment) awaitSubscriptions(n int64) {
	d.Helper()
	envtest.Until(d, longPatience, func() error {
		if have := d.status().Source.Subscriptions; have != n {
			return fmt.Errorf("the daemon has %d subscriptions, want %d", have, n)
		}
		return nil
	})
}

// watchAcknowledgement checks continuously that the acknowledged position of
// the slot stays behind the daemon's applied position, never moves back, and
// that the connection never breaks.
func (d *deployment) watchAcknowledgement() (stop func()) {
	ctx, cancel := context.WithCancel(d.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		var last id.LSN
		var walsender int64
		looks := 0
		for ; ctx.Err() == nil; <-tick.C {
			var text string
			var pid int64
			err := d.db.Pool.QueryRow(ctx, `SELECT confirmed_flush_lsn::text, coalesce(active_pid, 0) FROM pg_replication_slots WHERE slot_name = $1`, d.name).Scan(&text, &pid)
			if err != nil {
				break
			}
			s, err := d.askStatus() // read later than the slot, so it can only be ahead
			if err != nil {
				d.Errorf("status: %v", err)
				break
			}
			confirmed, applied := parseLSN(d, text), parseLSN(d, s.Source.Applied)
			if confirmed > applied || confirmed < last {
				d.Errorf("slot is acknowledged up to %s, was %s, applied is %s", confirmed, last, applied)
			}
			if walsender != 0 && pid != walsender {
				d.Errorf("walsender %d took the place of %d", pid, walsender)
			}
			last, walsender = confirmed, pid
			looks++
		}
		d.Logf("looked at the slot %d times", looks)
	})
	return func() { cancel(); wg.Wait() }
}

func parseLSN(t testing.TB, text string) id.LSN {
	t.Helper()
	lsn, err := id.ParseLSN(text)
	if err != nil {
		t.Error(err)
	}
	return lsn
}

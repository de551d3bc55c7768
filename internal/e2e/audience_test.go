package e2e

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
)

// A restaurant with very many subscribers: memory stays bounded, and small campaigns do
// not wait for the large one.
func TestLargeAudience(t *testing.T) {
	t.Parallel()
	serveLargeAudience(t, 200_000)
}

// TestLargeAudience with the size that the documents name. A million rows in two sinks,
// compared one by one, take a minute.
func TestSlowMillionSubscribers(t *testing.T) {
	envtest.Slow(t)
	serveLargeAudience(t, 1_000_000)
}

// serveLargeAudience has the daemon serve a campaign with an audience of the size, and a
// small one behind it.
func serveLargeAudience(t *testing.T, size int64) {
	t.Helper()
	d := newDeployment(t)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT md5('c' || n)::uuid::text, 'huge' FROM generate_series(1, $1) n`, size)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client ' || n, 'small' FROM generate_series(1, 100) n`)
	d.setup(1)
	d.start()
	d.awaitReady()
	d.produce(0, newCampaign("huge campaign", "huge"))
	envtest.Until(t, patience, func() error { return d.checkRows("huge campaign", size/10) })

	const sofar = `SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = 'huge campaign'`
	var before, after int64
	d.queryRow(&before, sofar)
	began := time.Now()
	d.produce(0, newCampaign("small campaign", "small"))
	envtest.Until(t, patience, func() error { return d.checkRows("small campaign", 100) })
	took := time.Since(began)
	d.queryRow(&after, sofar)
	t.Logf("100 subscribers in %v; meanwhile %d of the large campaign, with %d still to come", took.Round(time.Millisecond), after-before, size-after)
	if after >= size {
		t.Error("the large campaign was over: the test shows nothing")
	}
	if after-before > 60_000 { // about a second's work; a count does not depend on the clock
		t.Errorf("the small campaign waited for %d notifications of the large one", after-before)
	}
	d.checkOnce(map[string]string{"huge campaign": "huge", "small campaign": "small"}, 3*patience)

	peak := d.peakMemory()
	t.Logf("peak memory of the daemon: %d MB", peak>>20)
	if peak > 300<<20 {
		t.Errorf("peak memory %d MB", peak>>20)
	}
	d.stop()
}

func (d *deployment) checkRows(campaign string, n int64) error {
	d.Helper()
	var have int64
	if d.queryRow(&have, `SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = $1`, campaign); have < n {
		return fmt.Errorf("%d rows of %s, want %d", have, campaign, n)
	}
	return nil
}

var highWater = regexp.MustCompile(`VmHWM:\s+(\d+) kB`)

// peakMemory returns the process's largest resident set, in bytes.
func (d *deployment) peakMemory() int64 {
	d.Helper()
	peak, err := readHighWater(d.process.PID())
	if err != nil {
		d.Skipf("peak memory is read from /proc: %v", err)
	}
	return peak
}

// readHighWater returns the largest resident set of a running process, in bytes.
func readHighWater(pid int) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	m := highWater.FindSubmatch(status)
	if m == nil {
		return 0, fmt.Errorf("no VmHWM in %s", status)
	}
	kb, err := strconv.ParseInt(string(m[1]), 10, 64)
	return kb << 10, err
}

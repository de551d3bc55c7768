package e2e

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/internal/testenv/envtest/damage"
)

// largeRows is the size that the documented limits hold for.
const largeRows = 10_000_000

// Among ten million subscriptions, a verification finds and repairs one wrong
// row in less than half a minute, and a rebuild of all rows takes no longer,
// beside a running daemon with bounded memory.
func TestLongTenMillionVerifiedAndRebuilt(t *testing.T) {
	envtest.Long(t)
	d := newDeployment(t)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id)
		SELECT md5('c' || n)::uuid::text, md5('r' || n % 2000)::uuid::text FROM generate_series(1, $1) n`, largeRows)
	d.db.Exec(`VACUUM (FREEZE, ANALYZE) subscribers_restaurants`)
	d.setup(1)
	d.start()
	d.awaitReadyWithin(10 * patience)
	d.stop()
	const wrong = "6543210"
	damage.Do(t, d.dir, func(r *damage.Rows) { r.SetRow(wrong, "elsewhere", "somebody") })
	d.start()
	d.awaitReady()

	drain := d.drainCopy()
	t.Logf("draining COPY takes %s", drain)
	timed := func(limit time.Duration, do func() string) string {
		began := time.Now()
		out := do()
		took := time.Since(began)
		t.Logf("%s, peak memory of the daemon %d MB: %s", took.Round(10*time.Millisecond), d.peakMemory()>>20, strings.TrimSpace(out))
		if took > limit {
			t.Errorf("took %s, want at most %s", took, limit)
		}
		return out
	}
	out := timed(30*time.Second, func() string { out, _ := d.exitWith(1, "verify"); return out })
	if !strings.Contains(out, "row "+wrong+": different in the rows index") || !strings.Contains(out, " 1 differ") {
		t.Errorf("verify: %s", out)
	}
	timed(30*time.Second, func() string { return d.runCommand("verify", "--repair") })
	if out := timed(30*time.Second, func() string { return d.runCommand("verify") }); !strings.Contains(out, "no differences") {
		t.Errorf("verify after the repair: %s", out)
	}
	timed(30*time.Second, func() string { return d.runCommand("rebuild") })
	d.stop()
}

// drainCopy returns how long a client takes that reads the table and discards
// the rows.
func (d *deployment) drainCopy() time.Duration {
	d.Helper()
	conn, err := pgx.Connect(d.Context(), d.db.URL)
	if err != nil {
		d.Fatal(err)
	}
	defer func() { _ = conn.Close(d.Context()) }()
	began := time.Now()
	if _, err := conn.PgConn().CopyTo(d.Context(), io.Discard, `COPY subscribers_restaurants (id, restaurant_id, client_id) TO STDOUT (FORMAT binary)`); err != nil {
		d.Fatal(err)
	}
	return time.Since(began).Round(10 * time.Millisecond)
}

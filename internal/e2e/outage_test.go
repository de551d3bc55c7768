package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/envtest"
)

// A server that is down for 20 seconds leaves a line when it is lost and one when it is
// back, for each part that uses it, and not one for each attempt.
func TestLongOutagesLeaveFewLines(t *testing.T) {
	t.Parallel()
	envtest.Long(t)
	dir := envtest.Dir(t)
	postgres := envtest.StartPostgres(t, filepath.Join(dir, "postgres"), nil)
	broker := envtest.StartBroker(t, filepath.Join(dir, "broker"))
	t.Cleanup(func() {
		if err := broker.Stop(); err != nil {
			t.Error(err)
		}
		if err := postgres.Stop(); err != nil {
			t.Error(err)
		}
	})
	d := newDeploymentAt(t, envtest.DatabaseOn(t, postgres), envtest.KafkaAt(t, broker.Addr()))
	d.addSubscriptions(2, 100)
	d.setup(2)
	d.start()
	d.awaitReady()
	d.produce(0, newCampaign("before", "r1"))
	d.checkOnce(map[string]string{"before": "r1"}, patience)
	for _, tc := range []struct {
		server      string
		stop, start func() error
	}{
		{"Kafka", broker.Stop, func() error { return broker.Start(t.Context()) }},
		{"Postgres", postgres.Stop, func() error { return postgres.Start(t.Context()) }},
	} {
		before := len(d.log.tail(1 << 20))
		if err := tc.stop(); err != nil {
			t.Fatal(err)
		}
		testenv.Pause(t.Context(), 20*time.Second)
		if err := tc.start(); err != nil {
			t.Fatal(err)
		}
		d.awaitReady()
		lines := d.log.tail(1 << 20)[before:]
		t.Logf("%s was down for 20 s, %d lines:\n%s", tc.server, strings.Count(lines, "\n"), lines)
		// Not ready and ready; for source and stream: lost and back, of each lane. The
		// server may come back to find a session of before that ends once more.
		if n := strings.Count(lines, "\n"); n < 2 || n > 10 {
			t.Errorf("%d lines tell of an outage of %s", n, tc.server)
		}
		if n := strings.Count(lines, "level=WARN"); n > 5 {
			t.Errorf("%d warnings tell of an outage of %s", n, tc.server)
		}
	}
	d.stop()
}

package e2e

import (
	"bytes"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
)

// The contract's example with standard tools: in with kcat, out with kcat and
// psql.
func TestContractsExampleWithKcat(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	d.setup(1)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('223e4567-e89b-12d3-a456-426614174000', '123e4567-e89b-12d3-a456-426614174000')`)
	d.start()
	d.awaitReady()

	const sent = `{"restaurant_id":"123e4567-e89b-12d3-a456-426614174000","adv_campaign_id":"123e4567-e89b-12d3-a456-426614174003","adv_campaign_content":"first campaign","adv_campaign_owner":"Ivanov Ivan Ivanovich","adv_campaign_owner_contact":"iiivanov@restaurant.ru","adv_campaign_datetime_start":1659203516,"adv_campaign_datetime_end":2659207116,"datetime_created":1659131516}`
	began := time.Now().Unix()
	d.kcat(sent, "-P", "-t", d.topicName("campaigns"))

	const want = `123e4567-e89b-12d3-a456-426614174003:223e4567-e89b-12d3-a456-426614174000|{"restaurant_id":"123e4567-e89b-12d3-a456-426614174000","adv_campaign_id":"123e4567-e89b-12d3-a456-426614174003","adv_campaign_content":"first campaign","adv_campaign_owner":"Ivanov Ivan Ivanovich","adv_campaign_owner_contact":"iiivanov@restaurant.ru","adv_campaign_datetime_start":1659203516,"adv_campaign_datetime_end":2659207116,"client_id":"223e4567-e89b-12d3-a456-426614174000","datetime_created":1659131516,"trigger_datetime_created":NOW}`
	var trigger string
	envtest.Until(t, patience, func() error {
		out := d.kcat("", "-C", "-t", d.topicName("notifications"), "-X", "isolation.level=read_committed", "-o", "beginning", "-e", "-q", "-f", "%k|%s\n")
		m := regexp.MustCompile(`"trigger_datetime_created":(\d+)\}`).FindStringSubmatch(out)
		if m == nil {
			return fmt.Errorf("kcat printed %q", out)
		}
		if trigger = m[1]; out != strings.Replace(want, "NOW", trigger, 1)+"\n" {
			t.Fatalf("kcat printed\n%s, want\n%s", out, want)
		}
		return nil
	})
	if now := fmt.Sprint(time.Now().Unix()); trigger < fmt.Sprint(began) || trigger > now {
		t.Errorf("decided at %s, not between %d and %s", trigger, began, now)
	}

	row, err := exec.CommandContext(t.Context(), "psql", "-XAt", d.db.URL, "-c", "TABLE subscribers_feedback").CombinedOutput()
	wantRow := "1|123e4567-e89b-12d3-a456-426614174000|123e4567-e89b-12d3-a456-426614174003|first campaign|Ivanov Ivan Ivanovich|iiivanov@restaurant.ru|1659203516|2659207116|1659131516|223e4567-e89b-12d3-a456-426614174000|" + trigger + "|\n"
	if err != nil || string(row) != wantRow {
		t.Errorf("psql printed %v\n%s, want\n%s", err, row, wantRow)
	}
}

// kcat runs the real kcat against the deployment's brokers.
func (d *deployment) kcat(stdin string, args ...string) string {
	d.Helper()
	cmd := exec.CommandContext(d.Context(), "kcat", append([]string{"-b", strings.Join(d.kafka.Brokers, ",")}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		d.Fatalf("kcat %v: %v: %s (Debian: apt-get install kcat)", args, err, stderr.String())
	}
	return string(out)
}

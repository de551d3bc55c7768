package e2e

import (
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
)

// Idle connections do not take the file descriptors that the work needs: with
// 200 connections under a limit of 150, campaigns and /readyz still work.
func TestIdleConnectionsUnderFewDescriptors(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client ' || n, 'r1' FROM generate_series(1, 50) n`)
	d.setup(4)
	d.startAs(exec.Command("sh", "-c", `ulimit -n 150 && exec "$0" "$@"`, d.binary, "-c", d.config, "run"))
	d.awaitReady()
	if !strings.Contains(d.log.tail(1<<20), "few file descriptors") {
		t.Error("the log does not warn of the low limit")
	}
	address, err := d.httpAddress()
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	campaigns := map[string]string{}
	for partition := range int32(4) {
		c := newCampaign("under few descriptors "+string('0'+partition), "r1")
		d.produce(partition, c)
		campaigns[c.ID] = c.Restaurant
	}
	d.checkOnce(campaigns, patience)
	resp, err := http.Get("http://" + address + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("readyz: %d, %v", resp.StatusCode, err)
	}
	d.stop()
}

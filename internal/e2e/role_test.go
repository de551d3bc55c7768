package e2e

import (
	"os"
	"testing"
)

// The daemon runs under the role of scripts/role.sql with exactly those grants.
// The tables' owner runs setup.
func TestRunsWithTheDocumentedRole(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	d.addSubscriptions(2, 100)
	d.setup(1)
	d.env = append(os.Environ(), "DINNERBELL_SOURCE_URL="+d.db.RoleURL())
	d.start()
	d.awaitReady()
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('late', 'r1')`)
	d.produce(0, newCampaign("c", "r1"))
	d.checkOnce(map[string]string{"c": "r1"}, patience)
	d.kill() // and again with the leftovers of a killed daemon
	d.start()
	d.produce(0, newCampaign("c2", "r0"))
	d.checkOnce(map[string]string{"c": "r1", "c2": "r0"}, patience)
	d.stop()
}

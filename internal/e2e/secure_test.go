package e2e

import (
	"net/url"
	"slices"
	"testing"

	"dinnerbell/internal/testenv/envtest"
)

// Security that a user can check, on an Apache Kafka with Kafka's authorizer and a
// Postgres with TLS.
//
//nolint:tparallel // its parts run one after the other, since they share the servers
func TestSecure(t *testing.T) {
	t.Parallel()
	envtest.Secure(t)
	s := newSecuredServers(t)
	t.Run("mechanisms", func(t *testing.T) {
		for n, m := range mechanisms {
			t.Run(m.name, func(t *testing.T) { t.Parallel(); s.deliver(t, n, m) })
		}
		t.Run("clients of others", func(t *testing.T) { t.Parallel(); s.checkClientsOfOthers(t) })
	})
	t.Run("rights", func(t *testing.T) { s.checkACLs(t) })
	rows := make([][]faultRow, len(mechanisms)+1)
	t.Run("faults", func(t *testing.T) {
		for n, m := range mechanisms {
			t.Run(m.name, func(t *testing.T) { t.Parallel(); rows[n] = s.checkKafkaFaults(t, m) })
		}
		t.Run("Postgres", func(t *testing.T) { t.Parallel(); rows[len(mechanisms)] = s.checkPostgresFaults(t) })
	})
	if !slices.ContainsFunc(rows, func(r []faultRow) bool { return len(r) == 0 }) { // -run may leave out some
		compareTable(t, slices.Concat(rows...))
	}
	t.Run("rotation", s.checkRotation)
}

// deliver sends a campaign with the daemon's rights as docs/security.md and
// scripts/role.sql give them.
func (s *securedServers) deliver(t *testing.T, n int, m mechanism) {
	t.Helper()
	d := s.newDeployment(t)
	d.setup(1)
	d.setConfig("kafka", s.kafkaSettings(d, m))
	role := d.db.RoleURL()
	u, err := url.Parse(role)
	if err != nil {
		t.Fatal(err)
	}
	name := u.User.Username()
	verify := []string{"sslmode=verify-full", "sslmode=verify-ca", "sslmode=require", "sslmode=verify-full"}[n]
	query := []string{verify, "sslrootcert=" + s.ca.File}
	user := url.UserPassword(name, secret)
	if n%2 == 0 {
		d.db.Exec(`ALTER ROLE ` + name + ` PASSWORD '` + secret + `'`)
	} else {
		d.db.Exec(`GRANT certified TO ` + name)
		cert, key := s.ca.Issue(t, s.file(name), envtest.Leaf{Name: name})
		user, query = url.User(name), append(query, "sslcert="+cert, "sslkey="+key)
	}
	d.setConfig("source", map[string]any{"url": address(t, d.db.URL, user, query...), "slot": d.name})
	s.grantDocumented(d, "run")
	d.start()
	d.awaitReady()
	d.addSubscriptions(2, 100)
	d.produce(0, newCampaign("c", "r1"))
	d.checkOnce(map[string]string{"c": "r1"}, patience)
	d.exitWith(0, "doctor")
	d.stop()
}

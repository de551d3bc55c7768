package e2e

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
)

// rotation is a daemon whose secrets change while it delivers.
type rotation struct {
	*deployment

	role string
	ca   string // files that the configuration names; the test replaces them
	load map[string]string
}

// newRotation makes a deployment under the documented rights, with authorities in a file
// of its own.
func (s *securedServers) newRotation(t *testing.T, m mechanism) *rotation {
	t.Helper()
	r := &rotation{deployment: s.newDeployment(t)}
	r.addSubscriptions(4, 50)
	r.setup(1)
	s.grantDocumented(r.deployment, "run", "beside these")
	u, err := url.Parse(r.db.RoleURL())
	if err != nil {
		t.Fatal(err)
	}
	r.role, r.ca = u.User.Username(), s.file(r.name+"-ca.pem")
	envtest.ReplaceFile(t, r.ca, readFile(t, s.ca.File))
	r.setConfig("kafka", with(s.kafkaSettings(r.deployment, m), "tls", map[string]any{"ca": r.ca}))
	return r
}

// reconnect ends the role's connections to Postgres and waits until the daemon has come
// back and delivers.
func (r *rotation) reconnect(step string) {
	r.Helper()
	r.db.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1`, r.role)
	r.awaitProgress(step)
}

// awaitProgress waits until the daemon has delivered campaigns that came after the call.
func (r *rotation) awaitProgress(step string) {
	r.Helper()
	began := r.db.Int(`SELECT coalesce(max(substr(adv_campaign_id, 2)::int), 0) FROM subscribers_feedback`)
	envtest.Until(r, patience, func() error {
		if n := r.db.Int(`SELECT coalesce(max(substr(adv_campaign_id, 2)::int), 0) FROM subscribers_feedback`); n < began+20 {
			return fmt.Errorf("%s: campaign %d is the last one, after %d", step, n, began)
		}
		return nil
	})
	r.Logf("%s: delivers", step)
}

// checkRotation replaces each secret and each certificate while two daemons deliver, one
// by passwords and one by certificates. Nothing is lost or doubled.
func (s *securedServers) checkRotation(t *testing.T) {
	passwords, certificates := s.newRotation(t, mechanisms[2]), s.newRotation(t, mechanisms[3])

	word, login := s.file("postgres-password"), s.file("kafka-password")
	envtest.ReplaceFile(t, word, []byte("first word\n"))
	envtest.ReplaceFile(t, login, []byte(secret+"\n"))
	passwords.db.Exec(`ALTER ROLE ` + passwords.role + ` PASSWORD 'first word'`)
	passwords.setConfig("kafka", with(with(s.kafkaSettings(passwords.deployment, mechanisms[2]), "tls", map[string]any{"ca": passwords.ca}), "sasl", map[string]any{"password": "${file:" + login + "}"}))
	passwords.setConfig("source", map[string]any{
		"url": address(t, passwords.db.URL, url.User(passwords.role), "sslmode=verify-full", "sslrootcert="+passwords.ca), "slot": passwords.name, "password_command": []string{"cat", word},
	})

	certificates.db.Exec(`GRANT certified TO ` + certificates.role)
	own, client := s.file("own"), s.file("rotated")
	s.ca.Issue(t, own, envtest.Leaf{Name: certificates.role})
	s.ca.Issue(t, client, envtest.Leaf{Name: principal})
	certificates.setConfig("kafka", with(s.kafkaSettings(certificates.deployment, mechanisms[3]), "tls", map[string]any{"ca": certificates.ca, "cert": client + ".pem", "key": client + ".key"}))
	certificates.setConfig("source", map[string]any{
		"url": address(t, certificates.db.URL, url.User(certificates.role), "sslmode=verify-full", "sslrootcert="+certificates.ca, "sslcert="+own+".pem", "sslkey="+own+".key"), "slot": certificates.name,
	})

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var loads sync.WaitGroup
	for _, r := range []*rotation{passwords, certificates} {
		r.start()
		r.awaitReady()
		loads.Go(func() { r.load = r.produceLoad(ctx, 1, 4, 100*time.Millisecond) })
	}

	s.kafka.SetPassword(t, principal, "another word")
	envtest.ReplaceFile(t, login, []byte("another word\n"))
	passwords.awaitProgress("SCRAM password") // its sessions end after sessionLength
	passwords.db.Exec(`ALTER ROLE ` + passwords.role + ` PASSWORD 'second word'`)
	envtest.ReplaceFile(t, word, []byte("second word\n"))
	passwords.reconnect("password of Postgres")

	next := envtest.NewAuthority(t, s.file("next.pem"), "the next authority")
	both := append(readFile(t, s.ca.File), readFile(t, next.File)...)
	s.trust(t, both)
	next.Issue(t, own, envtest.Leaf{Name: certificates.role})
	next.Issue(t, client, envtest.Leaf{Name: principal})
	certificates.reconnect("certificates of the client")

	for _, r := range []*rotation{passwords, certificates} {
		envtest.ReplaceFile(t, r.ca, both)
	}
	s.renew(t, next)
	for _, r := range []*rotation{passwords, certificates} {
		envtest.ReplaceFile(t, r.ca, readFile(t, next.File))
		r.reconnect("certificates of the servers")
	}
	if err := s.kafka.Stop(); err != nil { // ends all connections, so that each is made with what is new
		t.Fatal(err)
	}
	if err := s.kafka.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*rotation{passwords, certificates} {
		r.awaitProgress("restart of the broker")
	}
	cancel()
	loads.Wait()
	for _, r := range []*rotation{passwords, certificates} {
		r.checkOnce(r.load, 2*patience)
		r.runCommand("audit")
		r.stop()
		r.Logf("%d campaigns", len(r.load))
	}
}

// trust makes both servers trust the authorities of a bundle.
func (s *securedServers) trust(t *testing.T, bundle []byte) {
	t.Helper()
	envtest.ReplaceFile(t, s.ca.File, bundle)
	if err := os.Chmod(s.ca.File, 0o644); err != nil {
		t.Fatal(err)
	}
	envtest.ReplaceFile(t, s.file("bundle.pem"), bundle)
	s.kafka.Reload(t, "MUTUAL", "ssl.truststore.location", s.file("bundle.pem"))
	s.reloadPostgres(t)
}

// renew gives both servers certificates of another authority.
func (s *securedServers) renew(t *testing.T, a *envtest.Authority) {
	t.Helper()
	hosts := []string{"127.0.0.1", "kafka.internal"}
	// A running Kafka takes no certificate with another name than the one before.
	a.Issue(t, s.file("renewed"), envtest.Leaf{Name: "server", Hosts: hosts, Ends: 1000 * time.Hour})
	a.Issue(t, s.file("postgres"), envtest.Leaf{Name: "renewed", Hosts: hosts, Ends: 1000 * time.Hour})
	for _, port := range []string{"SCRAM512", "MUTUAL"} {
		s.kafka.Reload(t, port, "ssl.keystore.location", s.file("renewed.both.pem"))
	}
	s.reloadPostgres(t)
}

func (s *securedServers) reloadPostgres(t *testing.T) {
	t.Helper()
	s.admin.Exec(`SELECT pg_reload_conf()`)
}

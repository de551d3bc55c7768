package e2e

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"

	"github.com/youmark/pkcs8"
)

// rotation is a daemon whose secrets change while it delivers.
type rotation struct {
	*deployment

	mechanism mechanism
	role      string
	ca        string // files that the configuration names; the test replaces them
	load      map[string]string
}

// newRotation makes a deployment under the documented rights, with authorities in a file
// of its own.
func (s *securedServers) newRotation(t *testing.T, m mechanism) *rotation {
	t.Helper()
	r := &rotation{deployment: s.newDeployment(t), mechanism: m}
	r.addSubscriptions(4, 50)
	r.setup(1)
	s.grantDocumented(r.deployment, "run", "beside these")
	u, err := url.Parse(r.db.RoleURL())
	if err != nil {
		t.Fatal(err)
	}
	r.role, r.ca = u.User.Username(), s.file(r.name+"-ca.pem")
	envtest.ReplaceFile(t, r.ca, readFile(t, s.ca.File))
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

// rotations are three daemons, with the files of their secrets.
type rotations struct {
	servers                        *securedServers
	passwords, certificates, plain *rotation
	word, login, plainLogin        string // passwords of Postgres, of SCRAM and of PLAIN
	own, client, phrase            string // certificates for Postgres and Kafka, and the password of Kafka's key
}

func (r *rotations) all() []*rotation { return []*rotation{r.passwords, r.certificates, r.plain} }

// newRotations makes one daemon with passwords, one with certificates, and one with the
// mechanism PLAIN.
func (s *securedServers) newRotations(t *testing.T) *rotations {
	t.Helper()
	r := &rotations{
		servers: s, passwords: s.newRotation(t, mechanisms[2]), certificates: s.newRotation(t, mechanisms[3]), plain: s.newRotation(t, mechanisms[0]),
		word: s.file("postgres-password"), login: s.file("kafka-password"), plainLogin: s.file("plain-password"),
		own: s.file("own"), client: s.file("rotated"), phrase: s.file("key-password"),
	}
	envtest.ReplaceFile(t, r.word, []byte("first word\n"))
	for login, daemon := range map[string]*rotation{r.login: r.passwords, r.plainLogin: r.plain} {
		envtest.ReplaceFile(t, login, []byte(secret+"\n"))
		daemon.db.Exec(`ALTER ROLE ` + daemon.role + ` PASSWORD 'first word'`)
		daemon.setConfig("kafka", with(with(s.kafkaSettings(daemon.deployment, daemon.mechanism), "tls", map[string]any{"ca": daemon.ca}), "sasl", map[string]any{"password": "${file:" + login + "}"}))
		daemon.setConfig("source", map[string]any{
			"url": address(t, daemon.db.URL, url.User(daemon.role), "sslmode=verify-full", "sslrootcert="+daemon.ca), "slot": daemon.name, "password_command": []string{"cat", r.word},
		})
	}
	c := r.certificates
	c.db.Exec(`GRANT certified TO ` + c.role)
	r.issue(s.ca, "first phrase")
	c.setConfig("kafka", with(s.kafkaSettings(c.deployment, c.mechanism), "tls", map[string]any{"ca": c.ca, "cert": r.client + ".pem", "key": r.client + ".key", "key_password": "${file:" + r.phrase + "}"}))
	c.setConfig("source", map[string]any{
		"url": address(t, c.db.URL, url.User(c.role), "sslmode=verify-full", "sslrootcert="+c.ca, "sslcert="+r.own+".pem", "sslkey="+r.own+".key"), "slot": c.name,
	})
	return r
}

// issue gives the daemon with certificates new ones. Its key for Kafka is encrypted.
func (r *rotations) issue(a *envtest.Authority, phrase string) {
	c := r.certificates
	c.Helper()
	a.Issue(c, r.own, envtest.Leaf{Name: c.role})
	_, plain := a.Issue(c, r.client+"-next", envtest.Leaf{Name: principal})
	block, _ := pem.Decode(readFile(c.T, plain))
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		c.Fatal(err)
	}
	der, err := pkcs8.MarshalPrivateKey(key, []byte(phrase), nil)
	if err != nil {
		c.Fatal(err)
	}
	envtest.ReplaceFile(c, r.phrase, []byte(phrase+"\n"))
	envtest.ReplaceFile(c, r.client+".key", pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: der}))
	envtest.ReplaceFile(c, r.client+".pem", readFile(c.T, r.client+"-next.pem"))
}

// checkRotation replaces each secret and each certificate while three daemons deliver.
// Nothing is lost or doubled.
func (s *securedServers) checkRotation(t *testing.T) {
	r := s.newRotations(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var loads sync.WaitGroup
	for _, d := range r.all() {
		d.start()
		d.awaitReady()
		loads.Go(func() { d.load = d.produceLoad(ctx, 1, 4, 100*time.Millisecond) })
	}
	r.replacePasswords()
	r.replaceCertificates(t)
	r.restartBroker(t)
	cancel()
	loads.Wait()
	for _, d := range r.all() {
		d.checkOnce(d.load, 2*patience)
		d.runCommand("audit")
		d.stop()
		d.Logf("%d campaigns", len(d.load))
	}
}

// replacePasswords replaces those that the servers change as they run.
func (r *rotations) replacePasswords() {
	d := r.passwords
	d.Helper()
	r.servers.kafka.SetPassword(d, principal, "another word")
	envtest.ReplaceFile(d, r.login, []byte("another word\n"))
	d.awaitProgress("SCRAM password") // its sessions end after sessionLength
	for _, d := range []*rotation{r.passwords, r.plain} {
		d.db.Exec(`ALTER ROLE ` + d.role + ` PASSWORD 'second word'`)
	}
	envtest.ReplaceFile(d, r.word, []byte("second word\n"))
	d.reconnect("password of Postgres")
}

// replaceCertificates replaces the authority, and all that it has signed. In the end
// nobody trusts the former one.
func (r *rotations) replaceCertificates(t *testing.T) {
	t.Helper()
	s := r.servers
	next := envtest.NewAuthority(t, s.file("next.pem"), "the next authority")
	both := append(readFile(t, s.ca.File), readFile(t, next.File)...)
	s.trust(t, both)
	r.issue(next, "second phrase")
	r.certificates.reconnect("certificates of the client")
	for _, d := range r.all() {
		envtest.ReplaceFile(t, d.ca, both)
	}
	s.renew(t, next)
	for _, d := range r.all() {
		envtest.ReplaceFile(t, d.ca, readFile(t, next.File))
	}
	s.trust(t, readFile(t, next.File))
	for _, d := range r.all() {
		d.reconnect("certificates of the servers")
	}
}

// restartBroker ends all connections to Kafka, so that each is made with what is new.
// Kafka reads the passwords of PLAIN at its start alone: an existing listener does not
// take another login module. The daemon comes back though its file follows later.
func (r *rotations) restartBroker(t *testing.T) {
	t.Helper()
	s := r.servers
	if err := s.kafka.Stop(); err != nil {
		t.Fatal(err)
	}
	s.kafka.Set("listener.name.plain." + plainUsers("third word"))
	r.plain.log.clear()
	if err := s.kafka.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, d := range []*rotation{r.passwords, r.certificates} {
		d.awaitProgress("restart of the broker")
	}
	envtest.Until(t, patience, func() error {
		// The line that names kafka.sasl.password is the minute's summary of failed attempts.
		if log := r.plain.log.tail(1 << 20); !strings.Contains(log, "SASL_AUTHENTICATION_FAILED") {
			return fmt.Errorf("the former password of PLAIN is not refused: %s", log)
		}
		return nil
	})
	envtest.ReplaceFile(t, r.plainLogin, []byte("third word\n"))
	r.plain.awaitProgress("password of PLAIN")
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
	for _, port := range []string{"PLAIN", "SCRAM512", "MUTUAL"} {
		s.kafka.Reload(t, port, "ssl.keystore.location", s.file("renewed.both.pem"))
	}
	s.reloadPostgres(t)
}

func (s *securedServers) reloadPostgres(t *testing.T) {
	t.Helper()
	s.admin.Exec(`SELECT pg_reload_conf()`)
}

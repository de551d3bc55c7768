package e2e

import (
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/envtest"
)

// principal is the user of the daemon in Kafka, by each mechanism, and secret its password.
const (
	principal = "dinnerbell"
	secret    = "right word"
)

// writingUser and readingUser are the users of the services on both sides, as
// docs/security.md names them.
const (
	writingUser = "restaurants"
	readingUser = "push"
)

// mechanism is a way to log in to Kafka.
type mechanism struct {
	name   string // kafka.sasl.mechanism; "mutual TLS" is none
	port   string // listener that takes this mechanism alone
	broken string // prefix of the listeners with a wrong certificate
	next   string // another mechanism, which the port does not take
}

const mutualTLS = "mutual TLS"

var mechanisms = []mechanism{
	{"PLAIN", "PLAIN", "", "SCRAM-SHA-256"},
	{"SCRAM-SHA-256", "SCRAM256", "", "SCRAM-SHA-512"},
	{"SCRAM-SHA-512", "SCRAM512", "", "PLAIN"},
	{mutualTLS, "MUTUAL", "MUTUAL_", ""},
}

// securedServers are an Apache Kafka and a Postgres that let in nobody without a proof.
type securedServers struct {
	dir          string // holds all certificates
	ca, stranger *envtest.Authority
	kafka        *envtest.SecureKafka
	postgres     *testenv.Postgres
	admin        *envtest.DB // of the superuser
}

// file returns the path of a certificate.
func (s *securedServers) file(name string) string { return filepath.Join(s.dir, name) }

// newSecuredServers makes the certificates and starts both servers, which end with the
// test.
func newSecuredServers(t *testing.T) *securedServers {
	t.Helper()
	s := &securedServers{dir: envtest.Dir(t)}
	s.ca = envtest.NewAuthority(t, s.file("ca.pem"), "the authority")
	s.stranger = envtest.NewAuthority(t, s.file("stranger.pem"), "a stranger")
	here := []string{"127.0.0.1", "kafka.internal"}
	for name, l := range map[string]envtest.Leaf{
		"server": {Name: "server", Hosts: here, Ends: 1000 * time.Hour}, "expired": {Name: "server", Hosts: here, Ends: -time.Hour}, "misnamed": {Name: "server", Hosts: []string{"elsewhere.internal"}},
		"client": {Name: principal}, "client-" + writingUser: {Name: writingUser}, "client-" + readingUser: {Name: readingUser},
		"client-expired": {Name: principal, Ends: -time.Hour}, "client-other": {Name: "somebody"},
		"postgres": {Name: "postgres", Hosts: here, Ends: 1000 * time.Hour},
	} {
		s.ca.Issue(t, s.file(name), l)
	}
	s.stranger.Issue(t, s.file("client-stranger"), envtest.Leaf{Name: principal})
	s.startPostgres(t)
	s.kafka = envtest.StartSecureKafka(t, filepath.Join(s.dir, "kafka"), s.listeners())
	for _, user := range []string{principal, writingUser, readingUser} {
		s.kafka.SetPassword(t, user, secret)
	}
	return s
}

// sessionLength makes the broker of a port ask for the password again every 2 s (KIP-368),
// so that a changed password matters to connections that are there.
const sessionLength = "connections.max.reauth.ms=2000"

// plainUsers is the setting of a listener with the passwords of PLAIN.
func plainUsers(password string) string {
	text := "plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required"
	for user, password := range map[string]string{principal: password, writingUser: secret, readingUser: secret} {
		text += " user_" + user + `="` + password + `"`
	}
	return text + ";"
}

// listeners are a port for each mechanism, one without TLS for all, and ports with wrong
// certificates.
func (s *securedServers) listeners() []envtest.Listener {
	jaas := map[string]string{
		"PLAIN":         plainUsers(secret),
		"SCRAM-SHA-256": `scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;`,
		"SCRAM-SHA-512": `scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;`,
	}
	store := func(name string) string { return "ssl.keystore.location=" + s.file(name+".both.pem") }
	wantsClient := []string{"ssl.client.auth=required", "ssl.truststore.location=" + s.ca.File}
	var all []string
	for _, line := range jaas {
		all = append(all, line)
	}
	return []envtest.Listener{
		{Name: "PLAIN", Protocol: "SASL_SSL", Settings: []string{store("server"), "sasl.enabled.mechanisms=PLAIN", jaas["PLAIN"]}},
		{Name: "SCRAM256", Protocol: "SASL_SSL", Settings: []string{store("server"), "sasl.enabled.mechanisms=SCRAM-SHA-256", jaas["SCRAM-SHA-256"]}},
		{Name: "SCRAM512", Protocol: "SASL_SSL", Settings: []string{store("server"), "sasl.enabled.mechanisms=SCRAM-SHA-512", jaas["SCRAM-SHA-512"], sessionLength}},
		{Name: "MUTUAL", Protocol: "SSL", Settings: slices.Concat(wantsClient, []string{store("server")})},
		{Name: "UNENCRYPTED", Protocol: "SASL_PLAINTEXT", Settings: all},
		{Name: "EXPIRED", Protocol: "SASL_SSL", Settings: slices.Concat(all, []string{store("expired")})},
		{Name: "MISNAMED", Protocol: "SASL_SSL", Settings: slices.Concat(all, []string{store("misnamed")})},
		{Name: "MUTUAL_EXPIRED", Protocol: "SSL", Settings: slices.Concat(wantsClient, []string{store("expired")})},
		{Name: "MUTUAL_MISNAMED", Protocol: "SSL", Settings: slices.Concat(wantsClient, []string{store("misnamed")})},
	}
}

// securedRules let in the test itself, roles of the group certified by a certificate, and
// others by a password; nobody without TLS.
//
//nolint:dupword // every database, every role
const securedRules = `host all postgres 127.0.0.1/32 trust
hostssl all +certified 127.0.0.1/32 cert
hostssl all all 127.0.0.1/32 scram-sha-256
`

// startPostgres starts the server with TLS and these rules.
func (s *securedServers) startPostgres(t *testing.T) {
	t.Helper()
	s.postgres = envtest.StartPostgres(t, filepath.Join(s.dir, "db"), nil)
	t.Cleanup(func() {
		if err := s.postgres.Stop(); err != nil {
			t.Error(err)
		}
	})
	rules := s.file("rules.conf")
	if err := os.WriteFile(rules, []byte(securedRules), 0o644); err != nil {
		t.Fatal(err)
	}
	envtest.GiveToOwner(t, filepath.Join(s.dir, "db", "data"), s.file("postgres.pem"), s.file("postgres.key"))
	if err := os.Chmod(s.ca.File, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.postgres.Stop(); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"ssl": "on", "ssl_cert_file": s.file("postgres.pem"), "ssl_key_file": s.file("postgres.key"), "ssl_ca_file": s.ca.File, "hba_file": rules} {
		s.postgres.Set(name, value)
	}
	if err := s.postgres.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.admin = envtest.NamedDatabase(t, s.postgres, "admin")
	s.admin.Exec(`CREATE ROLE certified`)
}

// kafkaSettings returns the section kafka for a mechanism, in order.
func (s *securedServers) kafkaSettings(d *deployment, m mechanism) map[string]any {
	section := map[string]any{
		"brokers": []string{s.kafka.Ports[m.port]}, "campaigns": d.topicName("campaigns"), "notifications": d.topicName("notifications"),
		"dead_letters": d.topicName("dead"), "progress": d.topicName("progress"), "group": d.name,
		"tls": map[string]any{"enabled": true, "ca": s.ca.File},
	}
	if m.name == mutualTLS {
		section["tls"] = map[string]any{"enabled": true, "ca": s.ca.File, "cert": s.file("client.pem"), "key": s.file("client.key")}
		return section
	}
	section["sasl"] = map[string]any{"mechanism": m.name, "username": principal, "password": secret}
	return section
}

// with returns a section with other values in a part of it.
func with(section map[string]any, part string, values map[string]any) map[string]any {
	changed := maps.Clone(section)
	inner, _ := changed[part].(map[string]any)
	inner = maps.Clone(inner)
	if inner == nil {
		inner = map[string]any{}
	}
	maps.Copy(inner, values)
	changed[part] = inner
	return changed
}

// address returns the address of a database for a role, with a query.
func address(t testing.TB, of string, user *url.Userinfo, query ...string) string {
	t.Helper()
	u, err := url.Parse(of)
	if err != nil {
		t.Fatal(err)
	}
	u.User, u.RawQuery = user, strings.Join(query, "&")
	return u.String()
}

// readFile returns the text of a file.
func readFile(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

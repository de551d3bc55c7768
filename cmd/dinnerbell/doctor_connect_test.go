package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/envtest"
)

// makeCertificate writes a certificate that signs itself, and its key, for a name and
// 127.0.0.1, with an end; names without 127.0.0.1 if alone.
func makeCertificate(t *testing.T, dir string, end time.Time, alone bool) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "made for a test"}, DNSNames: []string{"server.internal"},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: end, IsCA: true, BasicConstraintsValid: true}
	if !alone {
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

const accessRules = `local all postgres trust
hostssl all encrypted 127.0.0.1/32 trust
host all secret 127.0.0.1/32 scram-sha-256
hostssl all certified 127.0.0.1/32 cert
host all postgres,bell,idle,ghost 127.0.0.1/32 trust
`

// newStrictServer starts a Postgres with TLS and rules about who may connect, and
// returns the folder with its certificate.
func newStrictServer(t *testing.T) (server *testenv.Postgres, dir string) {
	t.Helper()
	dir = envtest.Dir(t)
	server = envtest.StartPostgres(t, filepath.Join(dir, "postgres"), nil)
	cert, key := makeCertificate(t, dir, time.Now().Add(time.Hour), false)
	rules := filepath.Join(dir, "rules.conf")
	if err := os.WriteFile(rules, []byte(accessRules), 0o644); err != nil {
		t.Fatal(err)
	}
	envtest.GiveToOwner(t, filepath.Join(dir, "postgres", "data"), cert, key)
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"ssl": "on", "ssl_cert_file": cert, "ssl_key_file": key, "ssl_ca_file": cert, "hba_file": rules} {
		server.Set(name, value)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return server, dir
}

// Each way in which a connection to Postgres fails has its name and its mending.
func TestDoctorNamesWhyPostgresLetsNobodyIn(t *testing.T) {
	t.Parallel()
	p := newPatient(t, "")
	p.set("kafka.brokers", []string{"127.0.0.1:1"}) // costs nothing
	server, dir := newStrictServer(t)
	p.db = envtest.DatabaseOn(t, server)
	p.owner = p.db.Pool
	p.set("sink.url", p.db.URL)
	for _, sql := range []string{
		`CREATE ROLE encrypted LOGIN`, `CREATE ROLE secret LOGIN PASSWORD 'right word'`, `CREATE ROLE certified LOGIN`, `CREATE ROLE bell LOGIN`, `CREATE ROLE idle`, `CREATE ROLE stranger LOGIN`,
	} {
		p.db.Exec(sql)
	}
	at := func(role, query string) string {
		u, err := url.Parse(p.db.URL)
		if err != nil {
			t.Fatal(err)
		}
		u.User, u.RawQuery = url.User(role), query
		return u.String()
	}
	try := func(address string, i ill) []jsonFinding {
		t.Helper()
		p.set("source.url", address)
		if i.check == "" {
			i.check, i.level = "source.connection", "FAIL"
		}
		return p.look(i)
	}
	mend := func(address string, i ill) { // by the statement
		t.Helper()
		for _, f := range try(address, i) {
			p.apply(f)
		}
		p.look(ill{"source.connection", "ok", "Postgres", "-"})
	}
	ok := ill{"source.connection", "ok", "Postgres", "-"}
	_, otherCA := makeCertificate(t, t.TempDir(), time.Now().Add(time.Hour), false)
	otherCA = filepath.Join(filepath.Dir(otherCA), "server.pem")
	ca := filepath.Join(dir, "server.pem")

	mend(at("ghost", "sslmode=disable"), ill{found: "missing role", fix: `CREATE ROLE "ghost" LOGIN; -- or correct the name in source.url`})
	mend(at("idle", "sslmode=disable"), ill{found: "the role may not log in", fix: `ALTER ROLE "idle" LOGIN`})
	try(at("secret", ""), ill{found: "no password", fix: "put the password of role"})
	withPassword := func(password string) string {
		u, err := url.Parse(at("secret", ""))
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword("secret", password)
		return u.String()
	}
	try(withPassword("wrong word"), ill{found: "wrong password, or no such role", fix: "correct the password in source.url"})
	try(withPassword("right word"), ok)
	p.set("source.password_command", []string{"echo", "right word"})
	try(at("secret", ""), ok)
	p.set("source.password_command", []string{"cat", filepath.Join(dir, "no-token")})
	try(at("secret", ""), ill{found: "source.password_command: cat: exit status 1", fix: "-"})
	p.set("source.password_command", []string{})
	elsewhere, err := url.Parse(at("bell", "sslmode=disable"))
	if err != nil {
		t.Fatal(err)
	}
	elsewhere.Path = "/elsewhere"
	mend(elsewhere.String(), ill{found: "wrong database", fix: `CREATE DATABASE "elsewhere"; -- or correct the name in source.url`})
	p.db.Exec(`REVOKE CONNECT ON DATABASE test FROM PUBLIC`)
	mend(at("bell", "sslmode=disable"), ill{found: "may not connect", fix: `GRANT CONNECT ON DATABASE "test" TO "bell"`})
	p.db.Exec(`ALTER ROLE bell CONNECTION LIMIT 0`)
	mend(at("bell", "sslmode=disable"), ill{found: "the role has no connection left", fix: `ALTER ROLE "bell" CONNECTION LIMIT -1`})
	p.db.Exec(`GRANT CONNECT ON DATABASE test TO PUBLIC`)

	try(at("encrypted", "sslmode=disable"), ill{found: "refused without encryption", fix: "set sslmode=verify-full (or require) in source.url"})
	try(at("encrypted", "sslmode=require"), ok)
	try(at("stranger", ""), ill{found: "no entry in pg_hba.conf", fix: `host "test" "stranger" 127.0.0.1/32 scram-sha-256`})
	try(at("certified", ""), ill{found: "missing client certificate", fix: "sslcert=FILE and sslkey=FILE in source.url"})
	try(at("bell", "sslmode=verify-full&sslrootcert="+otherCA), ill{found: "wrong CA", fix: "set sslrootcert in source.url"})
	try(at("bell", "sslmode=verify-full&sslrootcert="+ca), ok)
	p.look(ill{"source.encryption", "warn", "TLS 1.3, certificate until", "renew"}) // it ends in an hour
	replace := func(end time.Time, alone bool) {
		t.Helper()
		cert, key := makeCertificate(t, dir, end, alone)
		envtest.GiveToOwner(t, filepath.Join(dir, "postgres", "data"), cert, key)
		p.db.Exec(`SELECT pg_reload_conf()`)
	}
	replace(time.Now().Add(1000*time.Hour), true)
	p.await(ill{"source.connection", "FAIL", "wrongly named certificate", "as the certificate does (server.internal)"})
	replace(time.Now().Add(-time.Hour), false)
	p.await(ill{"source.connection", "FAIL", "expired certificate", "renew the certificate of the server, which ended at"})
	replace(time.Now().Add(1000*time.Hour), false)
	p.await(ok)
	p.look(ill{"source.encryption", "ok", "TLS 1.3, certificate until", "-"})

	for address, i := range map[string]ill{
		"postgres://bell@" + envtest.Serve(t, nil) + "/de":                                {found: "nobody listens there", fix: "start Postgres, or correct host and port in source.url"},
		"postgres://bell@" + envtest.Serve(t, envtest.HoldConn) + "/de?connect_timeout=1": {found: "no answer", fix: "see whether the host is up"},
		"postgres://bell@no-such-host.invalid/de":                                         {found: "unknown host", fix: "correct the host in source.url"},
		"postgres://bell@" + envtest.Serve(t, serveTLS(t)) + "/de?connect_timeout=1":      {found: "no Postgres: the port speaks TLS from the first byte", fix: "name Postgres' own port in source.url"},
		"postgres://bell@" + envtest.Serve(t, serveText("SSH-2.0-OpenSSH\r\n")) + "/de":   {found: "no Postgres answered", fix: "see what listens"},
		envtest.Database(t).URL + "&sslmode=require":                                      {found: "the server takes no TLS", fix: "ALTER SYSTEM SET ssl = on"},
	} {
		try(address, i)
	}
}

// await waits for a finding, which depends on another process's reading of its files.
func (p *patient) await(i ill) {
	p.t.Helper()
	envtest.Until(p.t, envtest.Patience, func() error { return p.has(i) })
}

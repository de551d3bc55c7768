package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"

	"github.com/jackc/pgx/v5"
)

// fault is one mistake about the trust between the daemon and a server.
type fault struct {
	name    string         // as the table shows it
	section string         // of the configuration: kafka or source
	values  map[string]any // of the section
	// certificate is what Postgres shows meanwhile; "": its own.
	certificate string
	harmless    bool // the daemon connects all the same
}

// check is the name of the finding of `doctor`.
func (f fault) check() string { return f.section + ".connection" }

// kafkaFaults returns what can be wrong with a mechanism.
func (s *securedServers) kafkaFaults(d *deployment, m mechanism) (all []fault) {
	good := s.kafkaSettings(d, m)
	at := func(section map[string]any, broker string) map[string]any {
		section = maps.Clone(section)
		section["brokers"] = []string{broker}
		return section
	}
	leaveOut := func(section map[string]any, part string) map[string]any {
		section = maps.Clone(section)
		delete(section, part)
		return section
	}
	add := func(name string, section map[string]any) {
		all = append(all, fault{name: name, section: "kafka", values: section})
	}
	add("kafka.tls.ca names another authority", with(good, "tls", map[string]any{"ca": s.stranger.File}))
	add("certificate of the broker has expired", at(good, s.kafka.Ports[m.broken+"EXPIRED"]))
	add("certificate of the broker is for another host", at(good, s.kafka.Ports[m.broken+"MISNAMED"]))
	add("no TLS, to a port with TLS", leaveOut(good, "tls"))
	if m.name == mutualTLS {
		add("TLS, to a port without", at(good, s.kafka.Addr()))
		add("no SASL, to a port with SASL", at(good, s.kafka.Ports["PLAIN"]))
		add("no client certificate", with(good, "tls", map[string]any{"cert": "", "key": ""}))
		for _, c := range []struct{ name, file string }{{"client certificate of another authority", "client-stranger"}, {"client certificate has expired", "client-expired"}} {
			add(c.name, with(good, "tls", map[string]any{"cert": s.file(c.file + ".pem"), "key": s.file(c.file + ".key")}))
		}
		return all
	}
	add("TLS, to a port without", at(good, s.kafka.Ports["UNENCRYPTED"]))
	add("no SASL, to a port with SASL", leaveOut(good, "sasl"))
	add("SASL, to a port without", at(leaveOut(good, "tls"), s.kafka.Addr()))
	add("wrong password", with(good, "sasl", map[string]any{"password": "wrong word"}))
	add("unknown user", with(good, "sasl", map[string]any{"username": "stranger"}))
	add("mechanism that the port does not take", with(good, "sasl", map[string]any{"mechanism": m.next}))
	return all
}

// failure is what a user sees of a fault.
type failure struct {
	level, kind, fix string // of `doctor`
	run              string // the error that `run` logs
}

// watchFault runs `doctor` and `run` under a fault, and returns what each says about it.
func (s *securedServers) watchFault(d *deployment, f fault) (seen failure) {
	d.Helper()
	d.setConfig(f.section, f.values)
	out, err := exec.CommandContext(d.Context(), d.binary, "-c", d.config, "doctor", "--json").Output()
	if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended {
		d.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		var found struct {
			Name  string `json:"name"`
			Level string `json:"level"`
			Found string `json:"found"`
			Fix   string `json:"fix"`
		}
		if err := json.Unmarshal([]byte(line), &found); err != nil {
			d.Fatalf("%q: %v", line, err)
		}
		if found.Name == f.check() {
			kind, _, _ := strings.Cut(found.Found, ": ")
			seen = failure{level: found.Level, kind: kind, fix: found.Fix}
		}
	}
	d.log = &logBuffer{}
	d.start()
	defer d.kill()
	if f.harmless {
		d.awaitReady()
		return seen
	}
	envtest.Until(d, patience, func() error {
		seen.run = firstComplaint(d.log.tail(1 << 20))
		if seen.run == "" {
			return fmt.Errorf("the daemon complains of nothing under %q: %s", f.name, d.log.tail(4096))
		}
		return nil
	})
	return seen
}

// complaint matches the error of a line of the log from warnings on, of the daemon itself:
// what the Kafka library logs before has no hint.
var complaint = regexp.MustCompile(`(?m)^time=\S+ level=(?:WARN|ERROR) msg="(?:cannot|lane) .*?\berror=("(?:[^"\\]|\\.)*"|\S+)`)

// firstComplaint returns the error of the first warning in a log, "" if there is none.
func firstComplaint(log string) string {
	m := complaint.FindStringSubmatch(log)
	if m == nil {
		return ""
	}
	if text, err := strconv.Unquote(m[1]); err == nil {
		return text
	}
	return m[1]
}

// checkKafkaFaults returns the rows of a mechanism.
func (s *securedServers) checkKafkaFaults(t *testing.T, m mechanism) (rows []faultRow) {
	t.Helper()
	d := s.newDeployment(t)
	d.setup(1)
	s.grantDocumented(d, "run")
	for _, f := range s.kafkaFaults(d, m) {
		rows = append(rows, newFaultRow(d, s, m.name, f, s.watchFault(d, f)))
	}
	return rows
}

// postgresFaults returns what can be wrong with a login to Postgres.
func (s *securedServers) postgresFaults(d *deployment) (all []fault) {
	d.Helper()
	add := func(name string, user *url.Userinfo, query ...string) *fault {
		all = append(all, fault{name: name, section: "source", values: map[string]any{"url": address(d, d.db.URL, user, query...), "slot": d.name}})
		return &all[len(all)-1]
	}
	name, certified := d.name+"_password", d.name+"_certified"
	d.db.Exec(`CREATE ROLE ` + name + ` LOGIN SUPERUSER PASSWORD '` + secret + `'; CREATE ROLE ` + certified + ` LOGIN SUPERUSER IN ROLE certified`)
	user := url.UserPassword(name, secret)
	ca := "sslrootcert=" + s.ca.File
	s.ca.Issue(d, s.file("role"), envtest.Leaf{Name: certified})
	s.ca.Issue(d, s.file("role-expired"), envtest.Leaf{Name: certified, Ends: -time.Hour})
	s.stranger.Issue(d, s.file("role-stranger"), envtest.Leaf{Name: certified})
	for _, mode := range []string{"verify-full", "verify-ca"} {
		add("sslmode="+mode+", sslrootcert names another authority", user, "sslmode="+mode, "sslrootcert="+s.stranger.File)
	}
	for _, certificate := range []string{"expired", "misnamed"} {
		for _, mode := range []string{"verify-full", "verify-ca", "require"} {
			query := []string{"sslmode=" + mode, ca}
			if mode == "require" {
				query = query[:1] // with an authority it is verify-ca
			}
			f := add("sslmode="+mode+map[string]string{"expired": ", certificate of the server has expired", "misnamed": ", certificate of the server is for another host"}[certificate], user, query...)
			f.certificate, f.harmless = certificate, mode == "require" || mode == "verify-ca" && certificate == "misnamed"
		}
	}
	add("no TLS, to a server that wants it", user, "sslmode=disable")
	all = append(all, fault{name: "TLS, to a server without", section: "source", values: map[string]any{"url": address(d, envtest.Database(d).URL, url.User("postgres"), "sslmode=require"), "slot": d.name}})
	add("wrong password", url.UserPassword(name, "wrong word"), "sslmode=verify-full", ca)
	add("no password", url.User(name), "sslmode=verify-full", ca)
	add("unknown role", url.UserPassword("stranger", secret), "sslmode=verify-full", ca)
	add("no client certificate", url.User(certified), "sslmode=verify-full", ca)
	for _, c := range []struct{ name, file string }{{"client certificate of another authority", "role-stranger"}, {"client certificate has expired", "role-expired"}, {"client certificate of another role", "client-other"}} {
		add(c.name, url.User(certified), "sslmode=verify-full", ca, "sslcert="+s.file(c.file+".pem"), "sslkey="+s.file(c.file+".key"))
	}
	return all
}

// checkPostgresFaults returns the rows of Postgres.
func (s *securedServers) checkPostgresFaults(t *testing.T) (rows []faultRow) {
	t.Helper()
	d := s.newDeployment(t)
	d.setup(1)
	shown := ""
	for _, f := range s.postgresFaults(d) {
		if f.certificate != shown {
			s.showCertificate(t, f.certificate)
			shown = f.certificate
		}
		rows = append(rows, newFaultRow(d, s, "Postgres", f, s.watchFault(d, f)))
	}
	return rows
}

// showCertificate makes Postgres show another certificate; "" is its own.
func (s *securedServers) showCertificate(t *testing.T, name string) {
	t.Helper()
	file := name
	if name == "" {
		file = "own-postgres"
	}
	for _, kind := range []string{".key", ".pem"} {
		if shown := readFile(t, s.file("postgres"+kind)); name != "" && !fileExists(s.file("own-postgres"+kind)) {
			envtest.ReplaceFile(t, s.file("own-postgres"+kind), shown)
		}
		envtest.ReplaceFile(t, s.file("postgres"+kind), readFile(t, s.file(file+kind)))
	}
	s.admin.Exec(`SELECT pg_reload_conf()`)
	strict := address(t, s.admin.URL, url.User("postgres"), "sslmode=verify-full", "sslrootcert="+s.ca.File)
	envtest.Until(t, patience, func() error {
		conn, err := pgx.Connect(t.Context(), strict)
		if err == nil {
			err = conn.Close(t.Context())
		}
		want := map[string]string{"expired": "has expired", "misnamed": "doesn't contain any IP SANs"}[name]
		if (err == nil) != (name == "") || err != nil && !strings.Contains(err.Error(), want) {
			return fmt.Errorf("Postgres does not show the certificate %q yet: %w", name, err)
		}
		return nil
	})
}

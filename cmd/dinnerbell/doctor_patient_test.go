package main

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"dinnerbell/internal/testenv/envtest"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// patient is a deployment that a test breaks, and mends by what the doctor prints.
type patient struct {
	*deployment

	owner  *pgxpool.Pool // runs the statements, as a superuser
	admin  *kadm.Client  // does what the printed commands of Kafka do
	mended []string      // the fixes that were applied
}

// newPatient makes a deployment. The doctor logs in to the source with sourceURL; "":
// as the owner.
func newPatient(t *testing.T, sourceURL string) *patient {
	t.Helper()
	p := &patient{deployment: newDeployment(t)}
	p.owner, p.admin = p.db.Pool, kadm.NewClient(p.kafka.Client())
	p.set("sink.url", p.db.URL)
	if sourceURL != "" {
		p.set("source.url", sourceURL)
	}
	return p
}

// set changes a key of the configuration.
func (p *patient) set(key string, value any) {
	p.t.Helper()
	text, err := os.ReadFile(p.config)
	if err != nil {
		p.t.Fatal(err)
	}
	var cfg map[string]any
	if err := json.Unmarshal(text, &cfg); err != nil {
		p.t.Fatal(err)
	}
	section := cfg
	words := strings.Split(key, ".")
	for _, word := range words[:len(words)-1] {
		inner, ok := section[word].(map[string]any)
		if !ok {
			inner = map[string]any{}
			section[word] = inner
		}
		section = inner
	}
	section[words[len(words)-1]] = value
	if text, err = json.Marshal(cfg); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(p.config, text, 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// ill is what the doctor must say of a check.
type ill struct {
	check string // name
	level string
	found string // in the object, the fact or the effect
	fix   string // in what mends it; "-": nothing does
}

// look runs the doctor and checks that each ill has its finding. It returns the
// findings in the order of the ills.
func (p *patient) look(ills ...ill) []jsonFinding {
	p.t.Helper()
	all := p.doctor(asItSays)
	var found []jsonFinding
	for _, want := range ills {
		at := slices.IndexFunc(all[want.check], want.matches)
		if at < 0 {
			p.t.Errorf("%s: no %s with %q and the fix %q in %+v", want.check, want.level, want.found, want.fix, all[want.check])
			continue
		}
		f := all[want.check][at]
		if want.level != "ok" && want.level != "unknown" && want.fix != "-" && f.Fix == "" {
			p.t.Errorf("%s: nothing mends %+v", want.check, f)
		}
		found = append(found, f)
	}
	return found
}

// heal checks that the doctor finds the ills, applies what mends them, and checks that
// the doctor finds them no more. A fault may hide another one, so that this takes some
// rounds.
func (p *patient) heal(ills ...ill) {
	p.t.Helper()
	found := p.look(ills...)
	for _, f := range found {
		p.apply(f)
	}
	const rounds = 5
	for range rounds {
		left := p.left(ills)
		if len(left) == 0 {
			return
		}
		for _, f := range left {
			p.apply(f)
		}
	}
	for _, f := range p.left(ills) {
		p.t.Errorf("%s is still %s: %s: %s; fix %s", f.Name, f.Level, f.Object, f.Found, f.Fix)
	}
}

// left returns the findings of the ills' checks that still have the level of the ill.
func (p *patient) left(ills []ill) (left []jsonFinding) {
	p.t.Helper()
	var stderr syncBuffer
	_, out := p.run(p.t.Context(), &stderr, "doctor", "--json")
	for line := range strings.Lines(out) {
		var f jsonFinding
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			p.t.Fatalf("%q: %v", line, err)
		}
		if slices.ContainsFunc(ills, func(i ill) bool {
			return i.check == f.Name && i.level == f.Level && (f.Level == "FAIL" || strings.Contains(f.Object+": "+f.Found+"; "+f.Effect, i.found))
		}) {
			left = append(left, f)
		}
	}
	return left
}

// apply does what a fix says: it runs the statements as they are, and makes the changes
// of a Kafka command with the admin client.
func (p *patient) apply(f jsonFinding) {
	p.t.Helper()
	if slices.Contains(p.mended, f.Fix) && strings.HasPrefix(f.Fix, "ALTER SYSTEM") {
		return
	}
	p.mended = append(p.mended, f.Fix)
	var err error
	switch program, rest, _ := strings.Cut(f.Fix, " "); {
	case f.Fix == "dinnerbell setup":
		p.must("setup", "-c", p.config)
	case program == "kafka-configs.sh":
		err = p.alterTopic(strings.Fields(rest))
	case program == "kafka-acls.sh":
		err = p.addACL(strings.Fields(rest))
	default:
		statements, _, _ := strings.Cut(f.Fix, "-- ")
		for statement := range strings.SplitSeq(statements, ";") {
			if statement = strings.TrimSpace(statement); statement != "" && err == nil {
				_, err = p.owner.Exec(p.t.Context(), statement)
			}
		}
	}
	if err != nil {
		p.t.Errorf("%s: the fix %q: %v", f.Name, f.Fix, err)
	}
}

// arguments reads --name value pairs; a name may come several times.
func arguments(words []string) map[string][]string {
	args := map[string][]string{}
	for i, word := range words {
		if name, ok := strings.CutPrefix(word, "--"); ok {
			value := ""
			if i+1 < len(words) && !strings.HasPrefix(words[i+1], "--") {
				value = words[i+1]
			}
			args[name] = append(args[name], value)
		}
	}
	return args
}

func (p *patient) alterTopic(words []string) error {
	args := arguments(words)
	if len(args["entity-name"]) != 1 || len(args["add-config"]) != 1 || args["alter"] == nil {
		return fmt.Errorf("not understood: %v", args)
	}
	name, value, _ := strings.Cut(args["add-config"][0], "=")
	resp, err := p.admin.AlterTopicConfigs(p.t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: name, Value: &value}}, args["entity-name"][0])
	for _, r := range resp {
		err = errors.Join(err, r.Err)
	}
	return err
}

func (p *patient) addACL(words []string) error {
	args := arguments(words)
	acl := kadm.NewACLs().Allow(args["allow-principal"]...).AllowHosts().ResourcePatternType(kadm.ACLPatternLiteral)
	switch {
	case args["topic"] != nil:
		acl = acl.Topics(args["topic"]...)
	case args["group"] != nil:
		acl = acl.Groups(args["group"]...)
	case args["transactional-id"] != nil:
		acl = acl.TransactionalIDs(args["transactional-id"]...)
	case args["cluster"] != nil:
		acl = acl.Clusters()
	default:
		return fmt.Errorf("not understood: %v", args)
	}
	if slices.Equal(args["resource-pattern-type"], []string{"prefixed"}) {
		acl = acl.ResourcePatternType(kadm.ACLPatternPrefixed)
	}
	for _, name := range args["operation"] {
		operation, ok := map[string]kmsg.ACLOperation{"Read": kadm.OpRead, "Write": kadm.OpWrite, "DescribeConfigs": kadm.OpDescribeConfigs}[name]
		if !ok {
			return fmt.Errorf("no operation %s: %v", name, slices.Collect(maps.Keys(args)))
		}
		acl = acl.Operations(operation)
	}
	made, err := p.admin.CreateACLs(p.t.Context(), acl)
	for _, r := range made {
		err = errors.Join(err, r.Err)
	}
	return err
}

// withBroker has the deployment use a broker of the test.
func (p *patient) withBroker(brokers ...string) {
	p.kafka = envtest.KafkaAt(p.t, brokers...)
	p.admin = kadm.NewClient(p.kafka.Client())
	p.set("kafka.brokers", brokers)
}

// has returns an error unless the doctor has found an ill.
func (p *patient) has(i ill) error {
	p.t.Helper()
	all := p.doctor(asItSays)
	if slices.ContainsFunc(all[i.check], i.matches) {
		return nil
	}
	return fmt.Errorf("%s: no %s with %q and the fix %q in %+v", i.check, i.level, i.found, i.fix, all[i.check])
}

// matches reports whether a finding is the ill.
func (i ill) matches(f jsonFinding) bool {
	return f.Level == i.level && strings.Contains(f.Object+": "+f.Found+"; "+f.Effect, i.found) &&
		(i.fix == "-" && f.Fix == "" || i.fix != "-" && strings.Contains(f.Fix, i.fix))
}

// serveText says a text to everybody.
func serveText(text string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = io.WriteString(c, text)
		envtest.HoldConn(c)
	}
}

// serveTLS makes a TLS handshake, and says nothing then.
func serveTLS(t *testing.T) func(net.Conn) {
	t.Helper()
	cert, key := envtest.Certificate(t, t.TempDir(), "server")
	return serveCertificate(t, cert, key)
}

// serveCertificate is serveTLS with a certificate.
func serveCertificate(t *testing.T, cert, key string) func(net.Conn) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return func(c net.Conn) {
		envtest.HoldConn(tls.Server(c, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}))
	}
}

package main

import (
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kversion"
	"github.com/twmb/franz-go/pkg/sasl/plain"
)

// topicNamed returns the name of one of the deployment's topics.
func (p *patient) topicNamed(kind string) string { return p.slot() + "." + kind }

// Every setting of a topic that breaks a guarantee or hurts later has its line, and the
// printed change mends it.
func TestDoctorMendsTheTopics(t *testing.T) {
	t.Parallel()
	p := newPatient(t, "")
	in, out, dead, progress := p.topicNamed("campaigns"), p.topicNamed("out"), p.topicNamed("dead"), p.topicNamed("progress")
	p.kafka.TopicNamed(in, 2, map[string]string{"cleanup.policy": "compact"})
	p.kafka.TopicNamed(out, 1, map[string]string{"max.message.bytes": "1000", "retention.ms": "60000", "min.insync.replicas": "2", "unclean.leader.election.enable": "true"})
	p.kafka.TopicNamed(dead, 1, map[string]string{"cleanup.policy": "compact", "max.message.bytes": "3000"})
	p.kafka.TopicNamed(progress, 1, map[string]string{"cleanup.policy": "delete", "retention.ms": "3600000"})
	p.must("setup", "--print-sql") // reads the configuration alone
	set := func(topic, change string) string {
		return "--alter --entity-type topics --entity-name " + topic + " --add-config " + change
	}
	p.look(ill{"kafka.replicas", "warn", "they have one replica", "three brokers"})
	p.heal(
		ill{"kafka.campaigns.cleanup_policy", "FAIL", "topic " + in + ": cleanup.policy is compact", set(in, "cleanup.policy=delete")},
		ill{"kafka.progress.cleanup_policy", "FAIL", "topic " + progress + ": cleanup.policy is delete, not compact", set(progress, "cleanup.policy=compact")},
		ill{"kafka.dead_letters.cleanup_policy", "FAIL", "topic " + dead + ": cleanup.policy is compact", set(dead, "cleanup.policy=delete")},
		ill{"kafka.max_message_bytes", "FAIL", "topic " + out + ": max.message.bytes is 1000", set(out, "max.message.bytes=")},
		ill{"kafka.max_message_bytes", "warn", "topic " + dead + ": max.message.bytes is 3000", set(dead, "max.message.bytes=")},
		ill{"kafka.min_insync_replicas", "FAIL", "topic " + out + ": min.insync.replicas is 2, and a partition has 1 replicas", set(out, "min.insync.replicas=1")},
		ill{"kafka.replicas", "warn", "topic " + out + ": unclean.leader.election.enable is true", set(out, "unclean.leader.election.enable=false")},
		ill{"kafka.retention", "warn", "topic " + out + ": retention.ms is 60000", set(out, "retention.ms=604800000")},
		ill{"kafka.progress.partitions", "FAIL", "it has 1 partitions, fewer than the 2", "dinnerbell setup"},
	)
	value := "86400000"
	if _, err := p.admin.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.ms", Value: &value}}, in); err != nil {
		t.Fatal(err)
	}
	short := ill{"kafka.downtime", "warn", "it keeps messages for 24h0m0s", set(in, "retention.ms=604800000")}
	p.await(short) // a broker shows a new setting a moment later
	p.heal(short)
	p.look(ill{"kafka.downtime", "ok", "campaigns are kept for 168h0m0s", "-"}, ill{"kafka.topics", "ok", in + " (2 × 1)", "-"}, ill{"kafka.transactional_ids", "ok", "Write allowed (tried)", "-"})
}

// newRestrictedBroker starts a broker with access control, for the users bell and
// admin, with settings of its own. It returns its address and the options of the admin.
func newRestrictedBroker(t *testing.T, settings map[string]string) (addr string, admin []kgo.Opt) {
	t.Helper()
	login := kgo.SASL(plain.Auth{User: "admin", Pass: "pass"}.AsMechanism())
	if !envtest.RealKafka() {
		broker, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser("PLAIN", "admin", "pass"), kfake.User("PLAIN", "bell", password), kfake.BrokerConfigs(settings))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(broker.Close)
		return broker.ListenAddrs()[0], []kgo.Opt{kgo.SeedBrokers(broker.ListenAddrs()...), login}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	lines := []string{
		"listeners=PLAINTEXT://127.0.0.1:@PORT@,SASL_PLAINTEXT://" + addr + ",CONTROLLER://127.0.0.1:@CONTROLLER_PORT@", "advertised.listeners=PLAINTEXT://127.0.0.1:@PORT@,SASL_PLAINTEXT://" + addr,
		"listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT", "sasl.enabled.mechanisms=PLAIN",
		`listener.name.sasl_plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_admin="pass" user_bell="` + password + `";`,
		"authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer", "super.users=User:admin;User:ANONYMOUS",
	}
	for name, value := range settings {
		lines = append(lines, name+"="+value)
	}
	kafka := envtest.StartKafka(t, filepath.Join(t.TempDir(), "kafka"), lines...)
	t.Cleanup(func() {
		if err := kafka.Stop(); err != nil {
			t.Error(err)
		}
	})
	return addr, []kgo.Opt{kgo.SeedBrokers(addr), login}
}

// Each right that is missing has its line, and the printed grant mends it. The limits of
// the brokers have their lines too.
func TestDoctorMendsTheRights(t *testing.T) {
	t.Parallel()
	p := newPatient(t, "")
	addr, as := newRestrictedBroker(t, map[string]string{"transaction.max.timeout.ms": "5000", "group.min.session.timeout.ms": "20000", "transactional.id.expiration.ms": "3600000"})
	client, err := kgo.NewClient(as...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	p.admin = kadm.NewClient(client)
	p.set("kafka.brokers", []string{addr})
	p.set("kafka.sasl", map[string]any{"mechanism": "PLAIN", "username": "bell", "password": password})
	compact := "compact"
	topics := map[string]map[string]*string{"campaigns": nil, "out": nil, "dead": nil, "progress": {"cleanup.policy": &compact}}
	for kind, configs := range topics {
		if _, err := p.admin.CreateTopic(t.Context(), 1, 1, configs, p.topicNamed(kind)); err != nil {
			t.Fatal(err)
		}
		envtest.AwaitTopic(t, p.admin, p.topicNamed(kind))
	}
	p.look(ill{"kafka.connection", "ok", "not encrypted, PLAIN as bell", "-"},
		ill{"kafka.internal_topics", "unknown", "the brokers' settings may not be read; to have them checked: kafka-acls.sh", "-"})
	bell := " --add --allow-principal User:bell --operation "
	p.heal(
		ill{"kafka.rights", "FAIL", "topic " + p.topicNamed("campaigns") + ": User:bell lacks the right Read", bell + "Read --topic " + p.topicNamed("campaigns")},
		ill{"kafka.rights", "FAIL", "topic " + p.topicNamed("out") + ": User:bell lacks the right Write", bell + "Write --topic " + p.topicNamed("out")},
		ill{"kafka.rights", "FAIL", "topic " + p.topicNamed("dead") + ": User:bell lacks the right Write", bell + "Write --topic " + p.topicNamed("dead")},
		ill{"kafka.rights", "FAIL", "topic " + p.topicNamed("progress") + ": User:bell lacks the right Read", bell + "Read --topic " + p.topicNamed("progress")},
		ill{"kafka.group", "FAIL", "consumer group " + p.slot() + ": User:bell lacks the right Read", bell + "Read --group " + p.slot()},
	)
	p.heal(ill{"kafka.transactional_ids", "FAIL", "transactional id " + p.slot() + "-0: User:bell lacks the right Write", bell + "Write --resource-pattern-type prefixed --transactional-id " + p.slot() + "-"})
	p.heal(ill{"kafka.settings", "unknown", "its settings may not be read (DescribeConfigs)", bell + "DescribeConfigs --topic "})
	p.apply(jsonFinding{Fix: "kafka-acls.sh --bootstrap-server x" + bell + "DescribeConfigs --cluster"})
	limits := []ill{
		{"kafka.timeouts", "FAIL", "transaction.max.timeout.ms is 5000", "transaction.max.timeout.ms=900000"},
		{"kafka.timeouts", "FAIL", "group.min.session.timeout.ms is 20000", "group.min.session.timeout.ms=6000"},
		{"kafka.id_expiration", "warn", "transactional.id.expiration.ms is 1h0m0s", "transactional.id.expiration.ms=604800000"},
	}
	found := p.look(limits...)
	if envtest.RealKafka() {
		return // its settings need a restart
	}
	for _, f := range found {
		p.changeBroker(f.Fix)
	}
	if left := p.left(limits); len(left) > 0 {
		t.Errorf("the changed settings leave %+v", left)
	}
}

// changeBroker makes the change that a fix names for server.properties.
func (p *patient) changeBroker(fix string) {
	p.t.Helper()
	_, change, ok := strings.Cut(fix, "server.properties: ")
	change, _, then := strings.Cut(change, "; then restart")
	name, value, is := strings.Cut(change, "=")
	if !ok || !then || !is {
		p.t.Fatalf("%q names no setting", fix)
	}
	resp, err := p.admin.AlterBrokerConfigs(p.t.Context(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: name, Value: &value}})
	if err != nil || len(resp) == 0 || resp[0].Err != nil {
		p.t.Fatalf("%s: %+v, %v", change, resp, err)
	}
}

// misnamed is a listener that gives another address for itself.
type misnamed struct {
	net.Listener

	addr net.Addr
}

// Addr implements net.Listener.
func (l misnamed) Addr() net.Addr { return l.addr }

// newMisnamedBrokers starts two brokers, of which some give an address for themselves
// where nobody listens. It returns those at which they can be reached.
func newMisnamedBrokers(t *testing.T, gone string, wrong ...int) (reached []string, broker *kfake.Cluster) {
	t.Helper()
	nowhere, err := net.ResolveTCPAddr("tcp", gone)
	if err != nil {
		t.Fatal(err)
	}
	broker, err = kfake.NewCluster(kfake.NumBrokers(2), kfake.ListenFn(func(network, address string) (net.Listener, error) {
		l, err := net.Listen(network, address)
		if err != nil {
			return nil, err
		}
		reached = append(reached, l.Addr().String())
		if slices.Contains(wrong, len(reached)-1) {
			return misnamed{l, nowhere}, nil
		}
		return l, nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(broker.Close)
	return reached, broker
}

// A broker whose address for clients leads nowhere, brokers of an old version, and one
// of several addresses that is dead.
func TestDoctorNamesBrokersThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	if envtest.RealKafka() {
		t.Skip("it has brokers of its own")
	}
	p := newPatient(t, "")
	broker, err := kfake.NewCluster(kfake.NumBrokers(2))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(broker.Close)
	gone := envtest.Serve(t, nil)
	p.withBroker(broker.ListenAddrs()...)
	p.must("setup")
	p.look(ill{"kafka.brokers", "ok", "2, all reachable", "-"})
	p.set("kafka.brokers", append(slices.Clone(broker.ListenAddrs()), gone))
	p.look(ill{"kafka.connection", "warn", "broker " + gone + ": nobody listens there", "start the broker"}, ill{"kafka.brokers", "ok", "2, all reachable", "-"})
	p.set("kafka.brokers", broker.ListenAddrs())
	for _, wrong := range [][]int{{1}, {0, 1}} {
		reached, broker := newMisnamedBrokers(t, gone, wrong...)
		p.set("kafka.brokers", reached)
		last := wrong[len(wrong)-1]
		p.look(ill{"kafka.brokers", "FAIL", fmt.Sprintf("broker %d: it gives its address as %s: nobody listens there", last, gone), fmt.Sprintf("in server.properties of broker %d: advertised.listeners", last)})
		if len(wrong) == 2 {
			p.look(ill{"kafka.topics", "unknown", "no broker can be reached at the address that it gives for itself", "-"})
		}
		broker.Close()
	}

	old, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.MaxVersions(kversion.V2_2_0()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(old.Close)
	p.withBroker(old.ListenAddrs()...)
	p.look(ill{"kafka.version", "FAIL", "without JoinGroup version 5 of Kafka 2.3", "upgrade the brokers"}, ill{"kafka.version", "warn", "without Metadata version 10 of Kafka 2.8", "upgrade the brokers"})
}

// Each mismatch between kafka.tls, kafka.sasl and the port has its name.
func TestDoctorNamesThePort(t *testing.T) {
	t.Parallel()
	const toTLS, toPlain, wantsSASL, takesNoSASL = "plaintext spoken to a TLS port", "TLS spoken to a plaintext port", "the port wants SASL", "SASL spoken to a port without SASL"
	p, dir := newPatient(t, ""), t.TempDir()
	ports := newKafkaPorts(t, dir)
	ca := filepath.Join(dir, "cert.pem")
	encrypted := map[string]any{"enabled": true, "ca": ca, "server_name": "kafka.internal"}
	login := func(mechanism, word string) map[string]any {
		return map[string]any{"mechanism": mechanism, "username": "me", "password": word}
	}
	none := map[string]any{}
	for _, c := range []struct {
		port      string
		tls, sasl map[string]any
		want, fix string
		onKafka   bool // kfake takes SASL and every mechanism everywhere
	}{
		{"PLAINTEXT", encrypted, none, toPlain, "name the TLS port of the brokers in kafka.brokers, or set kafka.tls.enabled: false", false},
		{"SASL_PLAINTEXT", encrypted, login("PLAIN", password), toPlain, "kafka.tls.enabled: false", false},
		{"SSL", none, none, toTLS, "set kafka.tls.enabled: true", false},
		{"SASL_SSL", none, login("PLAIN", password), toTLS, "set kafka.tls.enabled: true", false},
		{"SASL_PLAINTEXT", none, none, wantsSASL, "set kafka.sasl.mechanism (the broker offers ", false},
		{"SASL_SSL", encrypted, none, wantsSASL, "PLAIN", false},
		{"PLAINTEXT", none, login("PLAIN", password), takesNoSASL, "leave out kafka.sasl.mechanism", true},
		{"SSL", encrypted, login("PLAIN", password), takesNoSASL, "leave out kafka.sasl.mechanism", true},
		{"SASL_PLAINTEXT", none, login("SCRAM-SHA-256", password), "wrong SASL mechanism", "set kafka.sasl.mechanism to one that the broker offers: PLAIN", true},
		{"SASL_PLAINTEXT", none, login("PLAIN", "wrong word"), "wrong user or password", "correct kafka.sasl.username and kafka.sasl.password", false},
		{"SSL", map[string]any{"enabled": true, "server_name": "kafka.internal"}, none, "wrong CA", "set kafka.tls.ca to the file of the authority", false},
		{"SSL", map[string]any{"enabled": true, "ca": ca}, none, "wrongly named certificate", "as the certificate does (kafka.internal), set kafka.tls.server_name", false},
	} {
		if c.onKafka && !envtest.RealKafka() {
			continue
		}
		p.set("kafka.brokers", []string{ports[c.port]})
		p.set("kafka.tls", c.tls)
		p.set("kafka.sasl", c.sasl)
		began := time.Now()
		p.look(ill{"kafka.connection", "FAIL", c.want, c.fix}, ill{"kafka.topics", "unknown", "no connection", "-"})
		if t.Failed() {
			t.Fatalf("port %s, tls %v, sasl %v, after %s", c.port, c.tls, c.sasl, time.Since(began))
		}
	}
	p.set("kafka.brokers", []string{ports["SASL_SSL"]})
	p.set("kafka.tls", encrypted)
	p.set("kafka.sasl", login("PLAIN", password))
	p.look(ill{"kafka.connection", "ok", "TLS, PLAIN as me", "-"}, ill{"kafka.encryption", "warn", "its certificate ends at", "renew the broker's certificate"}) // in an hour
	p.set("kafka.sasl", none)
	expired, key := makeCertificate(t, t.TempDir(), time.Now().Add(-time.Hour), false)
	for _, c := range []struct{ addr, ca, want, fix string }{
		{envtest.Serve(t, nil), ca, "nobody listens there", "start the broker"},
		{"no-such-host.invalid:9092", ca, "unknown host", "correct the host in kafka.brokers"},
		{envtest.Serve(t, serveCertificate(t, expired, key)), expired, "expired certificate", "renew the certificate of the brokers, which ended at"},
	} {
		p.set("kafka.brokers", []string{c.addr})
		p.set("kafka.tls", map[string]any{"enabled": true, "ca": c.ca})
		p.look(ill{"kafka.connection", "FAIL", c.want, c.fix})
	}
	p.set("kafka.tls", none)
	p.set("kafka.brokers", []string{envtest.Serve(t, serveText("HTTP/1.1 400 Bad Request\r\n\r\n"))})
	p.look(ill{"kafka.connection", "FAIL", "no Kafka answered", "see what listens"})
	p.set("kafka.sasl", map[string]any{"mechanism": "OAUTHBEARER", "token": "a.b.c"})
	p.look(ill{"kafka.connection", "FAIL", "no Kafka answered", "see what listens"})
}

package envtest

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"dinnerbell/internal/testenv"

	"github.com/twmb/franz-go/pkg/kadm"
)

// Listener is one port of a SecureKafka.
type Listener struct {
	Name     string   // upper-case letters, digits and _
	Protocol string   // SASL_SSL, SASL_PLAINTEXT, SSL or PLAINTEXT
	Settings []string // lines for this port alone: name=value, without listener.name.…
}

// SecureKafka is an Apache Kafka with Kafka's own authorizer. Nobody has rights but those
// of ACLs, save the test itself on the Cluster's port, which needs no login.
type SecureKafka struct {
	*testenv.Kafka

	Cluster *Cluster
	Admin   *kadm.Client
	Ports   map[string]string // addresses by the listeners' names
}

// SecureKafkaSettings are the lines for server.properties that make the ports. The port
// PLAINTEXT, which the listeners do not name, is the test's.
func SecureKafkaSettings(listeners []Listener, ports map[string]string) []string {
	addresses, protocols := []string{"PLAINTEXT://127.0.0.1:@PORT@"}, []string{"CONTROLLER:PLAINTEXT", "PLAINTEXT:PLAINTEXT"}
	var lines []string
	for _, l := range listeners {
		addresses = append(addresses, l.Name+"://"+ports[l.Name])
		protocols = append(protocols, l.Name+":"+l.Protocol)
		for _, s := range l.Settings {
			lines = append(lines, "listener.name."+strings.ToLower(l.Name)+"."+s)
		}
	}
	open := strings.Join(addresses, ",")
	return append(lines,
		"listeners="+open+",CONTROLLER://127.0.0.1:@CONTROLLER_PORT@", "advertised.listeners="+open, "listener.security.protocol.map="+strings.Join(protocols, ","),
		"inter.broker.listener.name=PLAINTEXT", "num.network.threads=1",
		"sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
		"authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer", "super.users=User:ANONYMOUS",
		"ssl.keystore.type=PEM", "ssl.truststore.type=PEM",
		"ssl.principal.mapping.rules=RULE:^CN=([^,]+).*$/$1/",
	)
}

// StartSecureKafka starts a server in dir, which ends with the test.
func StartSecureKafka(t testing.TB, dir string, listeners []Listener, settings ...string) *SecureKafka {
	t.Helper()
	k := &SecureKafka{Ports: map[string]string{}}
	for _, l := range listeners {
		port, err := testenv.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		k.Ports[l.Name] = testenv.Loopback(port)
	}
	k.Kafka = StartKafka(t, dir, append(SecureKafkaSettings(listeners, k.Ports), settings...)...)
	t.Cleanup(func() {
		if err := k.Stop(); err != nil {
			t.Error(err)
		}
	})
	k.Cluster = KafkaAt(t, k.Addr())
	k.Admin = kadm.NewClient(k.Cluster.Client())
	return k
}

// SetPassword gives a user a password for both mechanisms of SCRAM.
func (k *SecureKafka) SetPassword(t testing.TB, user, password string) {
	t.Helper()
	// A request may name a user once.
	for _, m := range []kadm.ScramMechanism{kadm.ScramSha256, kadm.ScramSha512} {
		done, err := k.Admin.AlterUserSCRAMs(t.Context(), nil, []kadm.UpsertSCRAM{{User: user, Mechanism: m, Iterations: 4096, Password: password}})
		if err == nil {
			err = done.Error()
		}
		if err != nil {
			t.Fatalf("set the password of %s: %v", user, err)
		}
	}
}

// Reload makes the running server use another file with the certificates of a listener:
// setting is ssl.keystore.location or ssl.truststore.location.
func (k *SecureKafka) Reload(t testing.TB, listener, setting, file string) {
	t.Helper()
	name := fmt.Sprintf("listener.name.%s.%s", strings.ToLower(listener), setting)
	done, err := k.Admin.AlterBrokerConfigs(context.Background(), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: name, Value: &file}}, 1)
	for _, d := range done {
		if err == nil {
			err = d.Err
		}
	}
	if err != nil {
		t.Fatalf("set %s: %v", name, err)
	}
}

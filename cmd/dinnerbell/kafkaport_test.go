package main

import (
	"crypto/tls"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"

	"github.com/twmb/franz-go/pkg/kfake"
)

// kafkaPorts are the addresses of a broker's four kinds of port, by protocol. The
// user is me, the mechanism PLAIN.
type kafkaPorts map[string]string

// newKafkaPorts starts a kfake of each kind, or one Apache Kafka, with a
// certificate in dir.
func newKafkaPorts(t *testing.T, dir string) kafkaPorts {
	t.Helper()
	cert, key := envtest.Certificate(t, dir, "broker")
	if envtest.RealKafka() {
		return startKafkaPorts(t, dir, cert, key)
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	secret := []kfake.Opt{kfake.EnableSASL(), kfake.Superuser("PLAIN", "me", password)}
	encrypted := []kfake.Opt{kfake.TLS(&tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}})}
	ports := kafkaPorts{}
	for kind, opts := range map[string][]kfake.Opt{"PLAINTEXT": nil, "SASL_PLAINTEXT": secret, "SSL": encrypted, "SASL_SSL": slices.Concat(secret, encrypted)} {
		broker, err := kfake.NewCluster(append(opts, kfake.NumBrokers(1))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(broker.Close)
		ports[kind] = broker.ListenAddrs()[0]
	}
	return ports
}

func startKafkaPorts(t *testing.T, dir, cert, key string) kafkaPorts {
	t.Helper()
	var both []byte
	for _, file := range []string{key, cert} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		both = append(both, text...)
	}
	store := filepath.Join(dir, "both.pem")
	if err := os.WriteFile(store, both, 0o600); err != nil {
		t.Fatal(err)
	}
	ports, listeners := kafkaPorts{}, "PLAINTEXT://127.0.0.1:@PORT@"
	for _, kind := range []string{"SASL_PLAINTEXT", "SSL", "SASL_SSL"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ports[kind] = l.Addr().String()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		listeners += "," + kind + "://" + ports[kind]
	}
	jaas := `plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_me="` + password + `";`
	kafka := envtest.StartKafka(t, filepath.Join(dir, "kafka"),
		"listeners="+listeners+",CONTROLLER://127.0.0.1:@CONTROLLER_PORT@", "advertised.listeners="+listeners,
		"listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL", "sasl.enabled.mechanisms=PLAIN", "listener.name.sasl_plaintext."+jaas, "listener.name.sasl_ssl."+jaas,
		"ssl.keystore.type=PEM", "ssl.keystore.location="+store)
	t.Cleanup(func() {
		if err := kafka.Stop(); err != nil {
			t.Error(err)
		}
	})
	ports["PLAINTEXT"] = kafka.Addr()
	return ports
}

// at writes a configuration for a port.
func (d *deployment) at(addr string, tls, sasl map[string]any) {
	d.t.Helper()
	text, err := json.Marshal(map[string]any{
		"source": map[string]any{"url": "${TEST_URL}", "slot": "s"},
		"kafka":  map[string]any{"brokers": []string{addr}, "tls": tls, "sasl": sasl},
		"state":  map[string]any{"dir": d.dir},
	})
	if err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(d.config, text, 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// For each wrong setting of TLS or SASL the error names the setting to change.
func TestWrongPortNamesTheSetting(t *testing.T) {
	t.Parallel()
	const wantsTLS, takesTLS, wantsSASL, takesSASL = "set kafka.tls.enabled: true", "the port takes no TLS", "set kafka.sasl.mechanism", "the port takes no SASL"
	s, dir := newDeployment(t), t.TempDir()
	ports := newKafkaPorts(t, dir)
	for _, tc := range []struct{ port, client, want string }{
		{"PLAINTEXT", "SASL_PLAINTEXT", takesSASL},
		{"PLAINTEXT", "SSL", takesTLS},
		{"PLAINTEXT", "SASL_SSL", takesTLS},
		{"SASL_PLAINTEXT", "PLAINTEXT", wantsSASL},
		{"SASL_PLAINTEXT", "SSL", takesTLS},
		{"SASL_PLAINTEXT", "SASL_SSL", takesTLS},
		{"SASL_PLAINTEXT", "wrong password", "kafka.sasl.password"},
		{"SASL_PLAINTEXT", "SCRAM", "sasl.enabled.mechanisms"},
		{"SSL", "PLAINTEXT", wantsTLS},
		{"SSL", "SASL_PLAINTEXT", wantsTLS},
		{"SSL", "SASL_SSL", takesSASL},
		{"SSL", "no CA", "kafka.tls.ca"},
		{"SSL", "no server name", "kafka.tls.server_name"},
		{"SASL_SSL", "PLAINTEXT", wantsTLS},
		{"SASL_SSL", "SASL_PLAINTEXT", wantsTLS},
		{"SASL_SSL", "SSL", wantsSASL},
	} {
		if !envtest.RealKafka() && (tc.want == takesTLS || tc.want == takesSASL || tc.client == "SCRAM" || tc.client == "wrong password") {
			continue // kfake has all mechanisms, takes SASL everywhere, closes at a wrong password, and waits for the rest of a TLS handshake
		}
		tls, sasl := map[string]any{}, map[string]any{}
		switch tc.client {
		case "SSL", "SASL_SSL", "no CA", "no server name":
			tls = map[string]any{"enabled": true, "ca": filepath.Join(dir, "cert.pem"), "server_name": "kafka.internal"}
		}
		switch tc.client {
		case "SASL_PLAINTEXT", "SASL_SSL":
			sasl = map[string]any{"mechanism": "PLAIN", "username": "me", "password": password}
		case "SCRAM":
			sasl = map[string]any{"mechanism": "SCRAM-SHA-256", "username": "me", "password": password}
		case "wrong password":
			sasl = map[string]any{"mechanism": "PLAIN", "username": "me", "password": "guess"}
		case "no CA":
			delete(tls, "ca")
		case "no server name":
			delete(tls, "server_name")
		}
		s.at(ports[tc.port], tls, sasl)
		began := time.Now()
		var stderr syncBuffer
		if code, _ := s.run(t.Context(), &stderr, "setup"); code != exitFailed || !strings.Contains(stderr.String(), tc.want) {
			t.Errorf("client %s on a port %s: exit %d in %s: %s", tc.client, tc.port, code, time.Since(began).Round(time.Millisecond), stderr.String())
		}
	}
}

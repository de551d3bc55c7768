package portprobe_test

import (
	"crypto/tls"
	"net"
	"testing"

	"dinnerbell/internal/portprobe"
	"dinnerbell/internal/testenv/envtest"
)

func TestSpeaksTLS(t *testing.T) {
	t.Parallel()
	cert, key := envtest.Certificate(t, t.TempDir(), "server")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	read := func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) }
	handshake := func(cfg *tls.Config) func(net.Conn) {
		return func(c net.Conn) { read(tls.Server(c, cfg)) }
	}
	for name, c := range map[string]struct {
		addr string
		want bool
	}{
		"TLS":           {envtest.Serve(t, handshake(&tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}})), true},
		"an alert":      {envtest.Serve(t, handshake(&tls.Config{MinVersion: tls.VersionTLS12})), true},
		"hangs up":      {envtest.Serve(t, func(net.Conn) {}), false},
		"says nothing":  {envtest.Serve(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 1<<16)); read(c) }), false},
		"another":       {envtest.Serve(t, func(c net.Conn) { _, _ = c.Write([]byte("SSH-2.0-x\r\n")); read(c) }), false},
		"nobody there":  {envtest.Serve(t, nil), false},
		"no such host":  {"no-such-host.invalid:1", false},
		"not host:port": {"x", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if portprobe.SpeaksKafka(t.Context(), c.addr) {
				t.Error("it speaks no Kafka")
			}
			if got := portprobe.SpeaksTLS(t.Context(), c.addr); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

func TestSpeaksKafka(t *testing.T) {
	t.Parallel()
	broker := envtest.Kafka(t).Brokers[0]
	if !portprobe.SpeaksKafka(t.Context(), broker) || portprobe.SpeaksTLS(t.Context(), broker) {
		t.Error("a broker speaks no Kafka, or TLS")
	}
}

func TestMain(m *testing.M) { envtest.Main(m) }

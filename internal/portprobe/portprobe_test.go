package portprobe_test

import (
	"crypto/tls"
	"net"
	"testing"

	"dinnerbell/internal/portprobe"
	"dinnerbell/internal/testenv/envtest"
)

// accept serves a listener with f until the test ends.
func accept(t *testing.T, l net.Listener, f func(net.Conn)) string {
	t.Helper()
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				f(conn)
			}()
		}
	}()
	return l.Addr().String()
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

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
	closed := listen(t)
	_ = closed.Close()
	for name, c := range map[string]struct {
		addr string
		want bool
	}{
		"TLS":           {accept(t, listen(t), handshake(&tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}})), true},
		"an alert":      {accept(t, listen(t), handshake(&tls.Config{MinVersion: tls.VersionTLS12})), true},
		"hangs up":      {accept(t, listen(t), func(net.Conn) {}), false},
		"says nothing":  {accept(t, listen(t), func(c net.Conn) { _, _ = c.Read(make([]byte, 1<<16)); read(c) }), false},
		"another":       {accept(t, listen(t), func(c net.Conn) { _, _ = c.Write([]byte("SSH-2.0-x\r\n")); read(c) }), false},
		"nobody there":  {closed.Addr().String(), false},
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

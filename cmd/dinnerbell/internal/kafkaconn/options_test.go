package kafkaconn

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/internal/testenv/envtest"

	"github.com/twmb/franz-go/pkg/kgo"
)

// tlsServer returns the name in each client's certificate.
func tlsServer(t *testing.T, certFile, keyFile string) (addr string, names <-chan string) {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAnyClientCert})
	if err != nil {
		t.Fatal(err)
	}
	out, done := make(chan string, 8), make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if c, ok := conn.(*tls.Conn); !ok {
				out <- "not TLS"
			} else if err := c.Handshake(); err != nil {
				out <- err.Error()
			} else {
				out <- c.ConnectionState().PeerCertificates[0].Subject.CommonName
			}
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String(), out
}

// A rotated client certificate is used by the next connection.
func TestTLSFilesAreReadForEachConnection(t *testing.T) {
	t.Parallel()
	serverDir, clientDir := t.TempDir(), t.TempDir()
	serverCert, serverKey := envtest.Certificate(t, serverDir, "broker")
	addr, names := tlsServer(t, serverCert, serverKey)
	cert, key := envtest.Certificate(t, clientDir, "first")
	dial := tlsDialer(config.TLS{Enabled: true, CA: serverCert, Cert: cert, Key: key, ServerName: "kafka.internal"})
	for _, want := range []string{"first", "second"} {
		envtest.Certificate(t, clientDir, want)
		conn, err := dial(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := <-names; got != want {
			t.Errorf("the server saw %q, want %q", got, want)
		}
		_ = conn.Close()
	}
	wrongName := tlsDialer(config.TLS{Enabled: true, CA: serverCert, Cert: cert, Key: key})
	if conn, err := wrongName(t.Context(), "tcp", addr); err == nil {
		_ = conn.Close()
		t.Error("a certificate for another host was accepted")
	}
	for _, bad := range []config.TLS{{CA: "/nope"}, {CA: serverKey}, {Cert: "/nope", Key: key}} {
		if _, err := bad.Config(); err == nil {
			t.Errorf("TLS.Config of %+v gave no error", bad)
		}
	}
}

// loadSASL makes the settings as the file would.
func loadSASL(t *testing.T, mechanism, passwordFile string) config.SASL {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.yaml")
	text := "kafka: {sasl: {mechanism: " + mechanism + ", username: me, password: '${file:" + passwordFile + "}'}}"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(path, config.Env{})
	if err != nil {
		t.Fatal(err)
	}
	return cfg.Kafka.SASL
}

func TestSASLMechanisms(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "pw")
	for written, name := range map[string]string{"PLAIN": "PLAIN", "scram-sha-256": "SCRAM-SHA-256", "Scram-Sha-512": "SCRAM-SHA-512"} {
		m := saslMechanism(loadSASL(t, written, file))
		if m == nil || m.Name() != name {
			t.Fatalf("%s: %v", name, m)
		}
		if err := os.Remove(file); err == nil {
			if _, _, err := m.Authenticate(t.Context(), "h"); err == nil {
				t.Errorf("%s: a password file that is gone gave no error", name)
			}
		}
		for _, pw := range []string{"old", "new"} {
			if err := os.WriteFile(file, []byte(pw+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			_, first, err := m.Authenticate(t.Context(), "h")
			if err != nil {
				t.Fatal(err)
			}
			if name == "PLAIN" && !bytes.HasSuffix(first, []byte("\x00me\x00"+pw)) {
				t.Errorf("sent %q, want the credentials with %q", first, pw)
			}
		}
	}
	if m := saslMechanism(config.SASL{}); m != nil {
		t.Errorf("without a mechanism: %v", m)
	}
}

func TestKafkaOptionsMakeAClient(t *testing.T) {
	t.Parallel()
	cfg := config.Kafka{Brokers: []string{net.JoinHostPort("127.0.0.1", "1")}, TLS: config.TLS{Enabled: true}, SASL: loadSASL(t, "PLAIN", "/nope")}
	client, err := kgo.NewClient(Options(cfg, slog.New(slog.DiscardHandler))...)
	if err != nil {
		t.Fatal(err)
	}
	client.Close()
}

func TestKafkaLogLevels(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	l := kafkaLogger{slog.New(slog.NewTextHandler(&out, nil))}
	l.Log(kgo.LogLevelInfo, "connected")
	l.Log(kgo.LogLevelWarn, "lost", "broker", 1, "err", "refused")
	l.Log(kgo.LogLevelError, groupErrored)
	if s := out.String(); strings.Contains(s, "connected") || strings.Contains(s, groupErrored) || !strings.Contains(s, "said=lost") || !strings.Contains(s, "broker=1 error=refused") {
		t.Errorf("log: %s", s)
	}
	if l.Level() != kgo.LogLevelWarn {
		t.Errorf("level %v; information of the client is for debug", l.Level())
	}
}

// A broker that claims a large answer before it has accepted anybody is left at
// once; however its bytes arrive.
func TestAnswerBeforeAuthenticationIsBounded(t *testing.T) {
	t.Parallel()
	answer := func(size int) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(size)), make([]byte, min(size, 2<<20))...)
	}
	for name, c := range map[string]struct {
		answers int
		sent    []byte
		want    string // of the error; "": all bytes arrive
	}{
		"large first":           {1, answer(99 << 20), "claims an answer of 103809024 bytes"},
		"large third":           {3, slices.Concat(answer(10), answer(300), answer(300<<10)), "claims an answer of 307200 bytes"},
		"larger once accepted":  {2, slices.Concat(answer(10), answer(1000), answer(300<<10)), ""},
		"large once accepted":   {2, slices.Concat(answer(10), answer(1000), answer(2<<20)), "claims an answer of 2097152 bytes to a request for no records"},
		"for the client to say": {1, []byte("HTTP/1.1 400 Bad Request"), ""},
		"negative":              {1, []byte{0xff, 0xff, 0xff, 0xff, 1, 2, 3}, ""},
	} {
		for _, chunk := range []int{5, 4096} {
			client, server := net.Pipe()
			go func() {
				for b := range slices.Chunk(c.sent, chunk) {
					if _, err := server.Write(b); err != nil {
						return // the client has left
					}
				}
				_ = server.Close()
			}()
			dial := boundAnswers(func(context.Context, string, string) (net.Conn, error) { return client, nil }, c.answers)
			conn, err := dial(t.Context(), "tcp", "h")
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(conn)
			switch {
			case c.want == "" && (err != nil || len(got) != len(c.sent)):
				t.Errorf("%s by %d: %d of %d bytes, %v", name, chunk, len(got), len(c.sent), err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%s by %d: %v", name, chunk, err)
			}
			_ = conn.Close()
		}
	}
	if n := unauthenticatedAnswers(config.SASL{Mechanism: "scram-sha-512"}); n != 4 {
		t.Errorf("SCRAM: %d answers", n)
	}
}

package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/envtest"
)

// guardedDaemon is a daemon whose listener has TLS and a token. It has neither Postgres nor
// Kafka: HTTP answers all the same.
type guardedDaemon struct {
	*testing.T
	address             string
	config              string
	certFile, tokenFile string
	log                 *logBuffer
}

// token of the n-th rotation.
func tokenOf(n int) string { return fmt.Sprintf("token-%d-0123456789abcdef", n) }

func startGuardedDaemon(t *testing.T) *guardedDaemon {
	t.Helper()
	root := envtest.Dir(t)
	d := &guardedDaemon{T: t, tokenFile: filepath.Join(root, "token"), log: &logBuffer{}}
	cert, key := envtest.Certificate(t, root, "first")
	d.certFile = cert
	d.rotateToken(0)
	d.config = filepath.Join(root, "dinnerbell.yaml")
	text := "source: {url: 'postgres://u@127.0.0.1:1/de'}\nkafka: {brokers: ['127.0.0.1:1']}\nstate: {dir: " + filepath.Join(root, "state") +
		"}\nhttp: {listen: '127.0.0.1:0', tls: {cert: " + cert + ", key: " + key + "}, token: '${file:" + d.tokenFile + "}'}\n"
	if err := os.WriteFile(d.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(envtest.Binary(t), "-c", d.config, "run")
	cmd.Stderr = d.log
	child, err := testenv.StartChild(cmd, "", syscall.SIGKILL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := child.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if <-child.Done(); child.Err() != nil || t.Failed() {
			t.Errorf("the daemon ended with %v:\n%s", child.Err(), d.log.tail(16<<10))
		}
	})
	envtest.Until(t, patience, func() error {
		found := httpField.FindStringSubmatch(d.log.tail(1 << 20))
		if found == nil {
			return errors.New("the daemon has not said where it listens")
		}
		d.address = found[1]
		return nil
	})
	return d
}

func (d *guardedDaemon) rotateToken(n int) {
	d.Helper()
	next := d.tokenFile + ".next"
	if err := errors.Join(os.WriteFile(next, []byte(tokenOf(n)+"\n"), 0o600), os.Rename(next, d.tokenFile)); err != nil {
		d.Fatal(err)
	}
}

// tlsConfig trusts the certificate that is in the file now.
func (d *guardedDaemon) tlsConfig() *tls.Config {
	d.Helper()
	text, err := os.ReadFile(d.certFile)
	if err != nil {
		d.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return &tls.Config{RootCAs: pool, ServerName: "kafka.internal", MinVersion: tls.VersionTLS12}
}

// send sends a request as it stands over a new connection.
func (d *guardedDaemon) send(request string) (code int, body string) {
	d.Helper()
	ctx, cancel := context.WithTimeout(d.Context(), 20*time.Second)
	defer cancel()
	conn, err := (&tls.Dialer{Config: d.tlsConfig()}).DialContext(ctx, "tcp", d.address)
	if err != nil {
		d.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second)) // a read behind it fails
	_, sendErr := io.WriteString(conn, request)            // may fail when the answer is there early
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		d.Fatalf("%.60q: %v", request, errors.Join(sendErr, err))
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		d.Fatalf("%.60q: %v", request, err)
	}
	return resp.StatusCode, string(text)
}

// get asks for a path with a header line, which may be empty.
func (d *guardedDaemon) get(path, header string) (code int, body string) {
	d.Helper()
	return d.send("GET " + path + " HTTP/1.1\r\nHost: bell.example\r\n" + header + "Connection: close\r\n\r\n")
}

func bearer(n int) string { return "Authorization: Bearer " + tokenOf(n) + "\r\n" }

// The listener over TLS with a token, from the outside: who gets what, rotation without a
// restart, and peers that send too much, too slowly, or nothing at all.
func TestHTTPListener(t *testing.T) {
	t.Parallel()
	d := startGuardedDaemon(t)
	for path, open := range map[string]bool{"/": false, "/live/page.js": false, "/api/status": false, "/metrics": false, "/nothing": false, "/healthz": true, "/readyz": true} {
		stranger, text := d.get(path, "")
		reader, known := d.get(path, bearer(0))
		wrong, _ := d.get(path, "Authorization: Bearer x"+tokenOf(0)+"\r\n")
		switch {
		case !open && (stranger != http.StatusUnauthorized || wrong != http.StatusUnauthorized || reader == http.StatusUnauthorized):
			t.Errorf("%s: without token %d, wrong one %d, right one %d", path, stranger, wrong, reader)
		case open && (stranger != reader || wrong != reader || strings.Contains(text, "127.0.0.1") || path == "/readyz" && !strings.Contains(known, "reasons")):
			t.Errorf("%s: without token %d %s, wrong one %d, right one %d %s", path, stranger, text, wrong, reader, known)
		}
	}
	if resp, err := http.Get("http://" + d.address + "/healthz"); err != nil || resp.StatusCode != http.StatusBadRequest || resp.Body.Close() != nil {
		t.Errorf("plain HTTP: %v, %v", resp, err)
	}
	d.checkRotation()
	d.checkDoctor()
	d.checkHostileRequests()
	d.checkConnections()
	d.checkStreams()
	if text := d.log.tail(1 << 20); strings.Contains(text, tokenOf(0)) || strings.Contains(text, tokenOf(1)) {
		t.Errorf("the log shows a token:\n%s", text)
	}
}

// checkRotation replaces the token and the certificate under a running daemon.
func (d *guardedDaemon) checkRotation() {
	d.Helper()
	d.rotateToken(1)
	if former, _ := d.get("/metrics", bearer(0)); former != http.StatusUnauthorized {
		d.Errorf("the former token: %d", former)
	}
	if later, _ := d.get("/metrics", bearer(1)); later != http.StatusOK {
		d.Errorf("the new token: %d", later)
	}
	formerTLS := d.tlsConfig()
	envtest.Certificate(d.T, filepath.Dir(d.certFile), "second")
	if later, _ := d.get("/metrics", bearer(1)); later != http.StatusOK {
		d.Errorf("with the new certificate: %d", later)
	}
	if conn, err := (&tls.Dialer{Config: formerTLS}).DialContext(d.Context(), "tcp", d.address); err == nil {
		_ = conn.Close()
		d.Error("the former certificate is still shown")
	}
}

// checkHostileRequests sends what is too large, and what no reader sends.
func (d *guardedDaemon) checkHostileRequests() {
	d.Helper()
	start := "GET /api/status HTTP/1.1\r\nHost: bell.example\r\n" + bearer(1)
	for request, want := range map[string]int{
		start + "X: " + strings.Repeat("x", 1<<20) + "\r\n\r\n":                                                         http.StatusRequestHeaderFieldsTooLarge,
		start + strings.Repeat("X: x\r\n", 1<<15) + "\r\n":                                                              http.StatusRequestHeaderFieldsTooLarge,
		"GET /" + strings.Repeat("x", 1<<20) + " HTTP/1.1\r\nHost: bell.example\r\n\r\n":                                http.StatusRequestHeaderFieldsTooLarge,
		start + "Content-Length: 1000000000\r\n\r\n" + strings.Repeat("x", 1<<16):                                       http.StatusRequestEntityTooLarge,
		"POST /api/status HTTP/1.1\r\nHost: bell.example\r\n" + bearer(1) + "Content-Length: 0\r\n\r\n":                 http.StatusMethodNotAllowed,
		"GET /api/status HTTP/1.1\r\nHost: bell.example\r\nHost: localhost\r\n" + bearer(1) + "\r\n":                    http.StatusBadRequest,
		"GET /api/status HTTP/1.1\r\nHost: bell.example\r\nAuthorization: Basic \xff\xfe\r\n\r\n":                       http.StatusUnauthorized,
		"GET /api/status HTTP/1.1\r\nHost: bell.example\r\nAuthorization: Bearer\r\n" + bearer(1) + "\r\n":              http.StatusUnauthorized,
		"GET /api/status?token=" + tokenOf(1) + " HTTP/1.1\r\nHost: bell.example\r\nCookie: " + tokenOf(1) + "\r\n\r\n": http.StatusUnauthorized,
	} {
		if code, body := d.send(request); code != want {
			d.Errorf("%.80q: %d %.80s, want %d", request, code, body, want)
		}
	}
}

// checkConnections opens a thousand connections that say nothing, or begin to and stop;
// readers get their answers beside them.
func (d *guardedDaemon) checkConnections() {
	d.Helper()
	for i := range 1000 {
		conn, err := (&net.Dialer{}).DialContext(d.Context(), "tcp", d.address)
		if err != nil {
			d.Fatalf("connection %d: %v", i, err)
		}
		d.Cleanup(func() { _ = conn.Close() })
		if i%2 == 0 {
			_, _ = conn.Write([]byte{22, 3, 1, 2, 0}) // the head of a handshake; the daemon may have closed it
		}
		if i%8 == 0 {
			slow := tls.Client(conn, d.tlsConfig())
			go func() {
				if slow.HandshakeContext(d.Context()) == nil {
					_, _ = io.WriteString(slow, "GET /api/status HTTP/1.1\r\nHost: bell.example\r\nX: ") // and no more
				}
			}()
		}
	}
	for range 5 {
		began := time.Now()
		if code, body := d.get("/api/status", bearer(1)); code != http.StatusOK || time.Since(began) > 10*time.Second {
			d.Errorf("beside 1000 connections: %d after %s: %.80s", code, time.Since(began), body)
		}
	}
}

// checkStreams opens more streams of the page than there may be.
func (d *guardedDaemon) checkStreams() {
	d.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: d.tlsConfig()}}
	d.Cleanup(client.CloseIdleConnections)
	codes := map[int]int{}
	for range 40 {
		req, err := http.NewRequestWithContext(d.Context(), http.MethodGet, "https://"+d.address+"/live/events", nil)
		if err != nil {
			d.Fatal(err)
		}
		req.SetBasicAuth("somebody", tokenOf(1)) // as a browser sends it
		resp, err := client.Do(req)
		if err != nil {
			d.Fatal(err)
		}
		d.Cleanup(func() { _ = resp.Body.Close() })
		codes[resp.StatusCode]++
	}
	if codes[http.StatusOK] != 32 || codes[http.StatusServiceUnavailable] != 8 {
		d.Errorf("answers to 40 streams: %v", codes)
	}
	if code, _ := d.get("/healthz", ""); code != http.StatusOK {
		d.Errorf("beside the streams: %d", code)
	}
}

// checkDoctor has the doctor ask the listener, with the certificate and the token.
func (d *guardedDaemon) checkDoctor() {
	d.Helper()
	text, err := os.ReadFile(d.config)
	if err != nil {
		d.Fatal(err)
	}
	beside := filepath.Join(filepath.Dir(d.config), "doctor.yaml")
	if err := os.WriteFile(beside, []byte(strings.Replace(string(text), "127.0.0.1:0", d.address, 1)), 0o600); err != nil {
		d.Fatal(err)
	}
	out, _ := exec.CommandContext(d.Context(), envtest.Binary(d), "-c", beside, "doctor", "--json").Output() // neither Postgres nor Kafka is there
	for _, want := range []string{
		`{"name":"machine.http","level":"ok","found":"` + d.address + `, used by the running daemon, for those with the token"`,
		`{"name":"machine.http_certificate","level":"warn","object":"http.tls.cert ` + d.certFile + `","found":"it ends at `,
	} {
		if !strings.Contains(string(out), want) {
			d.Errorf("doctor: no %s in\n%s", want, out)
		}
	}
}

// run refuses a listener for others without TLS and token, before it listens, with the exit
// code of a mistake in the configuration; config check and doctor say the same.
func TestOpenListenerIsRefused(t *testing.T) {
	t.Parallel()
	root := envtest.Dir(t)
	config := filepath.Join(root, "dinnerbell.yaml")
	text := "source: {url: 'postgres://u@127.0.0.1:1/de'}\nkafka: {brokers: ['127.0.0.1:1']}\nstate: {dir: " + filepath.Join(root, "state") + "}\nhttp: {listen: '0.0.0.0:0'}\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{{"run"}, {"doctor"}, {"config", "check"}} {
		out, err := exec.CommandContext(t.Context(), envtest.Binary(t), append([]string{"-c", config}, command...)...).CombinedOutput()
		ended, ok := errors.AsType[*exec.ExitError](err)
		if !ok || ended.ExitCode() != 2 || !strings.Contains(string(out), "http.listen: other machines can reach 0.0.0.0:0") ||
			!strings.Contains(string(out), "either set http.tls.cert, http.tls.key and http.token, or set http.insecure: true") {
			t.Errorf("%s: %v\n%s", command, err, out)
		}
	}
	cmd := exec.CommandContext(t.Context(), envtest.Binary(t), "-c", config, "config", "check")
	cmd.Env = append(os.Environ(), "DINNERBELL_HTTP_INSECURE=true")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("with http.insecure: %v\n%s", err, out)
	}
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"dinnerbell/internal/testenv/envtest"

	"github.com/jackc/pgx/v5/pgproto3"
)

// repeater is a Postgres that asks for the password and puts it into its error,
// among much else.
func repeater(t *testing.T) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	refuse := func(c net.Conn) {
		defer func() { _ = c.Close() }()
		b := pgproto3.NewBackend(c, c)
		if _, err := b.ReceiveStartupMessage(); err != nil {
			return
		}
		b.Send(&pgproto3.AuthenticationCleartextPassword{})
		_ = b.SetAuthType(pgproto3.AuthTypeCleartextPassword)
		_ = b.Flush()
		m, err := b.Receive()
		password, ok := m.(*pgproto3.PasswordMessage)
		if err != nil || !ok {
			return
		}
		b.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "28000", Message: "no entry for\nrepeated:" + password.Password + ":" + strings.Repeat("y", 100_000)})
		_ = b.Flush()
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go refuse(c)
		}
	}()
	return l.Addr().String()
}

// A server may put anything into its error. Log, status, HTTP and the error of a
// command show one line of the text and no password.
func TestServerThatRepeatsThePassword(t *testing.T) {
	t.Parallel()
	const password = "hunter2-ZQMARK"
	dir := t.TempDir()
	file := filepath.Join(dir, "c.yaml")
	text := fmt.Sprintf("source: {url: 'postgres://u:%s@%s/de?sslmode=disable'}\nkafka: {brokers: ['127.0.0.1:1']}\nstate: {dir: %s}\nhttp: {listen: '127.0.0.1:0'}\n", password, repeater(t), filepath.Join(dir, "s"))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var stderr syncBuffer
	if code := runCommandLine(t.Context(), []string{"-c", file, "setup"}, io.Discard, &stderr, nil); code != exitFailed {
		t.Errorf("setup: exit %d", code)
	}
	shown := []string{stderr.String()}

	ctx, stop := context.WithCancel(t.Context())
	var log syncBuffer
	ended := make(chan int)
	go func() { ended <- runCommandLine(ctx, []string{"-c", file, "run"}, io.Discard, &log, nil) }()
	at := regexp.MustCompile(` http=(\S+)`)
	for _, path := range []string{"/readyz", "/api/status"} {
		envtest.Until(t, envtest.Patience, func() error {
			m := at.FindStringSubmatch(log.String())
			if m == nil {
				return errors.New("not started")
			}
			resp, err := http.Get("http://" + m[1] + path)
			if err != nil {
				return err
			}
			defer func() { _ = resp.Body.Close() }()
			body, err := io.ReadAll(resp.Body)
			if err == nil && !strings.Contains(string(body), "repeated:") {
				err = fmt.Errorf("%s: no cause yet: %s", path, body)
			}
			if err == nil {
				shown = append(shown, string(body))
			}
			return err
		})
	}
	stop()
	if code := <-ended; code != exitDone {
		t.Errorf("run: exit %d", code)
	}
	for _, text := range append(shown, log.String()) {
		if strings.Contains(text, "ZQMARK") || !strings.Contains(text, "repeated:[redacted]:yyy") || len(text) > 40_000 {
			t.Errorf("%d bytes are shown, with the password or without the cause: %.3000s", len(text), text)
		}
	}
}

// With log.format: json every line is JSON, the one with which the daemon ends
// too; other commands speak to people.
func TestLastLineIsJSON(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for want, text := range map[string]string{
		"address already in use": "source: {url: 'postgres://u@127.0.0.1:1/de'}\nhttp: {listen: '" + l.Addr().String() + "'}\n",
		"source.url: not set":    "http: {listen: '" + l.Addr().String() + "'}\n",
	} {
		dir := t.TempDir()
		file := filepath.Join(dir, "c.yaml")
		text += "kafka: {brokers: ['127.0.0.1:1']}\nlog: {format: json}\nstate: {dir: " + filepath.Join(dir, "s") + "}\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var log syncBuffer
		code := runCommandLine(t.Context(), []string{"-c", file, "run"}, io.Discard, &log, nil)
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		for _, line := range lines {
			if !json.Valid([]byte(line)) {
				t.Errorf("not JSON: %s", line)
			}
		}
		var last struct {
			Error string `json:"error"`
			Exit  int    `json:"exit"`
		}
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || !strings.Contains(last.Error, want) || strings.Count(last.Error, l.Addr().String()) > 1 || last.Exit != code || code == exitDone {
			t.Errorf("exit %d, last line %s", code, lines[len(lines)-1])
		}
	}
}

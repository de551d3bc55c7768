package httpserve

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/status"
)

// serveTest serves a handler as the daemon does over TCP.
func serveTest(t *testing.T, h http.Handler) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		log := slog.New(slog.DiscardHandler)
		ended <- (&Server{Handler: ReadOnly(h, Access{Token: noToken, Loopback: true}, log), Log: log, Patience: AnswerPatience}).Serve(ctx, l)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return l.Addr().String()
}

func noToken() (string, error) { return "", nil }

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// ask sends a request as it stands and gives the answer's status and body.
func ask(t *testing.T, conn net.Conn, request string) (code int, header http.Header, body string) {
	t.Helper()
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%.40q: %v", request, err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(text)
}

// Connections that only wait, before their first request or after it, give way to
// those that ask.
func TestIdleConnectionsGiveWay(t *testing.T) {
	t.Parallel()
	address := serveTest(t, status.NewHandler(status.Build{}, func() status.Report { return status.Report{Ready: true} }, slog.New(slog.DiscardHandler)))
	first := dial(t, address)
	for i := range maxHTTPConnections + 44 {
		conn := dial(t, address)
		if i%8 == 0 {
			ask(t, conn, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
		}
	}
	if code, _, body := ask(t, dial(t, address), "GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"); code != http.StatusOK {
		t.Errorf("%d %s", code, body)
	}
	if _, err := first.Read(make([]byte, 1)); err == nil {
		t.Error("the connection that waited longest is still there")
	} else if timeout, ok := err.(net.Error); ok && timeout.Timeout() { //nolint:errorlint // as net gives it
		t.Error("the connection that waited longest was not closed")
	}
}

// While all connections are at work, a new one is refused, and the others go on.
func TestBusyConnectionsStay(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newBoundedListener(inner, 2, time.Hour)
	t.Cleanup(func() { _ = l.Close() })
	accepted := make(chan net.Conn, 3)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	address := inner.Addr().String()
	var busy [2]net.Conn
	for i := range busy {
		dial(t, address)
		busy[i] = <-accepted
		l.noteState(busy[i], http.StateNew)
		l.noteState(busy[i], http.StateActive)
	}
	if _, err := dial(t, address).Read(make([]byte, 1)); err == nil {
		t.Error("a third one was let in")
	}
	l.noteState(busy[1], http.StateIdle)
	dial(t, address)
	third := <-accepted
	if _, err := busy[1].Write([]byte("x")); err == nil {
		t.Error("the idle one is still there")
	}
	// A peer that does not read its answer for too long gives way as well.
	l.noteState(third, http.StateActive)
	l.mu.Lock()
	l.open[third] = connectionState{since: time.Now().Add(-2 * l.patience), busy: true}
	l.mu.Unlock()
	dial(t, address)
	fourth := <-accepted
	if _, err := third.Write([]byte("x")); err == nil {
		t.Error("the slow one is still there")
	}
	third = fourth
	l.noteState(busy[0], http.StateClosed)
	l.noteState(third, http.StateClosed)
	if len(l.open) != 0 {
		t.Errorf("%d are still counted", len(l.open))
	}
	for _, conn := range []net.Conn{busy[0], third} {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestHTTPConnections(t *testing.T) {
	t.Parallel()
	for descriptors, want := range map[uint64]int{0: 8, 20: 8, 150: 18, 1024: 128, 1 << 20: 256, ^uint64(0): 256} {
		if got := httpConnections(descriptors); got != want {
			t.Errorf("%d descriptors: %d connections, want %d", descriptors, got, want)
		}
	}
}

// Requests of a stranger over TCP: the server answers only GET and HEAD of known
// paths, with a Host of this machine and a header of bounded size.
func TestHostileRequests(t *testing.T) {
	t.Parallel()
	address := serveTest(t, status.NewHandler(status.Build{}, func() status.Report { return status.Report{Ready: true} }, slog.New(slog.DiscardHandler)))
	for request, want := range map[string]int{
		"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n":                                           200,
		"GET /healthz HTTP/1.1\r\nHost: LOCALHOST:8420\r\n\r\n":                                      200,
		"GET /healthz HTTP/1.1\r\nHost: 10.0.0.1:8420\r\n\r\n":                                       200,
		"GET /healthz HTTP/1.1\r\nHost: [::1]:8420\r\n\r\n":                                          200,
		"GET /healthz HTTP/1.0\r\n\r\n":                                                              200,
		"GET /api/status HTTP/1.1\r\nHost: evil.example\r\n\r\n":                                     421,
		"GET /api/status HTTP/1.1\r\nHost: localhost.evil.example:8420\r\n\r\n":                      421,
		"GET http://evil.example/api/status HTTP/1.1\r\nHost: localhost\r\n\r\n":                     421,
		"GET /healthz HTTP/1.1\r\n\r\n":                                                              400,
		"GET /api/status HTTP/1.1\r\nHost: bell\r\n\r\n":                                             421,
		"GET /healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n":                                        200,
		"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello":                 413,
		"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n":            413,
		"GET /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n":    413,
		"POST /api/status HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n":                  405,
		"PUT /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n":                      405,
		"TRACE / HTTP/1.1\r\nHost: localhost\r\n\r\n":                                                405,
		"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n":                                              405,
		"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: localhost\r\n\r\n":                                    405,
		"BREW /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n":                                          405,
		"GET /control/rebuild HTTP/1.1\r\nHost: localhost\r\n\r\n":                                   404,
		"POST /control/rebuild HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n":             405,
		"GET /debug/pprof/ HTTP/1.1\r\nHost: localhost\r\n\r\n":                                      404,
		"GET /..%2f..%2fetc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n":                              404,
		"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("x", 40<<10) + "\r\n\r\n": 431,
		"GET /" + strings.Repeat("a", 40<<10) + " HTTP/1.1\r\nHost: localhost\r\n\r\n":               431,
	} {
		code, header, body := ask(t, dial(t, address), request)
		if code != want {
			t.Errorf("%.60q: %d %q, want %d", request, code, body, want)
		}
		if want == http.StatusMethodNotAllowed && header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%.60q: Allow is %q", request, header.Get("Allow"))
		}
		if want != http.StatusBadRequest && want != http.StatusRequestHeaderFieldsTooLarge && header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%.60q: headers %v", request, header)
		}
	}
	// Several requests at once, one behind the other.
	conn := dial(t, address)
	if _, err := io.WriteString(conn, strings.Repeat("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 50)); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	for i := range 50 {
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("answer %d: %v", i, err)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

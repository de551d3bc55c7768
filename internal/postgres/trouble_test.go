package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// An error of a connection names the mending command, once, where the error tells it.
func TestAddFixNamesTheMendingCommand(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		raw  string
		err  error
		want string // "": the error stays as it is
	}{
		{"postgres://bell:x@127.0.0.1:1/de", nil, "start Postgres, or correct host and port in sink.url"},
		{"postgres://bell:x@no-such-host.invalid:1/de", nil, "correct the host in sink.url"},
		{"postgres://bell:x@h/de", &pgconn.PgError{Code: "28P01"}, "correct the password in sink.url"},
		{"postgres://bell:x@h/de", &pgconn.PgError{Code: "3D000"}, `CREATE DATABASE "de"`},
		{"postgres://bell:x@h/de", &pgconn.PgError{Code: "42501"}, `GRANT CONNECT ON DATABASE "de" TO "bell"`},
		{"postgres://bell:x@h/de", &pgconn.PgError{Code: "57P03"}, ""},
		{"postgres://bell:x@h/de?sslmode=require", errors.New(refusedTLS), "set sslmode=disable in sink.url"},
		{"postgres://bell:x@h/de", &notPostgresError{"HTTP"}, "see what listens at host and port of sink.url"},
		{"postgres://bell:x@h/de", fmt.Errorf("pin settings: %w", &pgproto3.ExceededMaxBodyLenErr{}), "see what listens at host and port of sink.url"},
		{"postgres://bell:x@h/de", context.DeadlineExceeded, "through (sink.url)"},
		{"postgres://bell:x@h/de", errors.New("something else"), ""},
	} {
		o, err := Parse(tc.raw)
		if err != nil {
			t.Fatal(err)
		}
		cause := tc.err
		if cause == nil {
			cause = connectError(t, tc.raw)
		}
		got := AddFix(cause, &o.Config, "sink.url")
		if !errors.Is(got, cause) || !strings.Contains(got.Error(), tc.want) || (tc.want == "") != (got.Error() == cause.Error()) || strings.Count(got.Error(), "to mend") > 1 {
			t.Errorf("%v: got %v, want %q", cause, got, tc.want)
		}
	}
}

// A server that ends the connection in the middle of the login may be a Postgres that
// crashed, or whose proxy refuses the client: what is known is said, and no more.
func TestServerClosesDuringLogin(t *testing.T) {
	t.Parallel()
	// begins to answer as Postgres does: a parameter, before it lets anybody in
	parameter := "S\x00\x00\x00\x20server_version\x00"
	for name, tc := range map[string]struct {
		answer string
		reset  bool
		mode   string
		want   []string // in the error with its remedy
	}{
		"without a message":  {"", false, "disable", []string{"the server closed the connection during the login, without an answer", "a Postgres that crashed or has no connection left", "a proxy", "host and port of source.url"}},
		"asked for TLS":      {"", false, "require", []string{"the server closed the connection during the login, without an answer", "host and port of source.url"}},
		"by a reset":         {"", true, "disable", []string{"the server closed the connection during the login, without an answer", "host and port of source.url"}},
		"after a first word": {parameter, false, "disable", []string{"the server closed the connection during the login, in the middle of its answer", "its log"}},
	} {
		at := envtest.Serve(t, func(c net.Conn) {
			if tcp, ok := c.(*net.TCPConn); ok && tc.reset {
				_ = tcp.SetLinger(0)
				return // what the client sent is not read
			}
			_, _ = c.Read(make([]byte, 1024))
			_, _ = io.WriteString(c, tc.answer)
		})
		o, err := Parse("postgres://bell:x@" + at + "/de?sslmode=" + tc.mode)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := Connect(t.Context(), o)
		if err == nil {
			_ = conn.Close(t.Context())
			t.Fatalf("%s: connected", name)
		}
		got := AddFix(err, &o.Config, "source.url").Error()
		for _, want := range tc.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in %s", name, want, got)
			}
		}
		if trouble := ExplainConnect(t.Context(), err, o, "source.url"); trouble.Kind != "the server closed the connection during the login" || strings.Contains(got, "no Postgres answered") {
			t.Errorf("%s: %+v", name, trouble)
		}
	}
}

// A server that refuses an expired certificate of a client may reset the connection before
// the client has read the alert: the certificate itself shows why.
func TestExpiredClientCertificateWithoutAnAlert(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := envtest.NewAuthority(t, filepath.Join(dir, "ca.pem"), "the authority")
	cert, key := ca.Issue(t, filepath.Join(dir, "server"), envtest.Leaf{Name: "server", Hosts: []string{"127.0.0.1"}})
	own, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	at := envtest.Serve(t, func(c net.Conn) {
		tcp, ok := c.(*net.TCPConn)
		if !ok {
			return
		}
		request := make([]byte, 8) // SSLRequest
		if _, err := io.ReadFull(c, request); err != nil {
			return
		}
		_, _ = io.WriteString(c, "S")
		_ = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{own}, ClientAuth: tls.RequestClientCert}).Handshake()
		_ = tcp.SetLinger(0)
	})
	for ends, want := range map[time.Duration]string{-time.Hour: "expired client certificate", time.Hour: closedKind} {
		cert, key := ca.Issue(t, filepath.Join(dir, "client"), envtest.Leaf{Name: "bell", Ends: ends})
		o, err := Parse(fmt.Sprintf("postgres://bell@%s/de?sslmode=require&sslcert=%s&sslkey=%s", at, cert, key))
		if err != nil {
			t.Fatal(err)
		}
		conn, err := Connect(t.Context(), o)
		if err == nil {
			_ = conn.Close(t.Context())
			t.Fatal("connected")
		}
		if trouble := ExplainConnect(t.Context(), err, o, "source.url"); trouble.Kind != want {
			t.Errorf("a certificate that ends in %s: %+v, want %q (%v)", ends, trouble, want, err)
		}
	}
}

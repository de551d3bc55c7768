package postgres

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"dinnerbell/internal/testenv/envtest/hostile"
)

// serve answers every connection's first message with these bytes, and gives the
// listener's address.
func serve(t *testing.T, answer []byte) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				if _, err := c.Read(make([]byte, 8192)); err == nil {
					_, _ = c.Write(answer) // the client may have gone
				}
			}()
		}
	}()
	return l.Addr().String()
}

func connectError(t *testing.T, raw string) error {
	t.Helper()
	o, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	o.ConnectTimeout = 5 * time.Second
	conn, err := Connect(t.Context(), o)
	if err == nil {
		_ = conn.Close(t.Context())
		t.Fatal("connected")
	}
	if _, walErr := ConnectWalsender(t.Context(), &o.Config); walErr == nil || walErr.Error() != err.Error() {
		t.Errorf("walsender: %v, want %v", walErr, err)
	}
	return err
}

// The driver names each address once for TLS and once without, and the refusal
// of TLS before the true cause.
func TestConnectErrorNamesEachAddressOnce(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"postgres://u:x@127.0.0.1:1/de":               "user u, database de: 127.0.0.1:1: connection refused",
		"postgres://u:x@127.0.0.1:1,127.0.0.2:1/de":   "user u, database de: 127.0.0.1:1: connection refused; 127.0.0.2:1: connection refused",
		"host=/nowhere user=u dbname=de":              "user u, database de: /nowhere/.s.PGSQL.5432: no such file or directory",
		"postgres://u:x@no-such-host.invalid:1/de":    "user u, database de: no-such-host.invalid: ",
		"postgres://u:x@localhost:1/de?sslmode=allow": "localhost (127.0.0.1:1): connection refused",
	} {
		err := connectError(t, raw)
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\n got %v\nwant %s", raw, err, want)
		}
		if strings.ContainsAny(err.Error(), "\n\t") || strings.Count(err.Error(), "127.0.0.1:1:") > 1 {
			t.Errorf("%s: more than one line or an address twice: %v", raw, err)
		}
	}
}

func TestConnectErrorHidesTheRefusalOfTLS(t *testing.T) {
	t.Parallel()
	refusal, err := (&pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: "28000", Message: `role "u" does not exist`}).Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	// The first byte also answers the question for TLS: anything but S refuses it.
	at := serve(t, refusal)
	err = connectError(t, "postgres://u:x@"+at+"/de")
	if want := `user u, database de: ` + at + `: FATAL: role "u" does not exist (SQLSTATE 28000)`; err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	if pgErr, ok := errors.AsType[*pgconn.PgError](err); !ok || pgErr.Code != "28000" {
		t.Errorf("%v does not hold the server's error", err)
	}
	// Checks of the driver itself have the names of other steps.
	letIn := []byte{'R', 0, 0, 0, 8, 0, 0, 0, 0, 'Z', 0, 0, 0, 5, 'I'}
	for param, want := range map[string]string{
		"channel_binding=require": "channel binding check failed", "require_auth=scram-sha-256": "require_auth check failed",
	} {
		at := serve(t, letIn)
		err := connectError(t, "postgres://u:x@"+at+"/de?"+param)
		if text := err.Error(); strings.Contains(text, refusedTLS) || !strings.Contains(text, want) || strings.Count(text, at) != 1 {
			t.Errorf("with %s: %v", param, err)
		}
	}
	err = connectError(t, "postgres://u:x@"+at+"/de?sslmode=require")
	if !strings.Contains(err.Error(), refusedTLS) {
		t.Errorf("with sslmode=require: %v", err)
	}
}

// A server that claims a message of 1 GB before it let us in costs nothing.
func TestMessageBeforeAuthenticationIsBounded(t *testing.T) {
	at := serve(t, append([]byte{'R', 0, 0, 0, 8, 0, 0, 0, 0, 'S'}, binary.BigEndian.AppendUint32(nil, 1<<30-100)...))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := connectError(t, "postgres://u:x@"+at+"/de?sslmode=disable")
	runtime.ReadMemStats(&after)
	if !strings.Contains(err.Error(), "claims a message of 1073741720 bytes before it has let us in") {
		t.Errorf("error %v", err)
	}
	if got := after.TotalAlloc - before.TotalAlloc; got > 8<<20 {
		t.Errorf("%d MB were allocated", got>>20)
	}
}

// A server that has let us in cannot claim a message that no answer of ours has; where rows
// of other people's tables come, it can, once that was asked for.
func TestMessagesAreBounded(t *testing.T) {
	t.Parallel()
	const claimed = maxMessage + 1
	for name, lifted := range map[string]bool{"bounded": false, "lifted": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			peer := hostile.Start(t, hostile.Answer(append(bytes.Clone(hostile.LetIn), hostile.Claim('D', claimed)...)))
			o, err := Parse("postgres://u:x@" + peer.Address() + "/de?sslmode=disable")
			if err != nil {
				t.Fatal(err)
			}
			for what, connect := range map[string]func(ctx context.Context) (*pgconn.PgConn, error){
				"Connect": func(ctx context.Context) (*pgconn.PgConn, error) {
					conn, err := Connect(ctx, o)
					if err != nil {
						return nil, err
					}
					return conn.PgConn(), nil
				},
				"ConnectWalsender": func(ctx context.Context) (*pgconn.PgConn, error) { return ConnectWalsender(ctx, &o.Config) },
			} {
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				conn, err := connect(ctx)
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				if lifted {
					ExpectLargeRows(conn)
				}
				err = conn.Exec(ctx, "SELECT").Close()
				if _, refused := errors.AsType[*pgproto3.ExceededMaxBodyLenErr](err); refused == lifted || err == nil {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
	}
}

package httpserve

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/logging"
)

// Whoever asks without an end, and from as many networks as IPv6 has, writes a few lines into
// the daemon's log: while the token or the certificate cannot be read, and with wrong tokens.
func TestStrangersDoNotFillTheLog(t *testing.T) {
	t.Parallel()
	const requests, most = 6000, 8 // in ten minutes
	next := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	handler := func(log *slog.Logger, token func() (string, error)) http.Handler {
		return ReadOnly(next, Access{Token: token}, log)
	}
	for name, ask := range map[string]func(t *testing.T, log *slog.Logger) func(i int){
		"the token cannot be read": func(t *testing.T, log *slog.Logger) func(int) {
			t.Helper()
			h := handler(log, func() (string, error) { return "", errors.New("http.token: open /run/x: permission denied") })
			return func(i int) { request(t, h, fmt.Sprintf("192.0.2.%d:%d", i%256, i), "x", "/metrics", "Bearer x") }
		},
		"the certificate cannot be read": func(_ *testing.T, log *slog.Logger) func(int) {
			s := &Server{Log: log, Certificate: func() (*tls.Certificate, error) {
				return &tls.Certificate{}, errors.New("http.tls.cert: open /run/x: permission denied")
			}}
			return func(int) { _, _ = s.getCertificate(nil) }
		},
		"wrong tokens": func(t *testing.T, log *slog.Logger) func(int) {
			t.Helper()
			h := handler(log, func() (string, error) { return token, nil })
			return func(i int) {
				request(t, h, fmt.Sprintf("[2001:db8:%x:%x::1]:7", i/freeAttempts>>8, i/freeAttempts), "x", "/metrics", "Bearer x")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var out strings.Builder
				try := ask(t, logging.New(io.Writer(&out), "info", "text", func(s string) string { return s }))
				for i := range requests {
					try(i)
					time.Sleep(10 * time.Minute / requests) //nolint:forbidigo // synctest's clock
				}
				if n := strings.Count(out.String(), "\n"); n == 0 || n > most {
					t.Errorf("%d lines, want 1 to %d:\n%s", n, most, out.String()[:min(2000, out.Len())])
				}
			})
		})
	}
}

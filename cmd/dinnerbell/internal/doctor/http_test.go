package doctor

import (
	"log/slog"
	"net"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/cmd/dinnerbell/internal/httpserve"
	"dinnerbell/cmd/dinnerbell/internal/status"
	"dinnerbell/internal/precondition"
	"dinnerbell/internal/testenv/envtest"
)

// The listener of the running daemon is not another process, also not where TLS is set up
// for its next start.
func TestListenerOfTheRunningDaemon(t *testing.T) {
	t.Parallel()
	authority := envtest.NewAuthority(t, filepath.Join(t.TempDir(), "ca.pem"), "authority")
	cert, key := authority.Issue(t, filepath.Join(t.TempDir(), "server"), envtest.Leaf{Name: "s", Hosts: []string{"127.0.0.1"}})
	for name, tc := range map[string]struct {
		host string
		tls  config.HTTPTLS
	}{
		"as it was started":        {host: "127.0.0.1"},
		"TLS of the next start on": {host: "127.0.0.1", tls: config.HTTPTLS{Cert: cert, Key: key}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			access := httpserve.Access{Token: func() (string, error) { return "", nil }}
			server := httptest.NewServer(httpserve.ReadOnly(status.NewHandler(status.Build{Version: "1"}, func() status.Report { return status.Report{Version: "1"} }, slog.New(slog.DiscardHandler)), access, slog.New(slog.DiscardHandler)))
			t.Cleanup(server.Close)
			_, port, _ := net.SplitHostPort(server.Listener.Addr().String())
			cfg := &config.Config{}
			cfg.HTTP.Listen, cfg.HTTP.TLS, cfg.HTTP.Insecure = net.JoinHostPort(tc.host, port), tc.tls, true
			found, err := checkHTTP(t.Context(), &machine{cfg: cfg, running: runningDaemon{answers: true}})
			if err != nil || len(found) != 1 || found[0].Level != precondition.OK || !strings.Contains(found[0].Found, "used by the running daemon") {
				t.Errorf("%+v, %v", found, err)
			}
		})
	}
}

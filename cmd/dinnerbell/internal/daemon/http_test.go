package daemon

import (
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"dinnerbell/cmd/dinnerbell/internal/config"
	"dinnerbell/internal/testenv/envtest"
)

// The name that the operator gives the listener is one that it answers to, and no other's.
func TestListenerAnswersToItsOwnName(t *testing.T) {
	t.Parallel()
	cfg := &config.Config{}
	cfg.HTTP.Listen, cfg.HTTP.Insecure = "bell.example.com:8420", true
	s := &supervisor{Options: Options{Config: cfg, Logger: slog.New(slog.DiscardHandler)}}
	ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	h := s.newHTTPServer(ok, &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 8420}).Handler
	for host, want := range map[string]int{"bell.example.com:8420": 200, "Bell.Example.com": 200, "evil.example.com:8420": 421, "192.0.2.7:8420": 200} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		r.Host = host
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != want {
			t.Errorf("%s: %d, want %d", host, w.Code, want)
		}
	}
}

// A renewal that has replaced the certificate and not yet the key refuses nobody, also where
// nobody has connected before it.
func TestFirstConnectionInTheMiddleOfARenewal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	authority := envtest.NewAuthority(t, filepath.Join(dir, "ca.pem"), "authority")
	cfg := &config.Config{}
	cfg.HTTP.Listen = "127.0.0.1:8420"
	cfg.HTTP.TLS.Cert, cfg.HTTP.TLS.Key = authority.Issue(t, filepath.Join(dir, "server"), envtest.Leaf{Name: "s", Hosts: []string{"127.0.0.1"}})
	s := &supervisor{Options: Options{Config: cfg, Logger: slog.New(slog.DiscardHandler)}}
	server := s.newHTTPServer(http.NotFoundHandler(), &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8420})
	next, _ := authority.Issue(t, filepath.Join(dir, "next"), envtest.Leaf{Name: "s", Hosts: []string{"127.0.0.1"}})
	if err := os.Rename(next, cfg.HTTP.TLS.Cert); err != nil {
		t.Fatal(err)
	}
	if pair, err := server.Certificate(); pair == nil || err == nil {
		t.Errorf("%v, %v: want the former pair, and why the new one cannot be used", pair, err)
	}
}

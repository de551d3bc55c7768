package portprobe_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/portprobe"
	"dinnerbell/internal/testenv/envtest"
)

// The alert of a server that wants another client certificate names the settings.
func TestExplainClientCertificate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := envtest.NewAuthority(t, filepath.Join(dir, "ca.pem"), "authority")
	stranger := envtest.NewAuthority(t, filepath.Join(dir, "stranger.pem"), "stranger")
	pair := func(a *envtest.Authority, l envtest.Leaf) []tls.Certificate {
		cert, key := a.Issue(t, filepath.Join(dir, "pair"), l)
		loaded, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return []tls.Certificate{loaded}
	}
	text, err := os.ReadFile(ca.File)
	if err != nil {
		t.Fatal(err)
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(text)
	server := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: pair(ca, envtest.Leaf{Name: "server", Hosts: []string{"127.0.0.1"}}), ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: trusted}
	addr := envtest.Serve(t, func(c net.Conn) { _, _ = tls.Server(c, server).Read(make([]byte, 1)) })
	for name, c := range map[string]struct {
		client []tls.Certificate
		want   string
	}{
		"none":     {nil, "missing client certificate|missing or refused client certificate"},
		"stranger": {pair(stranger, envtest.Leaf{Name: "me"}), "missing or refused client certificate"},
		"expired":  {pair(ca, envtest.Leaf{Name: "me", Ends: -time.Hour}), "expired client certificate"},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			if c.client == nil && version == tls.VersionTLS12 {
				continue // the alert is "handshake failure", as for other faults
			}
			conn, err := tls.Dial("tcp", addr, &tls.Config{MinVersion: tls.VersionTLS12, MaxVersion: version, RootCAs: trusted, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if c.client == nil {
					return &tls.Certificate{}, nil
				}
				return &c.client[0], nil // whatever authorities the server names
			}})
			if err == nil { // of TLS 1.3 a client learns when it reads
				_, err = conn.Read(make([]byte, 1))
				_ = conn.Close()
			}
			kind, fix, ok := portprobe.ExplainClientCertificate(err, "KEYS", "TRUST")
			if !ok || !strings.Contains("|"+c.want+"|", "|"+kind+"|") || !strings.Contains(fix, "KEYS") {
				t.Errorf("%s, %s: %q, %q for %v", name, tls.VersionName(version), kind, fix, err)
			}
		}
	}
	for _, other := range []error{x509.UnknownAuthorityError{}, os.ErrNotExist} {
		if _, _, ok := portprobe.ExplainClientCertificate(other, "KEYS", "TRUST"); ok {
			t.Errorf("%v is no client certificate", other)
		}
	}
}

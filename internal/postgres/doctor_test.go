package postgres

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/precondition"
)

// Connections over a network are judged by who can read and answer them.
func TestJudgeTLS(t *testing.T) {
	t.Parallel()
	now := time.Now()
	until := func(d time.Duration) tls.ConnectionState {
		return tls.ConnectionState{Version: tls.VersionTLS13, PeerCertificates: []*x509.Certificate{{NotAfter: now.Add(d)}}}
	}
	unchecked := &tls.Config{InsecureSkipVerify: true} // what sslmode=require gives
	for name, c := range map[string]struct {
		state tls.ConnectionState
		asked *tls.Config
		local bool
		level precondition.Level
		text  string
	}{
		"verified":               {until(1000 * time.Hour), &tls.Config{MinVersion: tls.VersionTLS12}, false, precondition.OK, "TLS 1.3, certificate until "},
		"unchecked":              {until(1000 * time.Hour), unchecked, false, precondition.Warn, "which nobody checks; whoever answers in the server's place"},
		"unchecked on a machine": {until(1000 * time.Hour), unchecked, true, precondition.OK, "TLS 1.3"},
		"ends soon":              {until(time.Hour), unchecked, false, precondition.Warn, "renew the server's certificate"},
	} {
		if f := judgeTLS(c.state, c.asked, c.local, "sink.url", now); f.Level != c.level || !strings.Contains(f.String(), c.text) {
			t.Errorf("%s: %+v", name, f)
		}
	}
	for addr, want := range map[net.Addr]bool{
		&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}: true, &net.TCPAddr{IP: net.IPv6loopback}: true, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1)}: false, &net.UnixAddr{Name: "/x"}: true,
	} {
		if isLocal(addr) != want {
			t.Errorf("%v: local is %v", addr, !want)
		}
	}
}

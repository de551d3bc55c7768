// Package portprobe finds out which protocol a port speaks, so that an error can name
// the setting that does not fit the port. It sends no secret and trusts nobody.
package portprobe

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"time"
)

// limit bounds a probe: a port that waits for more bytes than a ClientHello speaks
// another protocol.
const limit = 2 * time.Second

// SpeaksTLS reports whether the port at addr (host:port) speaks TLS from the first
// byte. A port that cannot be reached or says nothing does not.
func SpeaksTLS(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	host, _, _ := net.SplitHostPort(addr)
	client := tls.Client(conn, &tls.Config{ServerName: host, InsecureSkipVerify: true, MinVersion: tls.VersionTLS10}) //nolint:gosec // whatever certificate it has, nothing is sent over it
	err = client.HandshakeContext(ctx)
	if err == nil {
		return true
	}
	// An alert is an answer in TLS.
	_, alert := errors.AsType[tls.AlertError](err)
	return alert || strings.HasPrefix(err.Error(), "remote error: tls: ")
}

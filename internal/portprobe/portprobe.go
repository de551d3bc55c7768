// Package portprobe finds out which protocol a port speaks, so that an error can name
// the setting that does not fit the port. It sends no secret and trusts nobody.
package portprobe

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"time"
)

// Limit bounds a probe: a port that waits for more bytes than a ClientHello speaks
// another protocol.
const Limit = 2 * time.Second

// SpeaksTLS reports whether the port at addr (host:port) speaks TLS from the first
// byte. A port that cannot be reached or says nothing does not.
func SpeaksTLS(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, Limit)
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

// apiVersions is a request that every Kafka broker answers in the clear, before any
// login: ApiVersions version 0, correlation id 1, without a client's name.
// https://kafka.apache.org/protocol#protocol_api_keys
var apiVersions = []byte{0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 1, 0xff, 0xff}

// SpeaksKafka reports whether a Kafka broker answers at addr (host:port) in the clear.
func SpeaksKafka(ctx context.Context, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, Limit)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	end, _ := ctx.Deadline()
	if err := conn.SetDeadline(end); err != nil {
		return false
	}
	if _, err := conn.Write(apiVersions); err != nil {
		return false
	}
	head := make([]byte, 8) // size and correlation id
	if _, err := io.ReadFull(conn, head); err != nil {
		return false
	}
	return binary.BigEndian.Uint32(head) < 1<<16 && binary.BigEndian.Uint32(head[4:]) == 1
}

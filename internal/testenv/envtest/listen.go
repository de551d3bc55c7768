package envtest

import (
	"io"
	"net"
	"testing"
)

// Serve serves each connection of a port of this machine until the test ends, and returns
// the address; nil: nobody listens there any more.
func Serve(t testing.TB, serve func(net.Conn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if serve == nil {
		_ = l.Close()
		return l.Addr().String()
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				serve(conn)
			}()
		}
	}()
	return l.Addr().String()
}

// HoldConn reads and says nothing, until the peer leaves.
func HoldConn(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

package cdc

import (
	"syscall"
	"testing"

	"dinnerbell/cdc/source"
)

// A server that is gone without a word is noticed by the kernel within a minute.
func TestKeepAliveOfOurOwn(t *testing.T) {
	t.Parallel()
	r := newDeployment(t)
	conn, err := r.source().DialSQL(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer source.CloseConn(conn.PgConn())
	socket, ok := conn.PgConn().Conn().(syscall.Conn)
	if !ok {
		t.Fatal("the connection is no socket")
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		for name, option := range map[string]int{"idle": syscall.TCP_KEEPIDLE, "interval": syscall.TCP_KEEPINTVL, "count": syscall.TCP_KEEPCNT} {
			if n, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, option); err != nil || n > 15 {
				t.Errorf("keepalive %s is %d, %v; want 15 at most", name, n, err)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

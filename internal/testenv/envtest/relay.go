package envtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"
)

// Relay passes TCP connections on to a Postgres. It can hold the server's bytes
// back without losing any, and limit the rate of each connection, as a slow
// network does.
type Relay struct {
	replication bool // affects replication connections only
	// BytesPerSecond limits each connection's bytes from the server; 0 is
	// unlimited.
	BytesPerSecond int

	upstream string
	ln       net.Listener
	wait     sync.WaitGroup

	mu     sync.Mutex // guards the fields below
	free   chan struct{}
	closed bool
	conns  map[net.Conn]bool
}

// RelayPostgres relays to the server in db's URL until the test ends. With
// replicationOnly, other connections are neither held back nor limited.
func RelayPostgres(t testing.TB, db *DB, replicationOnly bool) *Relay {
	t.Helper()
	u, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &Relay{replication: replicationOnly, upstream: u.Host, ln: ln, conns: map[net.Conn]bool{}}
	r.Resume()
	r.wait.Go(r.acceptLoop)
	t.Cleanup(r.closeAll)
	return r
}

// URL replaces the address in a connection string by the relay's.
func (r *Relay) URL(direct string) string {
	u, err := url.Parse(direct)
	if err != nil {
		return direct // no server accepts this URL either
	}
	u.Host = r.ln.Addr().String()
	return u.String()
}

// Pause holds the server's bytes back.
func (r *Relay) Pause() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.free = make(chan struct{})
}

// Resume passes the bytes on that Pause held back, and all later ones.
func (r *Relay) Resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.gateLocked():
	default:
		close(r.free)
	}
}

// gateLocked returns a channel that is closed unless the relay is paused; the
// caller holds mu.
func (r *Relay) gateLocked() chan struct{} {
	if r.free == nil {
		r.free = make(chan struct{})
	}
	return r.free
}

func (r *Relay) closeAll() {
	r.Resume()
	r.mu.Lock()
	r.closed = true
	for c := range r.conns {
		_ = c.Close()
	}
	r.mu.Unlock()
	_ = r.ln.Close()
	r.wait.Wait()
}

func (r *Relay) acceptLoop() {
	for {
		client, err := r.ln.Accept()
		if err != nil {
			return
		}
		r.wait.Go(func() { r.serveConn(client) })
	}
}

// registerConn adds a connection that close must end.
func (r *Relay) registerConn(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		_ = c.Close()
		return false
	}
	r.conns[c] = true
	return true
}

func (r *Relay) unregisterConn(c net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
	_ = c.Close()
}

func (r *Relay) serveConn(client net.Conn) {
	if !r.registerConn(client) {
		return
	}
	defer r.unregisterConn(client)
	server, err := net.Dial("tcp", r.upstream)
	if err != nil || !r.registerConn(server) {
		return
	}
	defer r.unregisterConn(server)
	startup, err := readStartup(client)
	if err != nil {
		return
	}
	if _, err := server.Write(startup); err != nil {
		return
	}
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(server, client) // the end of one direction ends both
		_ = server.Close()
	})
	both.Go(func() {
		if r.replication && !isReplication(startup) {
			_, _ = io.Copy(client, server)
		} else {
			_ = r.copyFromServer(client, server)
		}
		_ = client.Close()
	})
	both.Wait()
}

// copyFromServer copies the server's bytes to the client.
func (r *Relay) copyFromServer(client, server net.Conn) error {
	buf := make([]byte, 16<<10)
	for {
		n, err := server.Read(buf)
		if n > 0 {
			r.mu.Lock()
			free := r.gateLocked()
			r.mu.Unlock()
			<-free
			if r.BytesPerSecond > 0 {
				<-time.After(time.Duration(n) * time.Second / time.Duration(r.BytesPerSecond))
			}
			if _, err := client.Write(buf[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
}

// readStartup reads the first packet, which begins with its length. The tests'
// servers have no TLS, so it is the startup packet or a cancel request.
func readStartup(client net.Conn) ([]byte, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(client, head); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head)
	if n < 8 || n > 10_000 {
		return nil, errors.New("not a startup packet")
	}
	packet := make([]byte, n)
	copy(packet, head)
	_, err := io.ReadFull(client, packet[4:])
	return packet, err
}

// isReplication reports whether a startup packet asks for replication.
func isReplication(startup []byte) bool {
	return bytes.Contains(startup, []byte("\x00replication\x00database\x00"))
}

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

// Relay passes TCP connections on to a Postgres. It can hold everything that
// comes from the server back, without losing any of it, and slow connections
// down one by one, as a long way does.
type Relay struct {
	replication bool // it holds back and slows down replication connections alone
	// BytesPerSecond of one connection, from the server; 0: as fast as it goes.
	BytesPerSecond int

	upstream string
	ln       net.Listener
	wait     sync.WaitGroup

	mu     sync.Mutex // guards below
	free   chan struct{}
	closed bool
	conns  map[net.Conn]bool
}

// RelayPostgres relays to the server of db's URL until the test has ended.
// replicationOnly: other connections are passed on untouched.
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
	t.Cleanup(r.close)
	return r
}

// URL leads through the relay.
func (r *Relay) URL(direct string) string {
	u, err := url.Parse(direct)
	if err != nil {
		return direct // which no server accepts either
	}
	u.Host = r.ln.Addr().String()
	return u.String()
}

// Pause holds back what comes from the server.
func (r *Relay) Pause() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.free = make(chan struct{})
}

// Resume lets it go on, with all that was held back.
func (r *Relay) Resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.gateLocked():
	default:
		close(r.free)
	}
}

// gateLocked is closed while nothing is held back. The caller holds mu.
func (r *Relay) gateLocked() chan struct{} {
	if r.free == nil {
		r.free = make(chan struct{})
	}
	return r.free
}

func (r *Relay) close() {
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

// register makes sure that close ends c.
func (r *Relay) register(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		_ = c.Close()
		return false
	}
	r.conns[c] = true
	return true
}

func (r *Relay) unregister(c net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
	_ = c.Close()
}

func (r *Relay) serveConn(client net.Conn) {
	if !r.register(client) {
		return
	}
	defer r.unregister(client)
	server, err := net.Dial("tcp", r.upstream)
	if err != nil || !r.register(server) {
		return
	}
	defer r.unregister(server)
	startup, err := readStartup(client)
	if err != nil {
		return
	}
	if _, err := server.Write(startup); err != nil {
		return
	}
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(server, client) // an end of either ends both
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

// copyFromServer passes on what comes from the server.
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

// readStartup reads the first packet, whose length is in it. The tests' servers
// have no TLS, so that it is the startup packet or a cancel request.
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

// isReplication looks for the parameter in a startup packet.
func isReplication(startup []byte) bool {
	return bytes.Contains(startup, []byte("\x00replication\x00database\x00"))
}

package network

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"dinnerbell/internal/testenv"
)

// tcpRelay is a TCP proxy that understands enough of a protocol to lose one
// message. Each connection is a pump in both directions; when one ends, both do.
type tcpRelay struct {
	ln net.Listener
	// route gives the address to connect to. It may read from the client first;
	// what it read is returned and passed on.
	route func(client *bufio.Reader) (upstream string, head []byte, err error)
	// pumps makes the two directions of one connection; nil copies bytes.
	pumps func() (up, down pumpFunc)

	wg    sync.WaitGroup
	mu    sync.Mutex // guards conns
	conns map[net.Conn]struct{}
}

// pumpFunc moves bytes from in to out until one fails, or until it decides that the
// connection is to be cut.
type pumpFunc func(in *bufio.Reader, out *bufio.Writer) error

// errCut is how a pump cuts the connection.
var errCut = errors.New("cut on purpose")

// fixedRoute is the route of a relay that always goes to one place.
func fixedRoute(address string) func(*bufio.Reader) (string, []byte, error) {
	return func(*bufio.Reader) (string, []byte, error) { return address, nil, nil }
}

// listen starts the relay on a free port.
func (r *tcpRelay) listen() error {
	port, err := testenv.FreePort()
	if err != nil {
		return err
	}
	if r.ln, err = net.Listen("tcp", testenv.Loopback(port)); err != nil {
		return fmt.Errorf("listen for a relay: %w", err)
	}
	r.conns = map[net.Conn]struct{}{}
	r.wg.Go(r.acceptLoop)
	return nil
}

func (r *tcpRelay) addr() string { return r.ln.Addr().String() }

func (r *tcpRelay) acceptLoop() {
	for {
		conn, err := r.ln.Accept()
		if err != nil {
			return
		}
		r.wg.Go(func() { r.serveConn(conn) })
	}
}

// close cuts everything and waits.
func (r *tcpRelay) close() {
	_ = r.ln.Close() // its only error is that it is closed
	r.mu.Lock()
	for c := range r.conns {
		_ = c.Close()
	}
	r.conns = nil
	r.mu.Unlock()
	r.wg.Wait()
}

// register notes an open connection; false after close.
func (r *tcpRelay) register(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conns == nil {
		return false
	}
	r.conns[c] = struct{}{}
	return true
}

func (r *tcpRelay) unregister(c net.Conn) {
	_ = c.Close() // it may be closed already
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
}

func (r *tcpRelay) serveConn(client net.Conn) {
	defer r.unregister(client)
	if !r.register(client) {
		return
	}
	in := bufio.NewReaderSize(client, 64<<10)
	address, head, err := r.route(in)
	if err != nil {
		return
	}
	server, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	defer r.unregister(server)
	if !r.register(server) {
		return
	}
	if _, err := server.Write(head); err != nil {
		return
	}
	up, down := pumpFunc(copyBytes), pumpFunc(copyBytes)
	if r.pumps != nil {
		up, down = r.pumps()
	}
	var both sync.WaitGroup
	end := func() { _, _ = client.Close(), server.Close() } // each ends the other's read
	both.Go(func() { defer end(); _ = up(in, bufio.NewWriter(server)) })
	both.Go(func() {
		defer end()
		_ = down(bufio.NewReaderSize(server, 64<<10), bufio.NewWriterSize(client, 64<<10))
	})
	both.Wait()
}

// copyBytes copies. Both ends learn of an error by the connection's end.
func copyBytes(in *bufio.Reader, out *bufio.Writer) error {
	for {
		if _, err := in.Peek(1); err != nil {
			return err
		}
		if _, err := io.CopyN(out, in, int64(in.Buffered())); err != nil {
			return err
		}
		if err := out.Flush(); err != nil {
			return err
		}
	}
}

// flushIdle flushes when nothing more has come: a message is never held back.
func flushIdle(in *bufio.Reader, out *bufio.Writer) error {
	if in.Buffered() > 0 {
		return nil
	}
	return out.Flush()
}

// answerTrap loses messages: as many as it was armed for.
type answerTrap struct {
	Armed  atomic.Int64
	Sprung atomic.Int64 // how many were lost
}

// loseNext tells whether this message is one to lose.
func (t *answerTrap) loseNext() bool {
	for {
		n := t.Armed.Load()
		if n <= 0 {
			return false
		}
		if t.Armed.CompareAndSwap(n, n-1) {
			t.Sprung.Add(1)
			return true
		}
	}
}

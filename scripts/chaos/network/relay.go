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

// tcpRelay is a TCP proxy that knows enough of a protocol to swallow one
// message. Each connection has a pump per direction; when one pump ends, the
// other one ends too.
type tcpRelay struct {
	ln net.Listener
	// route returns the upstream address. It may read bytes from the client
	// first; it returns them as head, and the relay passes them on.
	route func(client *bufio.Reader) (upstream string, head []byte, err error)
	// pumps returns the two pumps of a connection; nil copies bytes.
	pumps func() (up, down pumpFunc)

	wg    sync.WaitGroup
	mu    sync.Mutex // guards conns
	conns map[net.Conn]struct{}
}

// pumpFunc moves bytes from in to out until a read or write fails, or until it
// cuts the connection.
type pumpFunc func(in *bufio.Reader, out *bufio.Writer) error

// errCut is the error of a pump that cuts the connection.
var errCut = errors.New("cut on purpose")

// fixedRoute returns a route that always leads to the same address.
func fixedRoute(address string) func(*bufio.Reader) (string, []byte, error) {
	return func(*bufio.Reader) (string, []byte, error) { return address, nil, nil }
}

// listenOnFreePort starts the relay on a free port.
func (r *tcpRelay) listenOnFreePort() error {
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

func (r *tcpRelay) listenAddress() string { return r.ln.Addr().String() }

func (r *tcpRelay) acceptLoop() {
	for {
		conn, err := r.ln.Accept()
		if err != nil {
			return
		}
		r.wg.Go(func() { r.serveConn(conn) })
	}
}

// closeAll closes all connections and waits for their goroutines.
func (r *tcpRelay) closeAll() {
	_ = r.ln.Close() // the only error: the listener is closed already
	r.mu.Lock()
	for c := range r.conns {
		_ = c.Close()
	}
	r.conns = nil
	r.mu.Unlock()
	r.wg.Wait()
}

// registerConn adds an open connection; false means that the relay is closed.
func (r *tcpRelay) registerConn(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conns == nil {
		return false
	}
	r.conns[c] = struct{}{}
	return true
}

func (r *tcpRelay) unregisterConn(c net.Conn) {
	_ = c.Close() // a connection may be closed already
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
}

func (r *tcpRelay) serveConn(client net.Conn) {
	defer r.unregisterConn(client)
	if !r.registerConn(client) {
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
	defer r.unregisterConn(server)
	if !r.registerConn(server) {
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
	end := func() { _, _ = client.Close(), server.Close() } // each close ends the other pump's read
	both.Go(func() { defer end(); _ = up(in, bufio.NewWriter(server)) })
	both.Go(func() {
		defer end()
		_ = down(bufio.NewReaderSize(server, 64<<10), bufio.NewWriterSize(client, 64<<10))
	})
	both.Wait()
}

// copyBytes is the pump that copies. The peers learn of an error by the
// connection's end.
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

// flushIdle flushes when no further bytes have arrived, so that no message is
// held back.
func flushIdle(in *bufio.Reader, out *bufio.Writer) error {
	if in.Buffered() > 0 {
		return nil
	}
	return out.Flush()
}

// answerTrap swallows as many answers as it was armed for.
type answerTrap struct {
	Armed  atomic.Int64
	Sprung atomic.Int64 // how many answers it swallowed
}

// loseNext reports whether this answer is one to swallow.
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

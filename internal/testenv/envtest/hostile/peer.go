// Package hostile plays what may listen where a Postgres or a Kafka is expected: other
// programs, and servers that mean harm.
package hostile

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// Peer is a server on a loopback port.
type Peer struct {
	listener net.Listener
	serve    func(net.Conn)
	accepted atomic.Int64
	wait     sync.WaitGroup

	mu   sync.Mutex // guards the fields below
	open map[net.Conn]struct{}
	done bool
}

// Start serves every connection with serve, which returns when the connection ends, until
// the test ends.
func Start(t testing.TB, serve func(net.Conn)) *Peer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Peer{listener: l, serve: serve, open: map[net.Conn]struct{}{}}
	p.wait.Go(p.acceptAll)
	t.Cleanup(p.close)
	return p
}

// Address is the peer's host:port.
func (p *Peer) Address() string { return p.listener.Addr().String() }

// Accepted returns how many connections the peer has accepted.
func (p *Peer) Accepted() int64 { return p.accepted.Load() }

func (p *Peer) close() {
	_ = p.listener.Close() // the only error: it is closed already
	p.mu.Lock()
	p.done = true
	for c := range p.open {
		_ = c.Close()
	}
	p.mu.Unlock()
	p.wait.Wait()
}

func (p *Peer) acceptAll() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		if p.done {
			_ = c.Close()
		} else {
			p.open[c] = struct{}{}
			p.accepted.Add(1)
			p.wait.Go(func() { p.serveOne(c) })
		}
		p.mu.Unlock()
	}
}

func (p *Peer) serveOne(c net.Conn) {
	p.serve(c)
	_ = c.Close() // the client may have closed it
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, c)
}

// Silence reads everything and answers nothing.
func Silence(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

// Answer returns what answers a client's first message with bytes and then is silent.
func Answer(bytes []byte) func(net.Conn) {
	return func(c net.Conn) {
		if readSome(c) {
			_, _ = c.Write(bytes) // the client may have gone
			Silence(c)
		}
	}
}

// Close returns what answers a client's first message with bytes and closes.
func Close(bytes []byte) func(net.Conn) {
	return func(c net.Conn) {
		if readSome(c) {
			_, _ = c.Write(bytes)
		}
	}
}

// Endless returns what answers a client's first message with bytes, and then with more for
// ever; more makes the source of them for a connection.
func Endless(begin []byte, more func() func() []byte) func(net.Conn) {
	return func(c net.Conn) {
		if !readSome(c) {
			return
		}
		next := more()
		for out := begin; ; out = next() {
			if _, err := c.Write(out); err != nil {
				return
			}
		}
	}
}

// Garbage returns n bytes of noise, the same in each run.
func Garbage(n int) []byte {
	noise := rand.NewChaCha8([32]byte{1})
	out := make([]byte, n)
	_, _ = noise.Read(out) // it returns no error
	return out
}

// Zeros returns 64 KiB of zeros at each call.
func Zeros() func() []byte {
	zeros := bytes.Repeat([]byte{0}, 64<<10)
	return func() []byte { return zeros }
}

// readSome reads a client's first bytes.
func readSome(c net.Conn) bool {
	_, err := c.Read(make([]byte, 8<<10))
	return err == nil
}

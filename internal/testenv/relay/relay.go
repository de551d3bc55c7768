// Package relay passes TCP connections on to a server and disturbs them as a
// bad network does: latency, little bandwidth, silence, resets, late closes.
package relay

import (
	"bufio"
	"fmt"
	"net"
	"sync"
	"time"

	"dinnerbell/internal/testenv"
)

// Route is where a connection leads.
type Route struct {
	Upstream string // host:port
	Head     []byte // bytes that were read from the client and go to the server first
	Exempt   bool   // the relay's faults do not apply to the connection
}

// Pump moves bytes from in to out until a read or write fails. It may change or
// swallow messages; with an error of its own it cuts the connection.
type Pump func(in *bufio.Reader, out *bufio.Writer) error

// Options are the settings of a relay.
type Options struct {
	// Route chooses the upstream address of a connection; it may read from the
	// client first.
	Route func(client *bufio.Reader) (Route, error)
	// Pumps returns the two pumps of a connection, from and to the client; nil
	// copies bytes.
	Pumps func() (up, down Pump)
}

// FixedRoute leads every connection to one address.
func FixedRoute(address string) func(*bufio.Reader) (Route, error) {
	return func(*bufio.Reader) (Route, error) { return Route{Upstream: address}, nil }
}

// Relay listens on a loopback port. Its methods may be called from any
// goroutine; Refuse, Listen and Close one at a time.
type Relay struct {
	options Options
	port    int
	wait    sync.WaitGroup

	mu       sync.Mutex // guards the fields below
	listener net.Listener
	links    map[*link]struct{} // the open connections
	faults   [2]Faults          // by Direction
	changed  chan struct{}      // closed and replaced when faults change
}

// StartRelay starts a relay on a free port.
func StartRelay(o Options) (*Relay, error) {
	port, err := testenv.FreePort()
	if err != nil {
		return nil, err
	}
	r := &Relay{options: o, port: port, links: map[*link]struct{}{}, changed: make(chan struct{})}
	return r, r.Listen()
}

// Port is the relay's port on 127.0.0.1. It stays the same over Refuse and
// Listen.
func (r *Relay) Port() int { return r.port }

// Address is the relay's host:port.
func (r *Relay) Address() string { return testenv.Loopback(r.port) }

// Listen accepts connections, after Refuse again. Another process rarely takes
// the port in between.
func (r *Relay) Listen() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.listener != nil {
		return nil
	}
	l, err := net.Listen("tcp", r.Address())
	if err != nil {
		return fmt.Errorf("listen for a relay: %w", err)
	}
	r.listener = l
	r.wait.Go(func() { r.acceptLoop(l) })
	return nil
}

// Refuse resets all connections, so that both peers read ECONNRESET, and
// refuses new ones until Listen. It returns when no connection is left.
func (r *Relay) Refuse() { r.closeAll(true) }

// Close closes all connections and stops listening.
func (r *Relay) Close() { r.closeAll(false) }

func (r *Relay) closeAll(reset bool) {
	r.mu.Lock()
	if r.listener != nil {
		_ = r.listener.Close() // the only error: it is closed already
		r.listener = nil
	}
	for l := range r.links {
		l.closeNow(reset)
	}
	r.mu.Unlock()
	r.wait.Wait()
}

// Disturb sets the faults of a direction for open and new connections. The
// zero Faults heal it: the connections that lost bytes close, all others go on.
func (r *Relay) Disturb(d Direction, f Faults) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults[d] = f
	close(r.changed)
	r.changed = make(chan struct{})
	if f.BlackHole {
		return
	}
	for l := range r.links {
		if l.lost[d] {
			l.closeNow(true)
		}
	}
}

// noteLost notes that a link lost something: after a black hole it is useless,
// and Disturb closes it. False means that the black hole has ended already.
func (r *Relay) noteLost(l *link, d Direction) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.faults[d].BlackHole {
		return false
	}
	l.lost[d] = true
	return true
}

// currentFaults returns the faults of a direction and a channel that is closed when
// they change.
func (r *Relay) currentFaults(d Direction) (Faults, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.faults[d], r.changed
}

func (r *Relay) acceptLoop(listener net.Listener) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		l := &link{relay: r, client: client, ended: make(chan struct{})}
		r.mu.Lock()
		open := r.listener == listener
		if open {
			r.links[l] = struct{}{}
			r.wait.Go(l.relayBytes)
		}
		r.mu.Unlock()
		if !open {
			_ = client.Close()
		}
	}
}

// removeLink forgets a connection that has ended.
func (r *Relay) removeLink(l *link) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.links, l)
}

// waitUnless waits for d and reports true, or false once stop is closed.
func waitUnless(stop <-chan struct{}, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-stop:
		return false
	}
}

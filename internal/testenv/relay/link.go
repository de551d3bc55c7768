package relay

import (
	"bufio"
	"io"
	"net"
	"sync"
)

// bufferSize is that of each pump's reader and writer; a protocol's pump can
// peek at messages up to this size.
const bufferSize = 64 << 10

// link is one connection through the relay: two pumps, and two lanes behind
// them.
type link struct {
	relay *Relay
	lost  [2]bool // by Direction: bytes or the end; the relay's mu guards it

	mu             sync.Mutex // guards the fields below
	client, server net.Conn   // server is nil until the upstream is reached
	closed         bool
	ended          chan struct{} // closed with closed
}

// closeNow closes both sides; with reset, the peers read ECONNRESET and what
// has not arrived is lost.
func (l *link) closeNow(reset bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	close(l.ended)
	for _, c := range []net.Conn{l.client, l.server} {
		if c == nil {
			continue
		}
		if tcp, ok := c.(*net.TCPConn); ok && reset {
			_ = tcp.SetLinger(0) // a connection that has ended needs no reset
		}
		_ = c.Close() // a peer may have closed it already
	}
}

// adoptServer makes the connection a part of the link; false means that the
// link is closed, and so is the connection.
func (l *link) adoptServer(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_ = c.Close()
		return false
	}
	l.server = c
	return true
}

// relayBytes passes on the bytes of the connection until it has ended.
func (l *link) relayBytes() {
	defer l.relay.removeLink(l)
	defer l.closeNow(false)
	in := bufio.NewReaderSize(l.client, bufferSize)
	route, err := l.relay.options.Route(in)
	if err != nil {
		return
	}
	server, err := net.Dial("tcp", route.Upstream)
	if err != nil || !l.adoptServer(server) {
		return
	}
	up, down := Pump(CopyBytes), Pump(CopyBytes)
	if l.relay.options.Pumps != nil {
		up, down = l.relay.options.Pumps()
	}
	toServer := &lane{link: l, direction: FromClient, peer: server, queue: make(chan delivered, queueLength), exempt: route.Exempt}
	toClient := &lane{link: l, direction: FromServer, peer: l.client, queue: make(chan delivered, queueLength), exempt: route.Exempt}
	if len(route.Head) > 0 {
		if _, err := toServer.Write(route.Head); err != nil {
			return
		}
	}
	var all sync.WaitGroup
	all.Go(func() { toServer.run(up, in) })
	all.Go(func() { toClient.run(down, bufio.NewReaderSize(server, bufferSize)) })
	all.Go(toServer.deliverAll)
	all.Go(toClient.deliverAll)
	all.Wait()
}

// run pumps until the source or the link ends. The lane's goroutine then
// delivers the rest and passes the end on.
func (a *lane) run(pump Pump, in *bufio.Reader) {
	defer close(a.queue)
	out := bufio.NewWriterSize(a, bufferSize)
	_ = pump(in, out) // the peers learn of an error by the connection's end
	_ = out.Flush()   // whole messages that a pump had not flushed
}

// CopyBytes is the pump that copies.
func CopyBytes(in *bufio.Reader, out *bufio.Writer) error {
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

// FlushIdle flushes when no further bytes have arrived, so that a pump holds no
// message back.
func FlushIdle(in *bufio.Reader, out *bufio.Writer) error {
	if in.Buffered() > 0 {
		return nil
	}
	return out.Flush()
}

package kafkaconn

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"sync"

	"dinnerbell/cmd/dinnerbell/internal/config"

	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// maxUnauthenticated is the size limit, in bytes, of an answer before the broker
	// has accepted us: the client allocates the size that an answer claims, 100 MiB at
	// most. Honest answers have a few hundred bytes.
	maxUnauthenticated = 256 << 10
	// maxAnswer is the size limit of every later answer but those with records. Honest
	// ones have at most some fifty bytes for each partition. The client allocates, for
	// each byte, as many as a hundred: it takes the length of a list for true as long
	// as the answer has a byte for each element.
	maxAnswer = 1 << 20
	// clientLimit is the size from which the client itself refuses an answer, with an
	// error that guesses its kind: kgo.BrokerMaxReadBytes' default.
	clientLimit = 100 << 20
)

type dialFunc = func(ctx context.Context, network, host string) (net.Conn, error)

// unauthenticatedAnswers returns how many answers a connection begins with before
// credentials are accepted: to ApiVersions, and with SASL to the handshake and to
// each message of the mechanism.
func unauthenticatedAnswers(cfg config.SASL) int {
	switch {
	case cfg.Mechanism == "":
		return 1
	case strings.HasPrefix(strings.ToUpper(cfg.Mechanism), "SCRAM"):
		return 4 // two messages
	}
	return 3
}

// boundAnswers bounds the answers on each connection. Until the broker has accepted us,
// the end of the context ends the connection: the client waits ten seconds for an answer
// that does not come, whatever its context.
func boundAnswers(dial dialFunc, unauthenticated int) dialFunc {
	return func(ctx context.Context, network, host string) (net.Conn, error) {
		conn, err := dial(ctx, network, host)
		if err != nil {
			return nil, err
		}
		c := &boundedConn{Conn: conn, unauthenticated: unauthenticated}
		c.accept = context.AfterFunc(ctx, func() { _ = conn.Close() }) // the client reads the error
		return c, nil
	}
}

// boundedConn checks the size of each answer, with which the answer begins, in four
// bytes. The broker answers the requests of a connection in their order, each one: the
// clients wait for acknowledgements. One goroutine reads at a time, and one writes.
type boundedConn struct {
	net.Conn

	unauthenticated int         // answers that come before we are accepted, still to be looked at
	accept          func() bool // lets the connection outlive the context of its dial
	head            [4]byte     // of the answer under way
	got             int         // bytes in head
	rest            int         // bytes of the answer that are still to come
	passed          bool        // nothing is looked at any more

	mu    sync.Mutex // guards asked
	asked []bool     // for each request without an answer: whether the answer holds records
}

// Write notes what the request asks for. The client writes each request at once: its
// size in four bytes, then its kind in two.
// https://kafka.apache.org/protocol#protocol_messages
func (c *boundedConn) Write(p []byte) (int, error) {
	fetch := len(p) >= 6 && int16(binary.BigEndian.Uint16(p[4:])) == int16(kmsg.Fetch)
	c.mu.Lock()
	c.asked = append(c.asked, fetch)
	c.mu.Unlock()
	return c.Conn.Write(p)
}

// nextIsFetch reports whether the next answer holds records, and forgets its request.
func (c *boundedConn) nextIsFetch() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.asked) == 0 {
		return false
	}
	fetch := c.asked[0]
	c.asked = c.asked[1:]
	return fetch
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	c.accept()
	return c.Conn.Close()
}

// Read fails at an answer that is too large.
func (c *boundedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if tooLarge := c.checkSizes(p[:n]); tooLarge != nil {
		return 0, tooLarge
	}
	return n, err
}

func (c *boundedConn) checkSizes(p []byte) error {
	for len(p) > 0 && !c.passed {
		if c.rest > 0 {
			n := min(c.rest, len(p))
			c.rest, p = c.rest-n, p[n:]
			continue
		}
		n := copy(c.head[c.got:], p)
		c.got, p = c.got+n, p[n:]
		if c.got < len(c.head) {
			return nil
		}
		c.got = 0
		if err := c.checkSize(int(int32(binary.BigEndian.Uint32(c.head[:])))); err != nil {
			return err
		}
	}
	return nil
}

// checkSize looks at the size of the answer that begins.
func (c *boundedConn) checkSize(size int) error {
	if size < 0 || size > clientLimit {
		c.passed = true // the client reports the error
		return nil
	}
	c.rest = size
	fetch := c.nextIsFetch()
	switch {
	case c.unauthenticated > 0 && size > maxUnauthenticated:
		return fmt.Errorf("%s claims an answer of %d bytes before it has accepted us; is it a Kafka broker?", c.RemoteAddr(), size)
	case c.unauthenticated > 0:
		if c.unauthenticated--; c.unauthenticated == 0 {
			c.accept()
		}
	case size > maxAnswer && !fetch:
		return fmt.Errorf("%s claims an answer of %d bytes to a request for no records; is it a Kafka broker?", c.RemoteAddr(), size)
	}
	return nil
}

package kafkaconn

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"strings"

	"dinnerbell/cmd/dinnerbell/internal/config"
)

// maxUnauthenticated is the size limit, in bytes, of an answer before the broker
// has accepted us: the client allocates the size that an answer claims, 100 MiB at
// most. Honest answers have a few hundred bytes.
const maxUnauthenticated = 256 << 10

// clientLimit is the size from which the client itself refuses an answer, with an
// error that guesses its kind: kgo.BrokerMaxReadBytes' default.
const clientLimit = 100 << 20

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

// boundAnswers bounds the first answers on each connection.
func boundAnswers(dial dialFunc, answers int) dialFunc {
	return func(ctx context.Context, network, host string) (net.Conn, error) {
		conn, err := dial(ctx, network, host)
		if err != nil {
			return nil, err
		}
		return &boundedConn{Conn: conn, answers: answers}, nil
	}
}

// boundedConn checks the sizes of the first answers. Each answer begins with its
// size in four bytes. One goroutine reads at a time.
type boundedConn struct {
	net.Conn

	answers int     // still to be looked at
	head    [4]byte // of the answer under way
	got     int     // bytes in head
	rest    int     // bytes of the answer that are still to come
}

// Read fails at an answer that is too large.
func (c *boundedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.answers > 0 {
		if tooLarge := c.checkSizes(p[:n]); tooLarge != nil {
			return 0, tooLarge
		}
	}
	return n, err
}

func (c *boundedConn) checkSizes(p []byte) error {
	for len(p) > 0 && c.answers > 0 {
		if c.rest > 0 {
			n := min(c.rest, len(p))
			c.rest, p = c.rest-n, p[n:]
			if c.rest == 0 {
				c.answers, c.got = c.answers-1, 0
			}
			continue
		}
		n := copy(c.head[c.got:], p)
		c.got, p = c.got+n, p[n:]
		if c.got < len(c.head) {
			return nil
		}
		size := int(int32(binary.BigEndian.Uint32(c.head[:])))
		if size > maxUnauthenticated && size <= clientLimit {
			return fmt.Errorf("%s claims an answer of %d bytes before it has accepted us; is it a Kafka broker?", c.RemoteAddr(), size)
		}
		if c.rest = size; size <= 0 || size > clientLimit {
			c.answers = 0 // the client reports the error
		}
	}
	return nil
}

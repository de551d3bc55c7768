package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// maxMessage bounds, in bytes, a message of a server that has let us in. The largest
	// ones are rows of the daemon's outbox: a step of a few MB that ends with one message
	// of Kafka, which has at most 64 MiB.
	maxMessage = 128 << 20
	// maxServerMessage is the largest message that a server can make, of its
	// MaxAllocSize.
	maxServerMessage = 0x3fffffff - 1
)

// Connect opens an ordinary connection.
func Connect(ctx context.Context, o *pgx.ConnConfig) (*pgx.Conn, error) {
	bounded := o.Copy()
	bounded.MaxProtocolMessageBodyLen = maxMessage
	boundStartup(&bounded.Config)
	conn, err := pgx.ConnectConfig(ctx, bounded)
	if err != nil {
		return nil, explainConnect(&o.Config, err)
	}
	return conn, nil
}

// ConnectWalsender opens a connection without pgx's type map, for replication.
func ConnectWalsender(ctx context.Context, o *pgconn.Config) (*pgconn.PgConn, error) {
	bounded := o.Copy()
	bounded.MaxProtocolMessageBodyLen = maxMessage
	boundStartup(bounded)
	conn, err := pgconn.ConnectConfig(ctx, bounded)
	if err != nil {
		return nil, explainConnect(o, err)
	}
	return conn, nil
}

// ExpectLargeRows lets the server send rows of other people's tables from now on, which
// may be as large as a server can make one. A row costs its size in memory.
func ExpectLargeRows(conn *pgconn.PgConn) { conn.Frontend().SetMaxBodyLen(maxServerMessage) }

// ConnectError is the reason why no server accepted the connection: one line, each
// address once.
type ConnectError struct {
	text string
	err  error
}

// Error gives user, database, and for each address the cause.
func (e *ConnectError) Error() string { return e.text }

// Unwrap gives the driver's error, whose text may be long and doubled.
func (e *ConnectError) Unwrap() error { return e.err }

// refusedTLS is the driver's text for a server without TLS. With sslmode=prefer it
// is no reason: the driver goes on without TLS.
const refusedTLS = "server refused TLS connection"

func explainConnect(o *pgconn.Config, err error) error {
	var causes []connectCause
	for _, e := range connectAttempts(err) {
		c := explainAttempt(e)
		i := slices.IndexFunc(causes, func(o connectCause) bool { return o.at == c.at })
		switch {
		case i < 0:
			causes = append(causes, c)
		case strings.Contains(causes[i].why, refusedTLS):
			causes[i] = c // the attempt without TLS
		case causes[i].why != c.why && !strings.Contains(c.why, refusedTLS):
			causes = append(causes, c)
		}
	}
	causes = slices.Compact(causes)
	var b strings.Builder
	fmt.Fprintf(&b, "user %s, database %s", o.User, o.Database)
	for i, c := range causes {
		b.WriteString([]string{": ", "; "}[min(i, 1)])
		if c.at != "" {
			b.WriteString(c.at + ": ")
		}
		b.WriteString(c.why)
	}
	return &ConnectError{text: b.String(), err: err}
}

// connectAttempts takes the driver's error apart: one for each address and kind of
// connection that was tried.
func connectAttempts(err error) []error {
	for e := err; e != nil; e = errors.Unwrap(e) {
		if many, ok := e.(interface{ Unwrap() []error }); ok {
			return many.Unwrap()
		}
	}
	if c, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return []error{c.Unwrap()}
	}
	return []error{err}
}

// connectCause is why one address was of no use.
type connectCause struct{ at, why string }

// dialed matches the prefix of each attempt's error: address, host as configured,
// and the step where the step adds nothing to the cause.
var dialed = regexp.MustCompile(`(?s)^(\S+) \((.*?)\): (?:(?:dial error|tls error|server error|failed to write startup message|failed to receive message|ValidateConnect failed): )?(.*)$`)

func explainAttempt(err error) connectCause {
	var c connectCause
	c.why = strings.TrimPrefix(err.Error(), "AfterConnect error: ")
	if m := dialed.FindStringSubmatch(c.why); m != nil {
		c.at, c.why = m[1], m[3]
		if host, _, splitErr := net.SplitHostPort(m[1]); splitErr == nil && host != m[2] && !strings.HasPrefix(m[2], "/") {
			c.at = m[2] + " (" + m[1] + ")"
		}
		// The layers of package net repeat the address.
		if op, ok := errors.AsType[*net.OpError](err); ok {
			c.why = op.Err.Error()
		}
	}
	if closed := findClosed(err); closed != nil {
		c.why = closed.Error()
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		c.at, c.why = dns.Name, dns.Err
	}
	c.why = strings.TrimPrefix(c.why, "connect: ")
	return c
}

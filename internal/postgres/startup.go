package postgres

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

const (
	// maxUnauthenticated bounds, in bytes, a message of a server that has not let us
	// in yet: the driver allocates what a message claims to hold before it reads. The
	// largest honest ones are tokens of Kerberos, of at most 64 KiB.
	maxUnauthenticated = 256 << 10
	// maxIterations is the most work that a server may ask for before it has proved
	// that it knows the password: a third of a second, in which neither a context nor
	// a signal ends the driver. Postgres stores 4,096 iterations by default; the
	// driver itself would do ten million.
	maxIterations = 1_000_000
	// maxStartup bounds, in bytes, all that a server sends until it has let us in.
	// The driver keeps every parameter that a server reports, and reads notices for
	// as long as they come. An honest server sends a few KB, and the tokens of
	// Kerberos.
	maxStartup = 1 << 20
)

// boundStartup makes connections of o check what the server sends until it has let
// us in.
func boundStartup(o *pgconn.Config) {
	build := o.BuildFrontend
	o.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		return build(&startupReader{Reader: r, left: maxStartup}, w)
	}
}

// notPostgresError is about a server that answered what no Postgres answers.
type notPostgresError struct{ text string }

// Error says what the server did.
func (e *notPostgresError) Error() string { return e.text }

// closedError is about a server that ended the connection before it let us in. Package
// errors finds the error of the network in it.
type closedError struct {
	spoke bool // messages, or a part of one, came before
	err   error
}

// Error says how far the login had come.
func (e *closedError) Error() string {
	if e.spoke {
		return closedKind + ", in the middle of its answer"
	}
	return closedKind + ", without an answer"
}

// Unwrap returns the error of the network.
func (e *closedError) Unwrap() error { return e.err }

// closedKind says in a few words what a closedError is about.
const closedKind = "the server closed the connection during the login"

// findClosed returns the closedError in the error of an attempt, whose connection may have
// ended before a message was read; nil: the server did not close it.
func findClosed(err error) *closedError {
	if closed, ok := errors.AsType[*closedError](err); ok {
		return closed
	}
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, end) {
			return &closedError{err: err}
		}
	}
	return nil
}

// startupReader reads a server's messages: a byte for the type, four for the length,
// which includes these four, and the body. It fails where the messages before
// ReadyForQuery are none of Postgres, too large or too many, or ask for too much work.
// https://www.postgresql.org/docs/current/protocol-message-formats.html
type startupReader struct {
	io.Reader

	letIn bool
	left  int    // of maxStartup
	head  []byte // type and length of the message under way, and the body of one about authentication
	rest  int    // bytes of the body that are still to come; valid if head is complete
}

const (
	// headLength is the length of a message's head.
	headLength = 5
	// startupTypes are the types of messages that a server sends until it has let us
	// in: authentication, parameters, the key for cancellations, notices, an error, the
	// protocol's version, and ready for a query.
	startupTypes = "RSKNEvZ"
)

// Read implements io.Reader.
func (s *startupReader) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if !s.letIn {
		if tooMuch := s.checkMessage(p[:n]); tooMuch != nil {
			return 0, tooMuch
		}
	}
	if err != nil && !s.letIn && n == 0 {
		if closed := findClosed(err); closed != nil {
			if errors.Is(err, io.EOF) {
				closed.err = io.ErrUnexpectedEOF // the driver's word for it
			}
			closed.spoke = s.left < maxStartup
			return 0, closed
		}
	}
	return n, err
}

// checkMessage follows the messages in the bytes that were read.
func (s *startupReader) checkMessage(p []byte) error {
	if s.left -= len(p); s.left < 0 {
		return &notPostgresError{fmt.Sprintf("the server has sent more than %d KiB and has not let us in", maxStartup>>10)}
	}
	for len(p) > 0 && !s.letIn {
		if len(s.head) < headLength {
			n := min(headLength-len(s.head), len(p))
			s.head, p = append(s.head, p[:n]...), p[n:]
			if len(s.head) < headLength {
				return nil
			}
			if s.rest = int(binary.BigEndian.Uint32(s.head[1:])) - 4; s.rest < 0 || !bytes.ContainsAny(s.head[:1], startupTypes) {
				return &notPostgresError{fmt.Sprintf("the server's answer is none of Postgres: it has %q where a message begins", s.head)}
			}
			if s.rest > maxUnauthenticated {
				return &notPostgresError{fmt.Sprintf("the server claims a message of %d bytes before it has let us in", s.rest)}
			}
		}
		n := min(s.rest, len(p))
		if s.head[0] == 'R' { // authentication
			s.head = append(s.head, p[:n]...)
		}
		s.rest, p = s.rest-n, p[n:]
		if s.rest > 0 {
			return nil
		}
		if err := checkIterations(s.head); err != nil {
			return err
		}
		s.letIn = s.head[0] == 'Z' // ready for a query
		s.head = s.head[:0]
	}
	return nil
}

// checkIterations refuses a challenge of SCRAM that asks for more than maxIterations.
func checkIterations(message []byte) error {
	const challenge = headLength + 4 // where it begins, behind the type of authentication
	if message[0] != 'R' || len(message) < challenge || binary.BigEndian.Uint32(message[headLength:]) != pgproto3.AuthTypeSASLContinue {
		return nil
	}
	for field := range bytes.SplitSeq(message[challenge:], []byte(",")) {
		text, ok := bytes.CutPrefix(field, []byte("i="))
		if !ok {
			continue
		}
		if n, err := strconv.Atoi(string(text)); err != nil || n > maxIterations {
			return &notPostgresError{fmt.Sprintf("the server asks for %.20q iterations of SCRAM, more than the %d that are done for it", text, maxIterations)}
		}
	}
	return nil
}

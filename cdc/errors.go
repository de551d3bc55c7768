package cdc

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/halt"
	"dinnerbell/internal/postgres"
)

var (
	// ErrStopped says that the mirror's Run has returned: nobody follows the source.
	ErrStopped = errors.New("the mirror is not running")

	// errMoved: the session that a target was read in is over. LSNs of two
	// servers do not compare, so the target is read again.
	errMoved = errors.New("replication session ended")
	// errNoWalsender: a replication command was not understood.
	errNoWalsender = errors.New("not a replication connection")
	// errSilent: nothing came although an answer was asked for.
	errSilent = errors.New("no answer from the server")
)

// haltError is a halt of the source, with what it means for the slot and for the
// next session.
type haltError struct {
	halt *halt.Error
	// distrust: changes may have passed that were never published, so that the
	// slot is worthless even after mending.
	distrust bool
	// heals: a migration in several statements may leave it so for a moment.
	heals bool
}

// Error returns what is wrong and how to go on. Nothing is halted yet: the mirror
// may wait for the end of a migration first.
func (e *haltError) Error() string { return e.halt.Text() }

// Unwrap returns the halt, which Run returns in the end.
func (e *haltError) Unwrap() error { return e.halt }

// newHalt makes a haltError; the hint comes first because the rest is a format.
func newHalt(hint, format string, args ...any) *haltError {
	return &haltError{halt: &halt.Error{Part: halt.Source, What: fmt.Sprintf(format, args...), Hint: hint}}
}

// walsenderError is what the walsender failed with while it decoded and sent.
type walsenderError struct{ cause error }

// Error names the direction, as other failures of the stream do.
func (e *walsenderError) Error() string { return "receive WAL: " + e.cause.Error() }

// Unwrap gives Postgres' error.
func (e *walsenderError) Unwrap() error { return e.cause }

// slotHeldError says that somebody else uses our slot. It passes by itself.
type slotHeldError struct {
	slot    string
	pid     int32
	app     string
	role    string
	address string
}

// Error names the holder by what an operator can look for: the PID and the
// name that it gave itself.
func (e *slotHeldError) Error() string {
	return fmt.Sprintf("slot %s is active for PID %d (application_name %q, role %s, client address %s)", e.slot, e.pid, e.app, e.role, e.address)
}

// SQLSTATEs that are told apart.
// https://www.postgresql.org/docs/current/errcodes-appendix.html
const (
	codeInsufficientPrivilege = "42501"
	codeDuplicateObject       = "42710"
	codeProtocolViolation     = "08P01"
	codeObjectInUse           = "55006"
	codeUndefinedObject       = "42704" // settings too
	codeUnknownStatement      = "26000" // prepared ones
	codeDuplicateStatement    = "42P05" // likewise
	codeSyntaxError           = "42601"
	codeUntranslatable        = "22P05" // a character has no counterpart in client_encoding
	codeBadCharacter          = "22021" // not one of the encoding's
)

// isUnreachable tells whether a session ended because the server cannot be reached
// or ended the connection, and not by a short disk or a server without a free slot.
func isUnreachable(err error) bool {
	if state := sqlState(err); state != "" {
		return strings.HasPrefix(state, "08") || strings.HasPrefix(state, "57P")
	}
	_, refused := errors.AsType[*postgres.ConnectError](err)
	_, network := errors.AsType[*net.OpError](err)
	return refused || network || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errSilent)
}

// sqlState is the SQLSTATE of err, "" if Postgres did not send it.
func sqlState(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code
	}
	return ""
}

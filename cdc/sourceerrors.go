package cdc

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/halt"
)

// errNoWalsender: a replication command was not understood.
var errNoWalsender = errors.New("not a replication connection")

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
	codeConfigurationLimit    = "53400" // no slot or walsender is free
	codeObjectInUse           = "55006"
	codeUndefinedObject       = "42704" // settings too
	codeUnknownStatement      = "26000" // prepared ones
	codeDuplicateStatement    = "42P05" // likewise
	codeSyntaxError           = "42601"
	codeUntranslatable        = "22P05" // a character has no counterpart in client_encoding
	codeBadCharacter          = "22021" // not one of the encoding's
)

// sqlState is the SQLSTATE of err, "" if Postgres did not send it.
func sqlState(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code
	}
	return ""
}

package source

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"dinnerbell/internal/halt"
)

// errNoWalsender reports that a replication command was not understood.
var errNoWalsender = errors.New("not a replication connection")

// HaltError is a halt of the source, with its consequence for the slot and for the
// next session.
type HaltError struct {
	Err *halt.Error
	// Distrust: changes may have passed that were never published, so that the
	// slot is worthless even after mending.
	Distrust bool
	// Heals: a migration in several statements may pass through this state.
	Heals bool
}

// Error returns what is wrong and how to go on. Nothing is halted yet: the mirror
// may wait for the end of a migration first.
func (e *HaltError) Error() string { return e.Err.Text() }

// Unwrap returns the halt, which Run returns in the end.
func (e *HaltError) Unwrap() error { return e.Err }

// NewHalt makes a HaltError; the hint comes first because the rest is a format.
func NewHalt(hint, format string, args ...any) *HaltError {
	return &HaltError{Err: &halt.Error{Part: halt.Source, What: fmt.Sprintf(format, args...), Hint: hint}}
}

// SlotHeldError reports that somebody else uses the mirror's slot. It passes by
// itself.
type SlotHeldError struct {
	Slot    string
	PID     int32
	App     string
	Role    string
	Address string
}

// Error names the holder so that an operator can find it: by its PID and the name
// that it gave itself.
func (e *SlotHeldError) Error() string {
	return fmt.Sprintf("slot %s is active for PID %d (application_name %q, role %s, client address %s)", e.Slot, e.PID, e.App, e.Role, e.Address)
}

// SQLSTATEs that need a reaction of their own.
// https://www.postgresql.org/docs/current/errcodes-appendix.html
const (
	CodeInsufficientPrivilege = "42501"
	CodeDuplicateObject       = "42710"
	codeProtocolViolation     = "08P01"
	CodeConfigurationLimit    = "53400" // no slot or walsender is free
	CodeObjectInUse           = "55006"
	CodeUndefinedObject       = "42704" // also of settings
	codeUnknownStatement      = "26000" // of prepared statements
	codeDuplicateStatement    = "42P05" // of prepared statements
	codeSyntaxError           = "42601"
	codeUntranslatable        = "22P05" // a character has no counterpart in client_encoding
	codeBadCharacter          = "22021" // a character that the encoding does not have
)

// SQLState returns the SQLSTATE of err; "" if Postgres did not send err.
func SQLState(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code
	}
	return ""
}

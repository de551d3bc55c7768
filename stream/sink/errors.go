package sink

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Sentinels of the package.
var (
	// ErrTakenOver ends a session: another owner has moved the lane's epoch or seq.
	// It is safe at any time; the lane belongs to the other owner.
	ErrTakenOver = errors.New("lane was taken over by another owner")

	// ErrStaleRow reports that another lane has changed a campaign's row since the
	// step was built. The step is rolled back, judged again and repeated.
	ErrStaleRow = errors.New("step is stale")

	// ErrRowRefused reports that the feedback table has refused a row of a step. The
	// client has the campaign already and the delivered cache has missed it, or a
	// constraint, a trigger or the encoding is against the row. The step is repeated
	// with ON CONFLICT.
	ErrRowRefused = errors.New("the feedback table refuses a row")

	// ErrRowsDropped reports that the server has counted fewer rows of a COPY than were
	// sent, without an error. The lane halts: nobody knows whose row is missing.
	ErrRowsDropped = errors.New("the feedback table drops rows in silence")

	// ErrTableAltered ends a session: the feedback table is not the one that the
	// takeover has read. Nothing was committed; the next session reads it again.
	ErrTableAltered = errors.New("the feedback table was altered, or has lost its unique index")
	// ErrCampaignEnded reports that a campaign of the step has ended before the commit.
	// The step is rolled back and decided again without that campaign.
	ErrCampaignEnded = errors.New("a campaign has ended meanwhile")
)

// https://www.postgresql.org/docs/current/errcodes-appendix.html
const (
	divisionByZero       = "22012"
	UniqueViolation      = "23505"
	deadlockDetected     = "40P01"
	serializationFailure = "40001"
	LockNotAvailable     = "55P03"
)

// RefusesRow reports whether an error of a statement that writes feedback rows is
// about the rows: data exceptions, integrity violations, a value too long for an
// index, and errors that the user's own functions raise, under PL/pgSQL's codes or
// under codes of their own. Every other error is about the server, the table or the
// daemon, and no client is left out for it; so are an exhausted sequence and bytes
// that the column's type cannot read.
// https://www.postgresql.org/docs/current/errcodes-appendix.html
func RefusesRow(err *pgconn.PgError) bool {
	switch err.Code {
	case "54000": // program_limit_exceeded
		return true
	case "2200H", "22P03", "22P04": // sequence_generator_limit_exceeded, invalid_binary_representation, bad_copy_file_format
		return false
	}
	class := err.Code[:min(2, len(err.Code))]
	return class == "22" || class == "23" || class == "P0" || !slices.Contains(serverClasses, class)
}

// serverClasses lists the classes of SQLSTATE that Postgres itself uses. Only RAISE
// gives another class.
var serverClasses = strings.Fields(`00 01 02 03 08 09 0A 0B 0F 0L 0P 0Z 10 20 21 22 23 24 25 26 27 28 2B 2D 2F
  34 38 39 3B 3D 3F 40 42 44 53 54 55 57 58 72 F0 HV P0 XX`)

// WithFunction adds the user's function in which the error occurred.
func WithFunction(err *pgconn.PgError) error {
	for line := range strings.Lines(err.Where) {
		if strings.Contains(line, " function ") {
			return fmt.Errorf("%w, in %s (the user's functions run with the search_path of the feedback table's schema and public)", err, strings.TrimSpace(line))
		}
	}
	return err
}

// IsLockConflict reports whether the server has ended a transaction in favour of another
// one. The transaction has changed nothing and may pass when it is repeated.
func IsLockConflict(err error) bool {
	refused, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (refused.Code == deadlockDetected || refused.Code == serializationFailure)
}

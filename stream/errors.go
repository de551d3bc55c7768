package stream

import (
	"errors"
	"fmt"
)

// Sentinels of the package.
var (
	// ErrOutboxCorrupt marks an outbox row whose bytes are not what was written.
	ErrOutboxCorrupt = errors.New("outbox payload is damaged")

	// errTakenOver ends a session: another owner has moved the lane's epoch or
	// seq. Safe at any time; the lane belongs to whoever took it.
	errTakenOver = errors.New("lane was taken over by another owner")

	// errStale ends a session whose step no longer fits what Postgres holds: a
	// campaign was edited through another lane. Nothing was committed; the next
	// session reads the truth.
	errStale = errors.New("step is stale")

	// errNotified: the unique index refused a row: somebody has the campaign and
	// nobody here knew. The step is done again, by ON CONFLICT.
	errNotified = errors.New("a client was notified before")
	// errEnded: a campaign's end came before the commit. The step is rolled back and
	// decided anew without it.
	errEnded = errors.New("a campaign has ended meanwhile")
)

// HaltError is a guarantee that cannot be kept without an operator. The lane stops
// until the daemon is started again.
type HaltError struct {
	Lane int32  `json:"lane"` // -1: all of them
	What string `json:"what"` // what happened, to what, and what is at stake
	Hint string `json:"hint"` // the command that goes on
}

// Error says what happened and how to go on.
func (h *HaltError) Error() string {
	if h.Lane < 0 {
		return fmt.Sprintf("halted: %s; to go on: %s", h.What, h.Hint)
	}
	return fmt.Sprintf("lane %d halted: %s; to go on: %s", h.Lane, h.What, h.Hint)
}

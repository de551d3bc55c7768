package sink

import "errors"

// Sentinels of the package.
var (
	// ErrTakenOver ends a session: another owner has moved the lane's epoch or
	// seq. Safe at any time; the lane belongs to whoever took it.
	ErrTakenOver = errors.New("lane was taken over by another owner")

	// ErrStaleRow: a campaign's row is not as the step expected, another lane has
	// changed it. The step is rolled back, judged anew and done again.
	ErrStaleRow = errors.New("step is stale")

	// ErrRowRefused: the feedback table did not take a step's rows. Somebody has the
	// campaign and nobody here knew, or a constraint, a trigger or the encoding is
	// against a row. The step is done again, by ON CONFLICT.
	ErrRowRefused = errors.New("the feedback table refuses a row")

	// ErrRowsDropped: the server counts fewer rows of a COPY than were sent, without an
	// error. It halts: nobody knows whose row is missing.
	ErrRowsDropped = errors.New("the feedback table drops rows in silence")

	// ErrTableAltered ends a session whose step met another feedback table than the
	// takeover had read. Nothing was committed; the next session reads it again.
	ErrTableAltered = errors.New("the feedback table was altered, or has lost its unique index")
	// ErrCampaignEnded: a campaign's end came before the commit. The step is rolled back and
	// decided anew without it.
	ErrCampaignEnded = errors.New("a campaign has ended meanwhile")
)

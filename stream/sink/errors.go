package sink

import "errors"

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

package state

import "errors"

// The errors that callers tell apart. All others are failures of the disk or
// of the store below and are only reported.
var (
	// ErrNewerFormat: a newer dinnerbell wrote this directory. It is left as it is.
	ErrNewerFormat = errors.New("state was written by a newer version")
	// ErrForeign: the directory holds somebody else's Pebble store. It is left as it is.
	ErrForeign = errors.New("not a dinnerbell state directory")
	// ErrCorrupt: stored data failed a check. The directory has been marked, so
	// that the next Open sets the store aside; see [Store.Damaged].
	ErrCorrupt = errors.New("local state is corrupt")
	// ErrClosed: the store, scan or loader was closed before the call.
	ErrClosed = errors.New("state is closed")

	// ErrNoCheckpoint: there is no checkpoint of that id.
	ErrNoCheckpoint = errors.New("no checkpoint")
	// ErrBadCheckpoint: a checkpoint is damaged. Take another one.
	ErrBadCheckpoint = errors.New("checkpoint is damaged")
	// ErrNotWhole: there is no whole-transaction state to make a checkpoint of:
	// no load was finished yet, or a large transaction is being applied in parts.
	ErrNotWhole = errors.New("no whole transaction to make a checkpoint of")

	// ErrDiskFull: writing would take from the disk space that is kept in
	// reserve. Nothing was written; the same call can be made again later.
	ErrDiskFull = errors.New("disk is almost full")

	// ErrMissingRow: an update keeps an unchanged TOAST value of a row that is
	// not stored here, so the mirror has a hole: rebuild it.
	ErrMissingRow = errors.New("row is not in the local state")
	// ErrTorn: a transaction that was cut by a crash comes again and takes
	// over values from a row whose key it changes; what the row was before the
	// transaction is no longer known: rebuild.
	ErrTorn = errors.New("cannot repeat a transaction that was cut by a crash")
	// ErrBehind: the parts of one transaction end at or before the position
	// that is already applied; whole transactions must be skipped by the caller.
	ErrBehind = errors.New("transaction ends before the applied position")

	// ErrDuplicateRow: two rows of one load have the same row id, so the id
	// column is no key.
	ErrDuplicateRow = errors.New("row id is not unique")
	// ErrNotThere: a generation and the rows that are served do not stand at the
	// same whole-transaction position. Bring both there and try again.
	ErrNotThere = errors.New("generations stand at different positions")
	// ErrStale: the rows that were served have been replaced since.
	ErrStale = errors.New("the subscriptions were replaced meanwhile")
	// ErrLoading: another load is under way; there can be one.
	ErrLoading = errors.New("a load is already under way")
)

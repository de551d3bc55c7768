package state

import "errors"

// The errors that callers distinguish. All others are failures of the disk or of
// Pebble, which callers only report.
var (
	// ErrNewerFormat: a newer dinnerbell wrote this directory. Nothing in it was changed.
	ErrNewerFormat = errors.New("state was written by a newer version")
	// ErrForeign: the directory holds the Pebble store of another program. Nothing in it
	// was changed.
	ErrForeign = errors.New("not a dinnerbell state directory")
	// ErrCorrupt: stored data failed a check. The directory was marked, so that the
	// next Open sets the store aside; see [Store.Damaged].
	ErrCorrupt = errors.New("local state is corrupt")
	// ErrClosed: the store, scan or loader was closed before the call.
	ErrClosed = errors.New("state is closed")

	// ErrNoCheckpoint: there is no checkpoint with the id.
	ErrNoCheckpoint = errors.New("no checkpoint")
	// ErrBadCheckpoint: the checkpoint is damaged. Use another one.
	ErrBadCheckpoint = errors.New("checkpoint is damaged")
	// ErrNotWhole: there is no whole-transaction state for a checkpoint: no load was
	// finished yet, or a large transaction is being applied in parts.
	ErrNotWhole = errors.New("no whole transaction to make a checkpoint of")

	// ErrDiskFull: the write would take from the reserve of disk space. Nothing was
	// written; the caller can try again later.
	ErrDiskFull = errors.New("disk is almost full")

	// ErrMissingRow: an update keeps an unchanged TOAST value of a row that is
	// not stored here, so the mirror has a hole: rebuild it.
	ErrMissingRow = errors.New("row is not in the local state")
	// ErrTorn: a transaction that was torn by a crash comes again, and keeps values of
	// a row whose key it changes. The row before the transaction is lost: rebuild.
	ErrTorn = errors.New("cannot repeat a transaction that was cut by a crash")
	// ErrBehind: a transaction in parts ends at or before the applied position. The
	// caller must skip transactions that were applied before.
	ErrBehind = errors.New("transaction ends before the applied position")

	// ErrDuplicateRow: two rows of one load have the same row id, so the id column is
	// not a key.
	ErrDuplicateRow = errors.New("row id is not unique")
	// ErrNotThere: a generation and the rows that are served do not stand at the
	// same whole-transaction position. Bring both there and try again.
	ErrNotThere = errors.New("generations stand at different positions")
	// ErrStale: the rows that were served have been replaced.
	ErrStale = errors.New("the subscriptions were replaced meanwhile")
	// ErrLoading: another load is under way; there can be one at a time.
	ErrLoading = errors.New("a load is already under way")
)

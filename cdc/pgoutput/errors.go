package pgoutput

import "errors"

// ErrMalformed reports bytes that no Postgres sends.
var ErrMalformed = errors.New("malformed replication message")

// NewSnapshotError reports that the stream can no longer bring the local state
// forward, while a new snapshot can.
type NewSnapshotError struct{ Reason string }

// Error returns the reason as status and log show it.
func (e *NewSnapshotError) Error() string { return "subscriptions need a new snapshot: " + e.Reason }

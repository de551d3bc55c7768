package cdc

import (
	"errors"
	"io"
	"net"
	"strings"

	"dinnerbell/cdc/replication"
	"dinnerbell/cdc/source"
	"dinnerbell/internal/postgres"
)

var (
	// ErrStopped reports that the mirror's Run has returned: nobody follows the
	// source.
	ErrStopped = errors.New("the mirror is not running")

	// errMoved reports that the session in which a target was read is over. LSNs of
	// two servers do not compare, so the target is read again.
	errMoved = errors.New("replication session ended")
)

// isUnreachable reports whether a session ended because the server cannot be
// reached or ended the connection. A full disk, or a server without a free slot, is
// no such reason.
func isUnreachable(err error) bool {
	if state := source.SQLState(err); state != "" {
		return strings.HasPrefix(state, "08") || strings.HasPrefix(state, "57P")
	}
	_, refused := errors.AsType[*postgres.ConnectError](err)
	_, network := errors.AsType[*net.OpError](err)
	return refused || network || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, replication.ErrSilent)
}

package cdc

import (
	"errors"
	"io"
	"net"
	"strings"
	"time"

	"dinnerbell/cdc/replication"
	"dinnerbell/cdc/source"
	"dinnerbell/internal/postgres"
	"dinnerbell/state/id"
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

// walsenderFailure notes that the walsender fails at one position again and again.
//
// A walsender decodes each change with the catalogs of the time when the change was
// written. Where those make it fail, it fails for ever, whatever the catalogs are
// now: a publication that had another name for a moment, a row filter that divided
// by zero. No statement changes WAL, so that only a new slot and a snapshot lead
// past it.
type walsenderFailure struct {
	at    id.LSN
	since time.Time
	code  string
}

// giveUpReason notes the end of a session at a position, and returns why the stream
// has to be given up; "" if another attempt may get past. An unknown publication
// needs no further attempt: the next session sees whether it exists now.
func (s *walsenderFailure) giveUpReason(err error, at id.LSN, patience time.Duration) string {
	send, ok := errors.AsType[*replication.SendError](err)
	if !ok {
		return ""
	}
	code := source.SQLState(send)
	if isTransient(code) {
		return ""
	}
	if code != source.CodeUndefinedObject {
		if s.at != at || s.code != code || s.since.IsZero() {
			*s = walsenderFailure{at: at, since: time.Now(), code: code}
		}
		if time.Since(s.since) < patience {
			return ""
		}
	}
	*s = walsenderFailure{}
	return "Postgres cannot send its WAL behind " + at.String() + ": " + send.Cause.Error()
}

// isTransient reports whether an SQLSTATE belongs to a class of errors that do not
// come from decoding: connections, rights, resources, locks, operators and the
// server's disk.
// https://www.postgresql.org/docs/current/errcodes-appendix.html
func isTransient(code string) bool {
	if code == "" {
		return true
	}
	for _, class := range []string{"08", "28", "53", "55", "57", "58030"} {
		if strings.HasPrefix(code, class) {
			return true
		}
	}
	return false
}

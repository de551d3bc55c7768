package state

import (
	"errors"
	"io/fs"
	"slices"
	"syscall"
	"time"
)

// openPauses are between the attempts of Open while the trouble may pass.
var openPauses = []time.Duration{100 * time.Millisecond, 300 * time.Millisecond, 600 * time.Millisecond, time.Second, 2 * time.Second}

// Errors of the system by what they mean for Open. All that are not named here
// speak of the surroundings, and last.
var (
	// damages: what was stored is not there, cannot be read, or is not what it was.
	damages = []syscall.Errno{syscall.ENOENT, syscall.EIO, syscall.EINVAL, syscall.EISDIR, syscall.ENOTDIR, syscall.EBADMSG, syscall.EILSEQ, syscall.EOVERFLOW}
	// passing: the surroundings cannot serve at this moment.
	passing = []syscall.Errno{
		syscall.EINTR, syscall.EAGAIN, syscall.EBUSY, syscall.ESTALE, syscall.ETIMEDOUT, syscall.ENOTEMPTY, syscall.ENOLCK,
		syscall.EDEADLK, syscall.ECONNRESET, syscall.ECONNREFUSED, syscall.ENOTCONN, syscall.EHOSTDOWN, syscall.EHOSTUNREACH,
		syscall.ENETDOWN, syscall.ENETUNREACH, syscall.ETXTBSY,
	}
)

// keeps says whether err leaves the store in its place: because the store is not
// for this program, or because err speaks of the surroundings.
func keeps(err error) bool {
	if errors.Is(err, ErrNewerFormat) || errors.Is(err, ErrForeign) {
		return true
	}
	if isDamage(err) {
		return false
	}
	errno, ok := errors.AsType[syscall.Errno](err)
	return ok && !slices.Contains(damages, errno) || errors.Is(err, fs.ErrPermission)
}

// mayPass says whether err may be gone in a moment.
func mayPass(err error) bool {
	errno, ok := errors.AsType[syscall.Errno](err)
	return ok && slices.Contains(passing, errno) && !isDamage(err)
}

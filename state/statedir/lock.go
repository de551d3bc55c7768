package statedir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// LockName names the lock file.
const LockName = "LOCK"

// ErrLocked means that another process has the state directory open. Each error is a
// [LockedError].
var ErrLocked = errors.New("state directory is in use")

// LockedError names the directory and the process that has it open.
type LockedError struct {
	Dir    string
	Holder string // a process id, or "unknown"
}

// Error names both, and what to do.
func (e *LockedError) Error() string {
	return fmt.Sprintf("state directory %s is in use by process %s; stop it, or give this one another state.dir", e.Dir, e.Holder)
}

// Is reports whether target is [ErrLocked].
func (e *LockedError) Is(target error) bool { return target == ErrLocked }

// Lock checks that nobody else can meddle with the directory ([ErrUnsafe]) and locks it
// ([ErrLocked]) until the result is closed.
func Lock(fs vfs.FS, dir string) (io.Closer, error) {
	if err := checkDir(fs, dir); err != nil {
		return nil, fmt.Errorf("check state directory: %w", err)
	}
	lock, err := lockDir(fs, dir)
	if locked, ok := errors.AsType[*LockedError](err); ok {
		return nil, locked // it says all
	}
	if err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	return lock, nil
}

// lockDir locks the directory for this process. The lock is an flock, which the
// kernel releases with the process, so that a kill -9 leaves nothing to clean up. The
// file holds the process id of the holder, for the error of a second process. It is
// never removed, because another process may be waiting for it.
func lockDir(fs vfs.FS, dir string) (io.Closer, error) {
	name := fs.PathJoin(dir, LockName)
	if vfs.Root(fs) != vfs.Default {
		return fs.Lock(name) // a test's file system
	}
	f, err := openLockFile(name)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = &LockedError{Dir: filepath.Dir(name), Holder: readHolder(f)}
	} else if err == nil {
		err = writeHolder(f)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return heldLock{f}, nil
}

// heldLock is the lock file while it is locked.
type heldLock struct{ f *os.File }

// Close releases the lock, with LOCK_UN: a close alone would leave the lock with a
// child process that is just being started and has inherited the file.
func (l heldLock) Close() error {
	return errors.Join(syscall.Flock(int(l.f.Fd()), syscall.LOCK_UN), l.f.Close())
}

func writeHolder(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("write lock file: %w", err)
	}
	if _, err := f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0); err != nil {
		return fmt.Errorf("write lock file: %w", err)
	}
	return nil
}

// readHolder returns the process id in the lock file, "unknown" while the holder has
// not written it yet.
func readHolder(f *os.File) string {
	b := make([]byte, 20)
	n, _ := f.ReadAt(b, 0)
	if pid := strings.TrimSpace(string(b[:n])); pid != "" {
		return pid
	}
	return "unknown"
}

// Holder returns the process id of the process that has the directory open, as the lock
// file has it; "" where nobody has. It holds a shared lock for the moment of the look.
func Holder(dir string) (pid string, err error) {
	f, err := os.OpenFile(filepath.Join(dir, LockName), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look at lock file: %w", err)
	}
	defer func() { _ = f.Close() }()
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return readHolder(f), nil
	}
	if err != nil {
		return "", fmt.Errorf("look at lock file: %w", err)
	}
	return "", syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
}

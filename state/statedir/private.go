package statedir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// The state directory holds ids of customers, and a user who can write in it can make
// this process read and write files elsewhere. So the directory must not be writable
// for everybody, and must belong to this process's user or to root. A group may write:
// kubelet assigns volumes to a group (fsGroup), with root as their owner. Files in the
// directory are closed to all users but their owner, whatever the umask is.
const (
	privateDir  = 0o700
	privateFile = 0o600
)

// ErrUnsafe means that other users can meddle with the state directory. Nothing in it
// was changed.
var ErrUnsafe = errors.New("state directory is not safe")

// privateFS makes files and directories that are closed to others.
type privateFS struct{ vfs.FS }

// NewPrivateFS returns fs, where new files and directories are closed to other users.
func NewPrivateFS(fs vfs.FS) vfs.FS { return privateFS{fs} }

// Unwrap implements vfs.FS.
func (f privateFS) Unwrap() vfs.FS { return f.FS }

// Create implements vfs.FS.
func (f privateFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.Create(name, c)
	if err != nil {
		return nil, err
	}
	if err := syscall.Fchmod(int(file.Fd()), privateFile); err != nil {
		return nil, errors.Join(&os.PathError{Op: "chmod", Path: name, Err: err}, file.Close())
	}
	return file, nil
}

// MkdirAll implements vfs.FS.
func (f privateFS) MkdirAll(dir string, perm os.FileMode) error {
	return f.FS.MkdirAll(dir, perm&privateDir)
}

// Lock implements vfs.FS.
func (f privateFS) Lock(name string) (io.Closer, error) {
	lock, err := f.FS.Lock(name)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(name, privateFile); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// checkDir returns [ErrUnsafe] for a state directory that other users can meddle with.
func checkDir(fsys vfs.FS, dir string) error {
	if vfs.Root(fsys) != vfs.Default {
		return nil // a test's file system
	}
	return checkDirFor(dir, os.Geteuid())
}

// Examine returns [ErrUnsafe] for a state directory that other users can meddle with,
// and an error for one that cannot be read. It changes nothing.
func Examine(dir string) error {
	return walkDirFor(dir, os.Geteuid(), func(*os.Root, string) error { return nil })
}

// checkDirFor checks the directory for a process of user us, and closes files to other
// users that an earlier version left open.
func checkDirFor(dir string, us int) error {
	return walkDirFor(dir, us, func(root *os.Root, name string) error { return closeToOthers(root, name, us) })
}

// walkDirFor checks the directory for a process of user us, and calls each for every
// entry of dinnerbell's that is good.
func walkDirFor(dir string, us int, each func(root *os.Root, name string) error) error {
	dir, err := filepath.Abs(dir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	owner := ownerOf(info)
	switch {
	case !info.IsDir():
		return fmt.Errorf("%s is not a directory; set state.dir to a folder, which dinnerbell makes if it is missing", dir)
	case info.Mode().Perm()&0o002 != 0:
		return fmt.Errorf("%w: every user may write in %s (mode %04o); run: chmod o-w %[2]s, or set state.dir to a folder below it, which dinnerbell makes for itself",
			ErrUnsafe, dir, info.Mode().Perm())
	case owner != us && owner != 0 && (us != 0 || !isHandedOver(dir)):
		return fmt.Errorf("%w: %s belongs to user %d and this process runs as user %d; run: chown -R %[4]d %[2]s, or run as user %[3]d",
			ErrUnsafe, dir, owner, us)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	for _, name := range []string{LockName, InstanceName, StoreName, OursName, CorruptName, WriterName, LoadName, CheckpointsName, RestoringName, RestoredName} {
		there, err := checkEntry(root, name, us, owner)
		if err == nil && there {
			err = each(root, name)
		}
		if err != nil {
			return errors.Join(err, root.Close())
		}
	}
	return root.Close()
}

// isHandedOver reports whether root meant a directory of another user to be used: it
// was in use before and lies where only root could have put it. An example is a volume
// of a container that ran as that user and now runs as root.
func isHandedOver(dir string) bool {
	parent, err := os.Stat(filepath.Dir(dir))
	if err != nil || ownerOf(parent) != 0 || parent.Mode().Perm()&0o022 != 0 {
		return false
	}
	lock, err := os.Lstat(filepath.Join(dir, LockName))
	return err == nil && isOwnFile(lock)
}

// checkEntry returns [ErrUnsafe] for an entry that another user may have put there. It
// reports whether there is one.
func checkEntry(dir *os.Root, name string, us, dirOwner int) (there bool, err error) {
	info, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !info.IsDir() && !isOwnFile(info) {
		return true, fmt.Errorf("%w: %s is no file or folder of dinnerbell's (%s); run: rm %[2]s", ErrUnsafe, filepath.Join(dir.Name(), name), info.Mode())
	}
	if owner := ownerOf(info); owner != us && owner != dirOwner && owner != 0 {
		return true, fmt.Errorf("%w: %s belongs to user %d and this process runs as user %d; run as user %[3]d again, or: chown -R %[4]d %[5]s",
			ErrUnsafe, filepath.Join(dir.Name(), name), owner, us, dir.Name())
	}
	return true, nil
}

func closeToOthers(dir *os.Root, name string, us int) error {
	return fs.WalkDir(dir.FS(), name, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
			return nil // Open names it where it matters
		}
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil || info.Mode().Perm()&0o077 == 0 || ownerOf(info) != us {
			return err
		}
		if info.Mode()&os.ModeSymlink != 0 {
			return nil
		}
		return dir.Chmod(path, info.Mode().Perm()&^0o077)
	})
}

// isOwnFile reports whether a file is a regular file without another name.
func isOwnFile(info os.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return info.Mode().IsRegular() && (!ok || st.Nlink == 1)
}

// ownerOf returns the user id of a file's owner, or this process's own where the
// system knows no owners.
func ownerOf(info os.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return os.Geteuid()
}

// openLockFile opens dir/LOCK and makes it if it is missing. The file is written, so
// openLockFile follows no symbolic link and refuses a file that has another name
// elsewhere.
func openLockFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, privateFile)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%w: %s is a symbolic link; run: rm %[2]s", ErrUnsafe, name)
	}
	if err != nil {
		return nil, fmt.Errorf("open lock file: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open lock file: %w", err), f.Close())
	}
	if !isOwnFile(info) {
		return nil, errors.Join(fmt.Errorf("%w: %s is no file of its own (%s); run: rm %[2]s", ErrUnsafe, name, info.Mode()), f.Close())
	}
	return f, nil
}

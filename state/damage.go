package state

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"dinnerbell/state/statedir"
)

// keepAside is how many of the stores that were set aside stay: the newest, for a
// person to inspect. Each is as large as the store was, so that more would fill the
// disk.
const keepAside = 2

// AsideStore describes a store that was set aside.
type AsideStore struct {
	Dir    string // the folder that holds it now
	Reason string
}

// damageReport holds the first damage that was found in the open store.
type damageReport struct {
	mu     sync.Mutex
	reason error         // of the first damage; nil while there is none
	found  chan struct{} // closed when reason is set
}

// Damaged returns a channel that is closed once the store is found corrupt: by a
// read, by Pebble in the background, or by [Store.CheckRows]. From then on trust
// nothing in the store: close it and open the directory again, which sets the store
// aside. [Store.Damage] returns the reason.
func (s *Store) Damaged() <-chan struct{} {
	s.damage.mu.Lock()
	defer s.damage.mu.Unlock()
	return s.damage.found
}

// Damage returns why the store is corrupt, nil while it is not.
func (s *Store) Damage() error {
	s.damage.mu.Lock()
	defer s.damage.mu.Unlock()
	return s.damage.reason
}

// SetAside returns the store that Open had to set aside; ok is false if there was
// none.
func (s *Store) SetAside() (a AsideStore, ok bool) { return s.aside, s.aside.Dir != "" }

// readCorruptMark returns an error that wraps ErrCorrupt if the store must be set
// aside, and nil if not. Any other error means that the mark could not be read.
func (s *Store) readCorruptMark() error {
	if s.o.Distrust != nil {
		return fmt.Errorf("%w: found while running: %w", ErrCorrupt, s.o.Distrust)
	}
	f, err := s.o.fs.Open(s.o.fs.PathJoin(s.dir, statedir.CorruptName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for a mark of damage: %w", err)
	}
	text, err := io.ReadAll(f)
	return errors.Join(fmt.Errorf("%w: found while running: %s", ErrCorrupt, text), err, f.Close())
}

// markCorrupt marks the store as corrupt, in memory and on disk, so that the next
// Open sets it aside. Damage in a table shows only when its block is read: without the
// mark, a restart would find no damage and would fail at the same block again.
func (s *Store) markCorrupt(reason error) {
	s.damage.mu.Lock()
	defer s.damage.mu.Unlock()
	if s.damage.reason != nil {
		return
	}
	s.damage.reason = reason
	close(s.damage.found)
	s.log.Error("local state is corrupt; it is set aside and rebuilt", "state_dir", s.dir, "reason", reason)
	f, err := s.o.fs.Create(s.o.fs.PathJoin(s.dir, statedir.CorruptName), vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.Write([]byte(reason.Error()))
		err = errors.Join(err, f.Sync(), f.Close(), statedir.SyncDir(s.o.fs, s.dir))
	}
	if err != nil {
		s.log.Error("cannot mark the local state as corrupt", "error", err)
	}
}

// isDamage reports whether err means that stored data is wrong or unreadable: a failed
// check, a missing file, a block that the disk refuses.
func isDamage(err error) bool {
	return pebble.IsCorruptionError(err) || errors.Is(err, ErrCorrupt) || errors.Is(err, syscall.EIO)
}

// checkDamage marks the store as corrupt if err is damage. It returns err, which then
// wraps ErrCorrupt.
func (s *Store) checkDamage(err error) error {
	if !isDamage(err) {
		return err
	}
	s.markCorrupt(err)
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}

// setStoreAside moves dir/store to dir/quarantine-<UTC time>.
func (s *Store) setStoreAside(reason error) error {
	fsys := s.o.fs
	name := statedir.QuarantinePrefix + time.Now().UTC().Format("20060102T150405.000000Z")
	to := fsys.PathJoin(s.dir, name)
	if err := fsys.Rename(fsys.PathJoin(s.dir, statedir.StoreName), to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set corrupt state aside: %w", err)
	}
	if err := fsys.Remove(fsys.PathJoin(s.dir, statedir.CorruptName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("set corrupt state aside: %w", err)
	}
	if err := statedir.SyncDir(fsys, s.dir); err != nil {
		return fmt.Errorf("set corrupt state aside: %w", err)
	}
	s.damage.mu.Lock() // the next store is another one
	s.damage.reason, s.damage.found = nil, make(chan struct{})
	s.damage.mu.Unlock()
	s.aside = AsideStore{Dir: to, Reason: reason.Error()}
	s.log.Error("local state could not be read; it was set aside and will be rebuilt",
		slog.String("reason", reason.Error()), slog.String("moved_to", to))
	return s.removeOldAside()
}

// removeOldAside removes all but the newest stores that were set aside.
func (s *Store) removeOldAside() error {
	names, err := s.o.fs.List(s.dir)
	if err != nil {
		return fmt.Errorf("look for stores that were set aside: %w", err)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasPrefix(name, statedir.QuarantinePrefix) })
	slices.Sort(names) // the names are times
	for _, name := range names[:max(0, len(names)-keepAside)] {
		old := s.o.fs.PathJoin(s.dir, name)
		if err := s.o.fs.RemoveAll(old); err != nil {
			return fmt.Errorf("remove a store that was set aside: %w", err)
		}
		s.log.Warn("removed a store that was set aside earlier", "store", old, "kept", keepAside)
	}
	return nil
}

// openPauses are the pauses between the attempts of Open while an error may be
// temporary.
var openPauses = []time.Duration{100 * time.Millisecond, 300 * time.Millisecond, 600 * time.Millisecond, time.Second, 2 * time.Second}

// System errors by their meaning for Open. All other system errors come from the
// machine and are permanent.
var (
	// damageErrnos: stored data is missing, unreadable or altered.
	damageErrnos = []syscall.Errno{syscall.ENOENT, syscall.EIO, syscall.EINVAL, syscall.EISDIR, syscall.ENOTDIR, syscall.EBADMSG, syscall.EILSEQ, syscall.EOVERFLOW}
	// temporaryErrnos: the machine cannot serve at this moment.
	temporaryErrnos = []syscall.Errno{
		syscall.EINTR, syscall.EAGAIN, syscall.EBUSY, syscall.ESTALE, syscall.ETIMEDOUT, syscall.ENOTEMPTY, syscall.ENOLCK,
		syscall.EDEADLK, syscall.ECONNRESET, syscall.ECONNREFUSED, syscall.ENOTCONN, syscall.EHOSTDOWN, syscall.EHOSTUNREACH,
		syscall.ENETDOWN, syscall.ENETUNREACH, syscall.ETXTBSY,
	}
)

// isEnvironmental reports whether err leaves the store in its place: the store belongs
// to another program or a newer version, or err comes from the machine (permissions,
// full disk, descriptors). Such a store must not be set aside.
func isEnvironmental(err error) bool {
	if errors.Is(err, ErrNewerFormat) || errors.Is(err, ErrForeign) {
		return true
	}
	if isDamage(err) {
		return false
	}
	errno, ok := errors.AsType[syscall.Errno](err)
	return ok && !slices.Contains(damageErrnos, errno) || errors.Is(err, fs.ErrPermission)
}

// isTemporary reports whether the next attempt may succeed.
func isTemporary(err error) bool {
	errno, ok := errors.AsType[syscall.Errno](err)
	return ok && slices.Contains(temporaryErrnos, errno) && !isDamage(err)
}

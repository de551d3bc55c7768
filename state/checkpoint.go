package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"dinnerbell/internal/failpoint"
	"dinnerbell/state/id"
	"dinnerbell/state/statedir"
)

// flushPatience is how long a checkpoint waits for the memtables to be flushed. The
// flush only shortens the log that is copied afterwards.
const flushPatience = 2 * time.Second

// checkpoints are the checkpoints of an open store's directory. They change one at a
// time, under mu.
type checkpoints struct {
	mu        sync.Mutex
	manifests []Manifest // in order of age, without damaged ones; guarded by mu
	lastID    string     // the largest id that was ever given or found; guarded by mu
	// mends counts the mends of rows, under the store's writeMu. A checkpoint that was
	// made before the last mend holds wrong rows. linked is the count at the moment
	// when Pebble linked the newest checkpoint, made the count of the newest complete
	// checkpoint; both are guarded by mu.
	mends        atomic.Int64
	linked, made int64
}

// Checkpoint saves the rows with their position and removes the oldest checkpoints of
// the same cause that are too many. All batches that were applied before the call are
// in it. The checkpoint is durable and independent of the store when Checkpoint
// returns; a checkpoint that fails leaves nothing behind. Readers do not wait for it;
// writers wait while Pebble links its tables.
//
// Checkpoint returns [ErrNotWhole] while there is no whole-transaction state, and
// [ErrDiskFull] where it would take from the reserve.
func (s *Store) Checkpoint(cause Cause, nextOffsets map[int32]int64) (*Manifest, error) {
	done, err := s.acquire()
	if err != nil {
		return nil, err
	}
	defer done()
	s.checkpoints.mu.Lock()
	defer s.checkpoints.mu.Unlock()
	if err := s.makeRoomLocked(0); err != nil {
		return nil, fmt.Errorf("make checkpoint: %w", err)
	}
	m := &Manifest{
		Made: time.Now().UTC(), Cause: cause, Writer: s.o.Writer, Format: s.o.format.version, NextOffsets: nextOffsets,
	}
	m.ID = s.checkpoints.nextIDLocked(m.Made)
	if err := s.makeCheckpointLocked(m); err != nil {
		return nil, s.checkDamage(fmt.Errorf("make checkpoint: %w", err))
	}
	s.checkpoints.manifests, s.checkpoints.made = append(s.checkpoints.manifests, *m), s.checkpoints.linked
	if err := s.pruneCheckpointsLocked(); err != nil {
		return nil, err
	}
	return m, nil
}

// nextIDLocked returns the id for the time now, or the next id after the last one
// where the clock was set back: ids sort in the order in which they are given.
func (c *checkpoints) nextIDLocked(now time.Time) string {
	if last, err := time.Parse(idFormat, c.lastID); err == nil && now.Before(last.Add(time.Millisecond)) {
		now = last.Add(time.Millisecond)
	}
	c.lastID = now.Format(idFormat)
	return c.lastID
}

// makeCheckpointLocked fills in the rest of m and writes the checkpoint to disk. One rename
// completes it.
func (s *Store) makeCheckpointLocked(m *Manifest) error {
	fsys := s.o.fs
	all := fsys.PathJoin(s.dir, statedir.CheckpointsName)
	if err := statedir.MakeDir(fsys, all); err != nil {
		return err
	}
	tmp := fsys.PathJoin(all, m.ID+statedir.Unfinished)
	if err := s.fillCheckpointLocked(tmp, m); err != nil {
		return errors.Join(err, fsys.RemoveAll(tmp))
	}
	failpoint.Hit("checkpoint/filled")
	if err := fsys.Rename(tmp, fsys.PathJoin(all, m.ID)); err != nil {
		return errors.Join(err, fsys.RemoveAll(tmp))
	}
	if err := statedir.SyncDir(fsys, all); err != nil {
		return err
	}
	failpoint.Hit("checkpoint/complete")
	return nil
}

func (s *Store) fillCheckpointLocked(tmp string, m *Manifest) error {
	store := s.o.fs.PathJoin(tmp, statedir.StoreName)
	if err := s.linkTablesLocked(store, m); err != nil {
		return err
	}
	var err error
	if m.Files, err = fileSizes(s.o.fs, store); err != nil {
		return err
	}
	text, err := m.encodeManifest()
	if err != nil {
		return err
	}
	if err := statedir.WriteFile(s.o.fs, s.o.fs.PathJoin(tmp, manifestName), text); err != nil {
		return err
	}
	return statedir.SyncDir(s.o.fs, tmp)
}

// linkTablesLocked lets Pebble make its own checkpoint between two transactions.
func (s *Store) linkTablesLocked(store string, m *Manifest) error {
	// Pebble copies its log while writers wait: a flush makes the log short.
	if flushed, err := s.db.AsyncFlush(); err != nil {
		return err
	} else if flushed != nil {
		select {
		case <-flushed:
		case <-time.After(flushPatience):
		}
	}
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	v, r := s.currentView(), s.written
	if !v.loaded || s.tx.InTransaction() {
		return ErrNotWhole
	}
	m.Source, m.EndLSN, m.Gen, m.Subscriptions, m.Sum = v.src, r.end, r.gen, r.rows, r.sum
	if s.logw.isOn() {
		m.LogEnd = r.end
	}
	if err := s.db.Checkpoint(store, pebble.WithFlushedWAL()); err != nil {
		return err
	}
	failpoint.Hit("checkpoint/linked")
	s.checkpoints.linked = s.checkpoints.mends.Load()
	return nil
}

func fileSizes(fsys vfs.FS, dir string) (map[string]int64, error) {
	names, err := fsys.List(dir)
	if err != nil {
		return nil, err
	}
	files := make(map[string]int64, len(names))
	for _, name := range names {
		info, err := fsys.Stat(fsys.PathJoin(dir, name))
		if err != nil {
			return nil, err
		}
		files[name] = info.Size()
	}
	return files, nil
}

// NewestCheckpoint returns the newest checkpoint of the load that is served; false if
// there is none, or if rows were mended since.
func (s *Store) NewestCheckpoint() (Manifest, bool) {
	s.checkpoints.mu.Lock()
	defer s.checkpoints.mu.Unlock()
	if m := s.newestCheckpointLocked(); m != nil {
		return *m, true
	}
	return Manifest{}, false
}

// LastTimed returns when the newest checkpoint with [CauseTimed] was made.
func (s *Store) LastTimed() time.Time {
	s.checkpoints.mu.Lock()
	defer s.checkpoints.mu.Unlock()
	for _, m := range slices.Backward(s.checkpoints.manifests) {
		if m.Cause == CauseTimed {
			return m.Made
		}
	}
	return time.Time{}
}

// newestCheckpointLocked returns a pointer into s.checkpoints.manifests, nil where
// NewestCheckpoint returns false. The caller holds s.checkpoints.mu.
func (s *Store) newestCheckpointLocked() *Manifest {
	v := s.currentView()
	if n := len(s.checkpoints.manifests); n > 0 && v.loaded && s.checkpoints.made == s.checkpoints.mends.Load() {
		if m := &s.checkpoints.manifests[n-1]; m.Source == v.src && m.Gen == v.gen {
			return m
		}
	}
	return nil
}

// MoveCheckpoint moves the newest checkpoint to the position that is durable now, if
// the checkpoint holds exactly the rows of that position. It returns the position of
// the newest checkpoint, which is durable, and 0 where there is no checkpoint. Without
// MoveCheckpoint, a table that nobody writes would keep WAL from being acknowledged. A
// newest checkpoint whose folder an operator removed is forgotten first.
func (s *Store) MoveCheckpoint() (id.LSN, error) {
	done, err := s.acquire()
	if err != nil {
		return 0, err
	}
	defer done()
	s.checkpoints.mu.Lock()
	defer s.checkpoints.mu.Unlock()
	m := s.newestCheckpointLocked()
	for m != nil && s.isRemovedByHand(m.ID) {
		s.log.Warn("the newest checkpoint was removed by hand", "checkpoint", m.ID)
		s.checkpoints.manifests = s.checkpoints.manifests[:len(s.checkpoints.manifests)-1]
		m = s.newestCheckpointLocked()
	}
	if m == nil {
		return 0, nil
	}
	v := s.currentView()
	if v.end != v.durable || v.end <= m.EndLSN || v.torn || v.gen != m.Gen || v.rows != m.Subscriptions || v.sum != m.Sum {
		return m.EndLSN, nil
	}
	next := *m
	next.EndLSN = v.end
	if m.LogEnd == m.EndLSN && v.logLast <= m.LogEnd {
		next.LogEnd = v.end
	}
	if err := s.replaceManifest(&next); err != nil {
		return m.EndLSN, fmt.Errorf("move checkpoint %s to %s: %w", m.ID, v.end, err)
	}
	*m = next
	failpoint.Hit("checkpoint/moved")
	return m.EndLSN, nil
}

// isRemovedByHand reports whether a checkpoint's manifest or its store is gone. Where
// the disk does not answer, they are taken to be there.
func (s *Store) isRemovedByHand(id string) bool {
	for _, name := range []string{manifestName, statedir.StoreName} {
		if _, err := s.o.fs.Stat(s.o.fs.PathJoin(s.dir, statedir.CheckpointsName, id, name)); errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

func (s *Store) replaceManifest(m *Manifest) error {
	text, err := m.encodeManifest()
	if err != nil {
		return err
	}
	fsys := s.o.fs
	of := fsys.PathJoin(s.dir, statedir.CheckpointsName, m.ID)
	name := fsys.PathJoin(of, manifestName)
	if err := statedir.WriteFile(fsys, name+statedir.Unfinished, text); err != nil {
		return err
	}
	if err := fsys.Rename(name+statedir.Unfinished, name); err != nil {
		return err
	}
	return statedir.SyncDir(fsys, of)
}

// pruneCheckpointsLocked removes the checkpoints that are too many: of each cause it
// keeps the newest, of [CauseWAL] one. The caller holds s.checkpoints.mu.
func (s *Store) pruneCheckpointsLocked() error {
	left := map[Cause]int{CauseTimed: s.o.KeepCheckpoints, CauseAsked: s.o.KeepCheckpoints, CauseWAL: 1}
	var keep []Manifest
	var errs []error
	for _, m := range slices.Backward(s.checkpoints.manifests) {
		if left[m.Cause]--; left[m.Cause] >= 0 {
			keep = append(keep, m)
		} else if err := s.removeCheckpoint(m.ID); err != nil {
			errs = append(errs, fmt.Errorf("remove checkpoint %s: %w", m.ID, err))
			keep = append(keep, m) // the next prune tries again
		}
	}
	slices.Reverse(keep)
	s.checkpoints.manifests = keep
	return errors.Join(errs...)
}

// removeCheckpoint renames the checkpoint first, so that a crash leaves no half of it
// under its name.
func (s *Store) removeCheckpoint(id string) error {
	fsys := s.o.fs
	name := fsys.PathJoin(s.dir, statedir.CheckpointsName, id)
	if err := fsys.Rename(name, name+statedir.Unfinished); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	failpoint.Hit("checkpoint/dropped")
	return fsys.RemoveAll(name + statedir.Unfinished)
}

// openCheckpoints reads the manifests of all checkpoints and removes checkpoints that
// were never finished. It names a damaged checkpoint in the log and leaves it to the
// operator.
func (s *Store) openCheckpoints() error {
	fsys := s.o.fs
	all := fsys.PathJoin(s.dir, statedir.CheckpointsName)
	names, err := fsys.List(all)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list checkpoints: %w", err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, statedir.Unfinished) {
			if err := fsys.RemoveAll(fsys.PathJoin(all, name)); err != nil {
				return fmt.Errorf("remove unfinished checkpoint: %w", err)
			}
		}
	}
	list, err := listCheckpoints(fsys, s.dir)
	if err != nil {
		s.log.Warn("a checkpoint cannot be used", "error", err)
	}
	ids, err := checkpointIDs(fsys, s.dir)
	if err != nil {
		return err
	}
	s.checkpoints.mu.Lock()
	defer s.checkpoints.mu.Unlock()
	s.checkpoints.manifests = list
	if len(ids) > 0 {
		s.checkpoints.lastID = ids[len(ids)-1]
	}
	return nil
}

// Replaced lists the folders of stores that restores have replaced and that still
// exist.
func (s *Store) Replaced() ([]string, error) {
	names, err := s.o.fs.List(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list state directory: %w", err)
	}
	var found []string
	for _, name := range names {
		if strings.HasPrefix(name, statedir.ReplacedPrefix) {
			found = append(found, name)
		}
	}
	return found, nil
}

// DropReplaced reads all rows of this store and, if they are good, removes the stores
// that restores have replaced; it returns their names. Call it when the store has
// caught up with its source.
func (s *Store) DropReplaced(ctx context.Context) ([]string, error) {
	names, err := s.Replaced()
	if err != nil || len(names) == 0 {
		return nil, err
	}
	if err := s.CheckRows(ctx); err != nil {
		return nil, err
	}
	for _, name := range names {
		if err := s.o.fs.RemoveAll(s.o.fs.PathJoin(s.dir, name)); err != nil {
			return nil, fmt.Errorf("remove replaced state %s: %w", name, err)
		}
	}
	return names, nil
}

// MakeRoom returns nil if more bytes are free beside the reserve. Where they are not,
// it removes checkpoints, the oldest first: they keep files of rows that are no longer
// served. Two kinds stay: checkpoints that an operator asked for, and the newest
// checkpoint of the load that is served, up to which the slot is acknowledged. All
// others lie before the acknowledged position, so that a restore of one of them would
// need a new snapshot.
func (s *Store) MakeRoom(more int64) error {
	if err := s.disk.checkRoom(more); err == nil {
		return nil
	}
	done, err := s.acquire()
	if err != nil {
		return err
	}
	defer done()
	s.checkpoints.mu.Lock()
	defer s.checkpoints.mu.Unlock()
	return s.makeRoomLocked(more)
}

// makeRoomLocked is MakeRoom for a caller that holds s.checkpoints.mu.
func (s *Store) makeRoomLocked(more int64) error {
	newest := ""
	if m := s.newestCheckpointLocked(); m != nil {
		newest = m.ID
	}
	for _, m := range slices.Clone(s.checkpoints.manifests) {
		full := s.disk.checkRoom(more)
		if full == nil {
			return nil
		}
		if m.Cause == CauseAsked || m.ID == newest {
			continue
		}
		if err := s.removeCheckpoint(m.ID); err != nil {
			return errors.Join(full, fmt.Errorf("remove checkpoint %s: %w", m.ID, err))
		}
		s.checkpoints.manifests = slices.DeleteFunc(s.checkpoints.manifests, func(o Manifest) bool { return o.ID == m.ID })
		s.log.Warn("removed a checkpoint, for room on the disk", "checkpoint", m.ID, "made", m.Made)
	}
	return s.disk.checkRoom(more)
}

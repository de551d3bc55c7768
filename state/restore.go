package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"dinnerbell/state/statedir"
)

// Restore exchanges stores by renames. These are the states that a crash can leave,
// in order, and the action of the next Open or Restore:
//
//	store/  restore.tmp/            remove restore.tmp/, which may be incomplete
//	store/  restored/               go on: restored/ is complete
//	        restored/  replaced-T/  go on
//	store/             replaced-T/  nothing to do
//
// So the rename from restore.tmp to restored is the moment that decides. replaced-T
// stays until [Store.DropReplaced] has checked the new rows.

// Restore puts a copy of checkpoint id in the place of the store. It returns the
// checkpoint's manifest and the folder of the store that it replaced, "" if there was
// none. The checkpoint stays as it is. The directory must not be in use
// ([statedir.ErrLocked]).
//
// Restore first reads all rows of the copy and compares them with the manifest. It
// restores nothing from a damaged checkpoint ([ErrBadCheckpoint]).
func Restore(ctx context.Context, dir, id string, o Options) (m *Manifest, replaced string, err error) {
	o = o.withDefaults()
	lock, err := statedir.Lock(o.fs, dir)
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if _, err := finishRestore(o.fs, dir); err != nil {
		return nil, "", err
	}
	if m, err = readManifest(o.fs, dir, id); err != nil {
		return nil, "", err
	}
	if m.Format > o.format.version {
		return nil, "", withWriterVersion(m.Writer, newerFormatError("format", m.Format, o.format.version))
	}
	if err := m.checkFiles(o.fs, dir); err != nil {
		return nil, "", err
	}
	if err := prepareRestore(ctx, o, dir, m); err != nil {
		return nil, "", fmt.Errorf("restore checkpoint %s: %w", id, errors.Join(err, o.fs.RemoveAll(o.fs.PathJoin(dir, statedir.RestoringName))))
	}
	if err := statedir.Rename(o.fs, dir, statedir.RestoringName, statedir.RestoredName); err != nil {
		return nil, "", fmt.Errorf("restore checkpoint %s: %w", id, err)
	}
	replaced, err = finishRestore(o.fs, dir)
	return m, replaced, err
}

// checkFiles compares the checkpoint's files with the manifest, by their sizes.
func (m *Manifest) checkFiles(fsys vfs.FS, dir string) error {
	store := fsys.PathJoin(dir, statedir.CheckpointsName, m.ID, statedir.StoreName)
	files, err := fileSizes(fsys, store)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read checkpoint %s: %w", m.ID, err)
	}
	for name, size := range m.Files {
		if found, ok := files[name]; !ok {
			return fmt.Errorf("checkpoint %s: %w: %s is missing", m.ID, ErrBadCheckpoint, name)
		} else if found != size {
			return fmt.Errorf("checkpoint %s: %w: %s has %d bytes, should have %d", m.ID, ErrBadCheckpoint, name, found, size)
		}
	}
	return nil
}

// prepareRestore makes restore.tmp, a copy of the checkpoint's store that stands at the
// manifest's position.
func prepareRestore(ctx context.Context, o Options, dir string, m *Manifest) error {
	to := o.fs.PathJoin(dir, statedir.RestoringName)
	if err := o.fs.RemoveAll(to); err != nil {
		return err
	}
	if err := o.fs.MkdirAll(to, 0o700); err != nil {
		return err
	}
	from := o.fs.PathJoin(dir, statedir.CheckpointsName, m.ID, statedir.StoreName)
	for name := range m.Files {
		if err := linkFile(o.fs, from, to, name); err != nil {
			return err
		}
	}
	if err := statedir.SyncDir(o.fs, to); err != nil {
		return err
	}
	db, err := openPebble(to, o.newPebbleOptions(func(error) {}))
	if err == nil {
		err = errors.Join(adoptCheckpoint(ctx, o.format, db, m), db.Close())
	}
	if pebble.IsCorruptionError(err) || errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("%w: %w", ErrBadCheckpoint, err)
	}
	return err
}

// linkFile makes a hard link of a file that is never written again, and copies others.
func linkFile(fsys vfs.FS, from, to, name string) error {
	from, to = fsys.PathJoin(from, name), fsys.PathJoin(to, name)
	if strings.HasSuffix(name, ".sst") || strings.HasSuffix(name, ".blob") {
		return vfs.LinkOrCopy(fsys, from, to)
	}
	return vfs.Copy(fsys, from, to)
}

// adoptCheckpoint checks the rows of the copy, moves it to the manifest's position and
// drops the delivered pairs, a cache that is out of date.
func adoptCheckpoint(ctx context.Context, f storeFormat, db *pebble.DB, m *Manifest) error {
	found, err := f.checkFormat(db)
	if err != nil {
		return err
	}
	if err := f.upgradeStore(ctx, db, found); err != nil {
		return err
	}
	r, src, ok, err := loadMeta(db)
	if err != nil {
		return err
	}
	if !ok || src != m.Source || r.gen != m.Gen || r.rows != m.Subscriptions || r.sum != m.Sum || r.torn || r.end > m.EndLSN {
		return fmt.Errorf("%w: its store is not the one that its manifest tells of", ErrBadCheckpoint)
	}
	if err := checkStoredRows(ctx, db, r); err != nil {
		return err
	}
	was := r
	r.end = m.EndLSN
	b := db.NewBatch()
	defer b.Close()
	if err := moveLog(db, b, was, r, m.LogEnd); err != nil {
		return err
	}
	delivered := []byte{spaceDelivered}
	if err := errors.Join(b.Set(keyState, r.encodeRecord(), nil), b.DeleteRange(delivered, prefixEnd(nil, delivered), nil)); err != nil {
		return err
	}
	return b.Commit(pebble.Sync)
}

// finishRestore completes a restore that was decided, and removes one that was not. It
// returns the folder of the store that it replaced now, "" if there is none.
func finishRestore(fsys vfs.FS, dir string) (replaced string, err error) {
	exists := func(name string) bool {
		_, serr := fsys.Stat(fsys.PathJoin(dir, name))
		if serr != nil && !errors.Is(serr, fs.ErrNotExist) {
			err = errors.Join(err, serr)
		}
		return serr == nil
	}
	half, decided, old := exists(statedir.RestoringName), exists(statedir.RestoredName), exists(statedir.StoreName)
	if err != nil {
		return "", fmt.Errorf("look for a restore under way: %w", err)
	}
	if half {
		if err := fsys.RemoveAll(fsys.PathJoin(dir, statedir.RestoringName)); err != nil {
			return "", fmt.Errorf("remove half of a restore: %w", err)
		}
	}
	if !decided {
		return "", nil
	}
	if old {
		replaced = statedir.ReplacedPrefix + time.Now().UTC().Format("20060102T150405.000000Z")
		if err := statedir.Rename(fsys, dir, statedir.StoreName, replaced); err != nil {
			return "", fmt.Errorf("finish restore: %w", err)
		}
	}
	// The mark of damage belongs to the replaced store.
	if err := fsys.Remove(fsys.PathJoin(dir, statedir.CorruptName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("finish restore: %w", err)
	}
	if err := statedir.Rename(fsys, dir, statedir.RestoredName, statedir.StoreName); err != nil {
		return "", fmt.Errorf("finish restore: %w", err)
	}
	return replaced, nil
}

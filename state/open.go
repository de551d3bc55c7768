package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"

	"dinnerbell/state/pebblecheck"
	"dinnerbell/state/statedir"
)

// Open opens the state in dir, which it makes if there is none, and holds it
// against other processes ([ErrLocked]).
//
// A store that cannot be read is moved to dir/quarantine-<UTC time>, the
// reason is logged, and a fresh one is opened: everything here can be rebuilt.
// [ErrNewerFormat] and [ErrForeign] leave the directory as it is. Troubles of
// the surroundings (no permission, disk full, a file server that does not answer)
// condemn nothing: those that may pass within seconds are tried again, and then
// returned.
func Open(dir string, o Options) (*Store, error) {
	o = o.withDefaults()
	for _, pause := range o.openPauses {
		s, err := openOnce(dir, o)
		if err == nil || !isTemporary(err) {
			return s, err
		}
		o.Logger.Warn("the state directory cannot be opened and is tried again", "dir", dir, "error", err)
		<-time.After(pause)
	}
	s, err := openOnce(dir, o)
	if err != nil && isTemporary(err) {
		err = fmt.Errorf("%w; what is stored was left as it is: start again when the disk answers", err)
	}
	return s, err
}

func openOnce(dir string, o Options) (*Store, error) {
	if err := statedir.MakeDir(o.fs, dir); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	lock, err := statedir.Lock(o.fs, dir)
	if err != nil {
		return nil, err
	}
	s := &Store{dir: dir, o: o, log: o.Logger, lock: lock}
	s.damage.found = make(chan struct{})
	s.disk = diskReserve{fs: o.fs, dir: dir, bytes: o.ReserveBytes, percent: o.ReservePercent}
	if s.instance, err = statedir.ReadInstance(o.fs, dir); err != nil {
		return nil, errors.Join(fmt.Errorf("read instance id of state directory %s: %w", dir, err), lock.Close())
	}
	if err := s.openOrReplace(); err != nil {
		err = withWriterVersion(readWriterVersion(o.fs, dir), err)
		return nil, errors.Join(fmt.Errorf("open state in %s: %w", dir, err), lock.Close())
	}
	return s, nil
}

// openOrReplace opens the store, a fresh one if the old one had to be set aside.
func (s *Store) openOrReplace() error {
	if err := refuseForeignDir(s.o.fs, s.dir); err != nil {
		return err
	}
	if _, err := finishRestore(s.o.fs, s.dir); err != nil {
		return err
	}
	reason := s.readCorruptMark()
	if reason != nil && !errors.Is(reason, ErrCorrupt) {
		return reason // the mark could not be read, which says nothing of the store
	}
	if reason == nil {
		reason = s.openStore()
		if errors.Is(reason, ErrForeign) && s.isMarkedOurs() {
			reason = fmt.Errorf("%w: it is dinnerbell's and does not look like it: %v", ErrCorrupt, reason) //nolint:errorlint // it is not foreign
		}
		if reason == nil || isEnvironmental(reason) {
			return reason
		}
	}
	if err := s.setStoreAside(reason); err != nil {
		return err
	}
	return s.openStore()
}

// openStore opens dir/store and brings it into order. On an error nothing is
// left open.
func (s *Store) openStore() error {
	store := s.o.fs.PathJoin(s.dir, statedir.StoreName)
	if err := inspectStore(s.o, store); err != nil {
		return err
	}
	if err := s.markOurs(); err != nil {
		return err
	}
	s.pebbleOpts = s.o.newPebbleOptions(s.markCorrupt)
	db, err := openPebble(store, s.pebbleOpts)
	if err != nil {
		return err
	}
	s.db = db
	if err := s.loadRecords(); err != nil {
		return errors.Join(err, db.Close())
	}
	return nil
}

// markOurs marks the directory as ours, once it is known that store/ is, or that
// there is none yet. A store whose own mark is lost with other damage is then
// not taken for somebody else's, which would have to be left alone.
func (s *Store) markOurs() error {
	if s.isMarkedOurs() {
		return nil
	}
	err := statedir.WriteFile(s.o.fs, s.o.fs.PathJoin(s.dir, statedir.OursName), nil)
	if err = errors.Join(err, statedir.SyncDir(s.o.fs, s.dir)); err != nil {
		return fmt.Errorf("mark state directory: %w", err)
	}
	return nil
}

func (s *Store) isMarkedOurs() bool {
	_, err := s.o.fs.Stat(s.o.fs.PathJoin(s.dir, statedir.OursName))
	return err == nil
}

// inspectStore looks whether there is a store and whether it is ours, without
// changing it: opening for writing would raise a stranger's format version.
func inspectStore(o Options, store string) error {
	names, err := o.fs.List(store)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(names) == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list store: %w", err)
	}
	if err := refuseNewerPebble(o.fs, store, names); err != nil {
		return err
	}
	if !pebblecheck.IsPebbleStore(names) {
		return nil // a crash while it was made; there is nothing in it yet
	}
	p := o.newPebbleOptions(func(error) {})
	p.ReadOnly = true
	db, err := openPebble(store, p)
	if err != nil {
		return err
	}
	found, err := o.format.checkFormat(db)
	if err == nil && found == o.format.version { // all rows of others are read in any case
		err = checkSuspectedHole(o, store, names, db)
	}
	return errors.Join(err, db.Close())
}

// checkSuspectedHole reads all rows of a store that may have lost some.
func checkSuspectedHole(o Options, store string, names []string, db *pebble.DB) error {
	hole, err := pebblecheck.MayHaveHole(o.fs, store, names, db)
	if err != nil || !hole {
		return err
	}
	r, _, _, err := loadMeta(db)
	if err != nil {
		return err
	}
	o.Logger.Info("local state was not closed in order; its rows are checked", "rows", r.rows)
	return checkStoredRows(context.Background(), db, r)
}

// refuseForeignDir refuses a directory that is itself somebody's store.
func refuseForeignDir(fs vfs.FS, dir string) error {
	names, err := fs.List(dir)
	if err != nil {
		return fmt.Errorf("list state directory: %w", err)
	}
	if pebblecheck.IsPebbleStore(names) {
		return fmt.Errorf("a Pebble or RocksDB store lies in the directory itself: %w; set state.dir to one of its own", ErrForeign)
	}
	return nil
}

// refuseNewerPebble tells a store of a later Pebble from a damaged one. Pebble
// gives the same kind of error for both.
func refuseNewerPebble(fs vfs.FS, store string, names []string) error {
	marker, value, err := atomicfs.LocateMarkerInListing(fs, store, "format-version", names)
	if err != nil {
		return fmt.Errorf("read Pebble format: %w", err)
	}
	if err := marker.Close(); err != nil {
		return fmt.Errorf("read Pebble format: %w", err)
	}
	v, err := strconv.ParseUint(value, 10, 32)
	if err == nil && pebble.FormatMajorVersion(v) > pebble.FormatNewest {
		return newerFormatError("Pebble format", uint32(v), uint32(pebble.FormatNewest))
	}
	return nil
}

// loadRecords reads what the store holds, writes the first records into a fresh
// one, and removes what an unfinished load left.
func (s *Store) loadRecords() error {
	found, err := s.o.format.checkFormat(s.db)
	if err != nil {
		return err
	}
	if found == 0 {
		err = s.writeFirstRecords()
	} else {
		err = s.o.format.upgradeStore(context.Background(), s.db, found)
	}
	if err != nil {
		return err
	}
	r, src, ok, err := loadMeta(s.db)
	if err != nil {
		return err
	}
	if err := s.writeWriterVersion(); err != nil {
		return err
	}
	s.written, s.nextGen = r, r.gen+1
	if r.torn {
		s.tx = tornTransaction
	}
	// What Pebble recovers from its log at Open, it has flushed to tables by
	// the time Open returns: it is durable.
	s.view = readerView{stateRecord: r, durable: r.end, src: src, loaded: ok}
	if err := s.openCheckpoints(); err != nil {
		return err
	}
	return s.removeLeftovers()
}

func (s *Store) writeFirstRecords() error {
	b := s.db.NewBatch()
	first := stateRecord{gen: 1}
	err := errors.Join(b.Set(keyFormat, encodeFormat(s.o.format.version), nil), b.Set(keyState, first.encodeRecord(), nil))
	if err == nil {
		err = b.Commit(pebble.Sync)
	}
	if err != nil {
		return fmt.Errorf("initialize store: %w", errors.Join(err, b.Close()))
	}
	return nil
}

// writeWriterVersion leaves the program's version in the directory, for older programs to
// name: beside the store, which they may not be able to open.
func (s *Store) writeWriterVersion() error {
	if s.o.Writer == "" || s.o.Writer == readWriterVersion(s.o.fs, s.dir) {
		return nil
	}
	name := s.o.fs.PathJoin(s.dir, statedir.WriterName)
	err := statedir.WriteFile(s.o.fs, name+statedir.Unfinished, []byte(s.o.Writer))
	if err == nil {
		err = statedir.Rename(s.o.fs, s.dir, statedir.WriterName+statedir.Unfinished, statedir.WriterName)
	}
	if err != nil {
		return fmt.Errorf("write version: %w", err)
	}
	return nil
}

// readWriterVersion gives the version of the program that opened the directory last,
// "" if that is not known.
func readWriterVersion(fsys vfs.FS, dir string) string {
	b, err := statedir.ReadFile(fsys, fsys.PathJoin(dir, statedir.WriterName))
	if err != nil {
		return ""
	}
	return string(b)
}

// removeLeftovers drops rows of other generations than the one that is served
// and the files of an unfinished load.
func (s *Store) removeLeftovers() error {
	if err := s.o.fs.RemoveAll(s.o.fs.PathJoin(s.dir, statedir.LoadName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove files of an unfinished load: %w", err)
	}
	for _, space := range []byte{spaceJoin, spaceRow} {
		from, to := genSpan(space, s.written.gen)
		for _, span := range [][2][]byte{{{space}, from}, {to, {space + 1}}} {
			if err := s.dropSpan(span[0], span[1]); err != nil {
				return fmt.Errorf("remove rows of an unfinished load: %w", err)
			}
		}
	}
	return nil
}

// dropSpan deletes the keys in [start, end). Without keys it leaves no tombstone.
func (s *Store) dropSpan(start, end []byte) error {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: start, UpperBound: end})
	if err != nil {
		return err
	}
	found := it.First()
	if err := errors.Join(it.Error(), it.Close()); err != nil || !found {
		return err
	}
	return s.db.DeleteRange(start, end, pebble.NoSync)
}

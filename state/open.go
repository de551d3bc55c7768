package state

import (
	"cmp"
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

// Open opens the state in dir, which it makes if there is none, and locks it against
// other processes ([statedir.ErrLocked]).
//
// Where a store cannot be read, Open moves it to dir/quarantine-<UTC time>, logs the
// reason and opens a fresh store: everything in a store can be rebuilt. With
// [ErrNewerFormat] and [ErrForeign] it leaves the directory as it is. Errors of the
// machine (no permission, disk full, a file server that does not answer) set no store
// aside: Open tries again for some seconds while an error may be temporary, and then
// returns it.
func Open(dir string, o Options) (*Store, error) {
	o = o.withDefaults()
	for _, pause := range o.openPauses {
		s, err := openOnce(dir, o)
		if err == nil || !isTemporary(err) {
			return s, err
		}
		o.Logger.Warn("the state directory cannot be opened and is tried again", "state_dir", dir, "error", err)
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

// openOrReplace opens the store. It sets aside a store that cannot be read, and opens a
// fresh one.
func (s *Store) openOrReplace() error {
	if err := refuseForeignDir(s.o.fs, s.dir); err != nil {
		return err
	}
	if _, err := finishRestore(s.o.fs, s.dir); err != nil {
		return err
	}
	reason := s.readCorruptMark()
	if reason != nil && !errors.Is(reason, ErrCorrupt) {
		return reason // the mark could not be read: the store may be good
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

// openStore opens dir/store and reads its records. On an error nothing is left open.
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

// markOurs marks the directory as dinnerbell's. Call it when store/ is known to be
// dinnerbell's, or when there is none yet. A damaged store that has lost its format
// record is then not taken for the store of another program, which would have to stay.
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

// inspectStore checks a store, if there is one, without changing it: whether it is
// dinnerbell's, and whether rows may be missing. To open it for writing would raise
// the format version of another program's store.
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
		return nil // a crash came while the store was made: it is empty
	}
	p := o.newPebbleOptions(func(error) {})
	p.ReadOnly = true
	db, err := openPebble(store, p)
	if err != nil {
		return err
	}
	found, err := o.format.checkFormat(db)
	if err == nil && found == o.format.version { // an upgrade reads all rows in any case
		err = checkSuspectedHole(o, store, names, db)
	}
	return errors.Join(err, db.Close())
}

// checkSuspectedHole reads all rows of a store that may have a hole.
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

// refuseForeignDir returns [ErrForeign] for a directory that is itself a Pebble store.
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

// refuseNewerPebble returns [ErrNewerFormat] for a store of a later Pebble. Pebble
// itself returns the same kind of error for it as for a damaged store.
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

// loadRecords reads the records of the store, or writes the first records into a fresh
// store, and removes the rows and files of an unfinished load.
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
	s.tx = outsideTransaction // also after a torn store that was set aside
	if r.torn {
		s.tx = tornTransaction
	}
	// Pebble has flushed the writes in its log to tables when its Open returns: they are
	// durable.
	s.view = readerView{stateRecord: r, durable: r.end, src: src, loaded: ok}
	if err := s.openLog(); err != nil {
		return err
	}
	if err := s.openCheckpoints(); err != nil {
		return err
	}
	return s.removeLeftovers()
}

// openLog reads the records of the subscription log, or removes a log that is switched
// off.
func (s *Store) openLog() error {
	s.logw = logWriter{o: s.o.Log, build: logBuilder{pieceBytes: cmp.Or(s.o.logPieceBytes, defaultPieceBytes)}}
	if !s.logw.isOn() {
		s.written.logged, s.view.logged = false, false
		value, err := getCopy(s.db, keyLogRecord)
		if err == nil && value != nil {
			err = s.db.Delete(keyLogRecord, pebble.NoSync)
		}
		return errors.Join(err, s.dropSpan([]byte{spaceLog}, []byte{spaceLogSegment + 1}))
	}
	fits, err := s.logw.open(s.db, s.written, s.o.now().Unix())
	if err != nil {
		return err
	}
	if !fits {
		s.log.Info("the log of subscription changes has a hole and begins anew", "lsn", s.written.end.String())
	}
	s.written.logged, s.view.logged = true, true
	s.logw.last = s.written.end // not known
	s.view.logFloor, s.view.logSince, s.view.logHistory, s.view.logLast = s.logw.rec.floor, s.logw.rec.since, s.logw.rec.history, s.logw.last
	return nil
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

// writeWriterVersion writes the program's version into the directory, so that an older
// program can name it. The file lies beside the store, which the older program may not
// be able to open.
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

// readWriterVersion returns the version of the program that opened the directory last,
// "" if it is not known.
func readWriterVersion(fsys vfs.FS, dir string) string {
	b, err := statedir.ReadFile(fsys, fsys.PathJoin(dir, statedir.WriterName))
	if err != nil {
		return ""
	}
	return string(b)
}

// removeLeftovers removes the rows of generations that are not served and the files of
// an unfinished load.
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

// dropSpan deletes the keys in [start, end). It writes no tombstone if there are none.
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

package state

import (
	"errors"
	"fmt"
	"sync/atomic"

	"dinnerbell/state/extsort"
	"dinnerbell/state/id"
)

// Loader fills a new generation of rows beside the one that is served. It has
// one owner. Memory is bounded: rows are collected into a chunk, each full chunk
// is written as a sorted run of the row index and, unsorted, into ranges of join
// keys (package extsort), while the next one fills. Finish merges the runs, sorts
// each range, and writes tables that go straight to the bottom of the tree. So a
// load writes every row twice, leaves nothing to compact, and meets every
// duplicate.
type Loader struct {
	s     *Store
	gen   uint32
	dir   string
	chunk chunk           // that is filling
	spare chunk           // the other one; not while a spill has it
	spilt chan spilt      // of the spill under way; nil: there is none
	runs  *extsort.Runs   // of the row index; nil until the first spill
	parts *extsort.Ranges // join keys; nil until the first spill
	rows  int64
	subs  int64
	sum   uint64       // see fingerprint.go
	files atomic.Int64 // that were named
	over  bool
	err   error // of an Add, or of a spill that it began; the load cannot go on
}

// loadSpaces are the keyspaces of a generation.
var loadSpaces = [...]byte{spaceJoin, spaceRow}

// NewGeneration begins a load, of which there can be one ([ErrLoading]). Changes
// that are applied meanwhile go to the generation that is served: after Finish
// the source must be followed from the load's own position.
func (s *Store) NewGeneration() (*Loader, error) {
	done, err := s.use()
	if err != nil {
		return nil, err
	}
	defer done()
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if s.loading {
		return nil, ErrLoading
	}
	dir := s.o.fs.PathJoin(s.dir, loadName)
	if err := s.o.fs.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder for load: %w", err)
	}
	l := &Loader{s: s, gen: s.nextGen, dir: dir}
	// The number is used up even if the load fails, so that its rows, should
	// some be in the store already, are never taken for those of the next.
	s.nextGen++
	s.loading = true
	return l, nil
}

// Add adds a row, in any order. "" is NULL.
func (l *Loader) Add(id id.RowID, restaurant, client id.ID) error {
	switch {
	case l.over:
		return ErrClosed
	case l.err != nil:
		return l.err
	case id == "":
		return errors.New("load row: no row id")
	}
	r := row{restaurant, client, true}
	l.sum += l.chunk.add(id, r)
	l.rows++
	if r.subscribed() {
		l.subs++
	}
	if l.chunk.size() >= l.s.o.chunkBytes {
		l.err = l.spill()
	}
	return l.err
}

// Rows is the number of rows added.
func (l *Loader) Rows() int64 { return l.rows }

// DiskBytes is how much disk the load's files take now.
func (l *Loader) DiskBytes() int64 {
	sizes, err := fileSizes(l.s.o.fs, l.dir)
	if err != nil {
		return 0
	}
	var n int64
	for _, size := range sizes {
		n += size
	}
	return n
}

// Finish makes the load durable and lets it take over from the generation that
// was served, in one write: rows, source and position. A scan that was made
// before keeps reading the old rows. If it fails, the old generation goes on
// being served and the load is over.
func (l *Loader) Finish(src Source, end id.LSN) error {
	g, err := l.Load(src, end)
	if err != nil {
		return err
	}
	return g.over(g.flip(end, nil))
}

// Load makes the rows durable as a generation that is not served yet and shows
// src as of end. The load is over, but no other can begin before the
// generation is flipped or dropped.
func (l *Loader) Load(src Source, end id.LSN) (*Generation, error) {
	if l.over {
		return nil, ErrClosed
	}
	if err := l.load(); err != nil {
		return nil, l.s.check(errors.Join(err, l.Abort()))
	}
	g := &Generation{s: l.s, src: src, r: record{gen: l.gen, end: end, rows: l.subs, sum: l.sum}}
	if err := l.release(); err != nil {
		return nil, errors.Join(err, g.Drop())
	}
	return g, nil
}

func (l *Loader) load() error {
	done, err := l.s.use()
	if err != nil {
		return err
	}
	defer done()
	if l.err != nil {
		return l.err
	}
	if err := errors.Join(l.spill(), l.awaitSpill()); err != nil {
		return err
	}
	l.chunk, l.spare = chunk{}, chunk{}
	tables, err := l.build()
	if err != nil {
		return err
	}
	return l.ingest(tables)
}

// Abort ends a load without effect. After Finish or Load it does nothing.
func (l *Loader) Abort() error {
	if l.over {
		return nil
	}
	err := l.release()
	l.s.endLoad()
	return err
}

// release gives back the load's memory and files.
func (l *Loader) release() error {
	l.over = true
	_ = l.awaitSpill() // what it wrote goes
	l.chunk, l.spare = chunk{}, chunk{}
	if l.parts != nil {
		_ = l.parts.Close() // it goes
	}
	if l.runs != nil {
		_ = l.runs.Close() // likewise, if the merge has not removed it
	}
	if err := l.s.o.fs.RemoveAll(l.dir); err != nil {
		return fmt.Errorf("remove folder of load: %w", err)
	}
	return nil
}

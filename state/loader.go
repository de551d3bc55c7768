package state

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"dinnerbell/state/extsort"
	"dinnerbell/state/id"
	"dinnerbell/state/statedir"
)

// Loader fills a new generation of rows beside the generation that is served. It has
// one owner. Memory is bounded: the loader collects rows into a chunk and, while the
// next chunk fills, writes a full chunk as a sorted run of the row index and, unsorted,
// into ranges of join keys (package extsort). Finish merges the runs, sorts each range,
// and writes tables that Pebble puts at the bottom of its tree. So a load writes every
// row twice, leaves nothing to compact, and finds every duplicate.
type Loader struct {
	s           *Store
	gen         uint32
	dir         string
	chunk       loadChunk        // collects rows
	spare       loadChunk        // the next chunk; empty while a spill has it
	spilling    chan spillResult // receives the result of the spill under way; nil: there is none
	runs        *extsort.Runs    // of the row index; nil until the first spill
	ranges      *extsort.Ranges  // join keys; nil until the first spill
	rows        int64
	subs        int64
	fingerprint uint64       // see fingerprint.go
	files       atomic.Int64 // number of file names given out
	ended       bool
	err         error // of an Add or a spill: the load cannot go on
}

// loadSpaces are the keyspaces of a generation.
var loadSpaces = [...]byte{spaceJoin, spaceRow}

// NewGeneration begins a load. There can be one at a time ([ErrLoading]). Changes that
// are applied during the load go to the generation that is served: after Finish, the
// caller must follow the source from the load's own position.
func (s *Store) NewGeneration() (*Loader, error) {
	done, err := s.acquire()
	if err != nil {
		return nil, err
	}
	defer done()
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	if s.loading {
		return nil, ErrLoading
	}
	dir := s.o.fs.PathJoin(s.dir, statedir.LoadName)
	if err := s.o.fs.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder for load: %w", err)
	}
	l := &Loader{s: s, gen: s.nextGen, dir: dir}
	// A load that fails uses up its number too: rows that it put into the store must
	// never be taken for rows of the next load.
	s.nextGen++
	s.loading = true
	return l, nil
}

// Add adds a row, in any order. "" is NULL.
func (l *Loader) Add(id id.RowID, restaurant, client id.ID) error {
	switch {
	case l.ended:
		return ErrClosed
	case l.err != nil:
		return l.err
	case id == "":
		return errors.New("load row: no row id")
	}
	r := storedRow{restaurant, client, true}
	l.fingerprint += l.chunk.addRow(id, r)
	l.rows++
	if r.isSubscription() {
		l.subs++
	}
	if l.chunk.memorySize() >= l.s.o.chunkBytes {
		l.err = l.spillChunk()
	}
	return l.err
}

// Rows returns the number of rows added.
func (l *Loader) Rows() int64 { return l.rows }

// DiskBytes returns how much disk the load's files take now.
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

// Finish makes the load durable and lets it take over from the generation that is
// served, in one write: rows, source and position. A scan that was made before still
// reads the old rows. If Finish fails, the old generation is still served and the load
// is over.
func (l *Loader) Finish(src Source, end id.LSN) error {
	g, err := l.Load(src, end)
	if err != nil {
		return err
	}
	return g.finish(g.takeOver(end, nil))
}

// Load makes the rows durable as a generation that mirrors src as of end and is not
// served yet. The load is over, but no other load can begin before the generation takes
// over or is dropped.
func (l *Loader) Load(src Source, end id.LSN) (*Generation, error) {
	if l.ended {
		return nil, ErrClosed
	}
	if err := l.writeTables(); err != nil {
		return nil, l.s.checkDamage(errors.Join(err, l.Abort()))
	}
	g := &Generation{s: l.s, src: src, r: stateRecord{gen: l.gen, end: end, rows: l.subs, sum: l.fingerprint}}
	if err := l.releaseFiles(); err != nil {
		return nil, errors.Join(err, g.Drop())
	}
	return g, nil
}

func (l *Loader) writeTables() error {
	done, err := l.s.acquire()
	if err != nil {
		return err
	}
	defer done()
	if l.err != nil {
		return l.err
	}
	if err := errors.Join(l.spillChunk(), l.awaitSpill()); err != nil {
		return err
	}
	l.chunk, l.spare = loadChunk{}, loadChunk{}
	tables, err := l.buildTables()
	if err != nil {
		return err
	}
	return l.ingestTables(tables)
}

// Abort ends a load without effect. After Finish or Load it does nothing.
func (l *Loader) Abort() error {
	if l.ended {
		return nil
	}
	err := l.releaseFiles()
	l.s.endLoad()
	return err
}

// releaseFiles releases the load's memory and removes its files.
func (l *Loader) releaseFiles() error {
	l.ended = true
	_ = l.awaitSpill() // its files are removed below
	l.chunk, l.spare = loadChunk{}, loadChunk{}
	if l.ranges != nil {
		_ = l.ranges.Close() // the file is removed below
	}
	if l.runs != nil {
		_ = l.runs.Close() // the file is removed below, if the merge has not removed it
	}
	if err := l.s.o.fs.RemoveAll(l.dir); err != nil {
		return fmt.Errorf("remove folder of load: %w", err)
	}
	return nil
}

// loadChunk is a part of a load in memory: rows one after the other in an arena, each as
// restaurant, client (00 for NULL), row id. So the tail of a join key and the value of a
// row are contiguous pieces of the arena.
type loadChunk struct {
	arena   []byte
	entries []chunkEntry
	sorter  extsort.Sorter // by row id
}

// chunkEntry locates a row in the arena: ids at [at, id), row id at [id, end).
type chunkEntry struct {
	at, id, end uint32
	sub         bool // the row has both ids: it is a subscription
}

// entryBytes is the memory of an entry beside the arena once the chunk is sorted: the
// entry itself, and its place in the sorter's two lists.
const entryBytes = 16 + 2*16

// addRow appends a row and returns its fingerprint.
func (c *loadChunk) addRow(id id.RowID, r storedRow) (sum uint64) {
	e := chunkEntry{at: uint32(len(c.arena)), sub: r.isSubscription()}
	c.arena = r.appendValue(c.arena)
	e.id = uint32(len(c.arena))
	c.arena = append(c.arena, id...)
	e.end = uint32(len(c.arena))
	c.entries = append(c.entries, e)
	return xxhash.Sum64(c.joinKey(e))
}

// memorySize returns the memory of the arena and, once sorted, of the entries.
func (c *loadChunk) memorySize() int { return len(c.arena) + entryBytes*len(c.entries) }

func (c *loadChunk) reset() { c.arena, c.entries = c.arena[:0], c.entries[:0] }

func (c *loadChunk) rowID(e chunkEntry) []byte   { return c.arena[e.id:e.end] }
func (c *loadChunk) value(e chunkEntry) []byte   { return c.arena[e.at:e.id] }
func (c *loadChunk) joinKey(e chunkEntry) []byte { return c.arena[e.at:e.end] }

// sortedEntries returns the entries in the order of row ids.
func (c *loadChunk) sortedEntries() []extsort.RankedEntry {
	return c.sorter.Sort(len(c.entries), 0, func(i uint32) []byte { return c.rowID(c.entries[i]) })
}

// spillResult ends a spill and returns its chunk for reuse.
type spillResult struct {
	chunk loadChunk
	err   error
}

// spillChunk begins to write the chunk, row index and join keys at the same time, and
// puts an empty chunk in its place. It waits for the previous spill and returns that
// spill's error.
func (l *Loader) spillChunk() error {
	if len(l.chunk.entries) == 0 {
		return nil
	}
	if err := errors.Join(l.awaitSpill(), l.s.MakeRoom(0)); err != nil {
		return err
	}
	if l.runs == nil {
		runs, err := l.newRuns(spaceRow)
		if err != nil {
			return err
		}
		l.runs = runs
	}
	full := l.chunk
	l.chunk, l.spare = l.spare, loadChunk{}
	l.chunk.reset()
	l.spilling = make(chan spillResult, 1)
	go func(end chan<- spillResult) {
		rows := make(chan error, 1)
		go func() { rows <- l.runs.Add(full.spillRows) }()
		err := l.spillJoins(&full)
		end <- spillResult{full, errors.Join(err, <-rows)}
	}(l.spilling)
	return nil
}

// awaitSpill waits for the spill under way, if there is one.
func (l *Loader) awaitSpill() error {
	if l.spilling == nil {
		return nil
	}
	end := <-l.spilling
	l.spilling, l.spare = nil, end.chunk
	return end.err
}

// newFileName returns a name for a file of the load.
func (l *Loader) newFileName(kind string, space byte) string {
	return l.s.o.fs.PathJoin(l.dir, fmt.Sprintf("%s-%02x-%06d.sst", kind, space, l.files.Add(1)))
}

// newRuns makes a file of sorted runs.
func (l *Loader) newRuns(space byte) (*extsort.Runs, error) {
	name := l.newFileName("runs", space)
	f, err := l.s.o.fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, fmt.Errorf("make file of sorted runs: %w", err)
	}
	return extsort.NewRuns(f, func() error { return l.s.o.fs.Remove(name) }), nil
}

// spillRows writes the rows in order. It keeps duplicates, which the merge reports.
func (c *loadChunk) spillRows(w *extsort.RunWriter) error {
	for _, r := range c.sortedEntries() {
		e := c.entries[r.Entry]
		if err := w.Add(c.rowID(e), c.value(e)); err != nil {
			return err
		}
	}
	return nil
}

// spillJoins divides the chunk's subscriptions among the ranges. The first chunk is the
// sample that determines the ranges.
func (l *Loader) spillJoins(c *loadChunk) error {
	if l.ranges == nil {
		f, err := l.s.o.fs.Create(l.newFileName("ranges", spaceJoin), vfs.WriteCategoryUnspecified)
		if err != nil {
			return fmt.Errorf("make file of ranges: %w", err)
		}
		var sample extsort.KeyBuffer
		for _, e := range c.entries {
			if e.sub {
				sample.Add(c.joinKey(e))
			}
		}
		l.ranges = extsort.NewRanges(f, &sample, l.s.o.chunkBytes/2)
	}
	for _, e := range c.entries {
		if !e.sub {
			continue
		}
		if err := l.ranges.Add(c.joinKey(e)); err != nil {
			return err
		}
	}
	return nil
}

// endLoad lets the next load begin.
func (s *Store) endLoad() {
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	s.loading = false
}

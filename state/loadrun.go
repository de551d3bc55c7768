package state

import (
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"dinnerbell/state/extsort"
	"dinnerbell/state/id"
)

// chunk is a part of a load in memory: rows one after the other in an arena,
// each as restaurant, client (00 for NULL), row id. So the tail of a join key
// and the value of a row are contiguous pieces of it.
type chunk struct {
	arena   []byte
	entries []entry
	order   extsort.Sorter // by row id
}

// entry locates a row in the arena: ids at [at, id), row id at [id, end).
type entry struct {
	at, id, end uint32
	sub         bool // has both ids
}

// entryBytes is what an entry takes beside the arena once the chunk is sorted:
// itself, and its place in a list and a spare one.
const entryBytes = 16 + 2*16

// add appends a row and returns its fingerprint.
func (c *chunk) add(id id.RowID, r row) (sum uint64) {
	e := entry{at: uint32(len(c.arena)), sub: r.subscribed()}
	c.arena = r.appendValue(c.arena)
	e.id = uint32(len(c.arena))
	c.arena = append(c.arena, id...)
	e.end = uint32(len(c.arena))
	c.entries = append(c.entries, e)
	return xxhash.Sum64(c.joinKey(e))
}

// size is what the chunk takes in the arena and, once sorted, in entries.
func (c *chunk) size() int { return len(c.arena) + entryBytes*len(c.entries) }

func (c *chunk) reset() { c.arena, c.entries = c.arena[:0], c.entries[:0] }

func (c *chunk) rowID(e entry) []byte   { return c.arena[e.id:e.end] }
func (c *chunk) value(e entry) []byte   { return c.arena[e.at:e.id] }
func (c *chunk) joinKey(e entry) []byte { return c.arena[e.at:e.end] }

// sorted gives the entries in the order of row ids.
func (c *chunk) sorted() []extsort.Ranked {
	return c.order.Sort(len(c.entries), 0, func(i uint32) []byte { return c.rowID(c.entries[i]) })
}

// spilt is the end of a spill, which gives its chunk back.
type spilt struct {
	chunk chunk
	err   error
}

// spill begins to write the chunk, row index and join keys at once, and leaves an
// empty one to be filled meanwhile. It waits for the spill before it, and returns
// its error.
func (l *Loader) spill() error {
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
	l.chunk, l.spare = l.spare, chunk{}
	l.chunk.reset()
	l.spilt = make(chan spilt, 1)
	go func(end chan<- spilt) {
		rows := make(chan error, 1)
		go func() { rows <- l.runs.Add(full.spillRows) }()
		err := l.spillJoins(&full)
		end <- spilt{full, errors.Join(err, <-rows)}
	}(l.spilt)
	return nil
}

// awaitSpill waits for the spill under way, if there is one.
func (l *Loader) awaitSpill() error {
	if l.spilt == nil {
		return nil
	}
	end := <-l.spilt
	l.spilt, l.spare = nil, end.chunk
	return end.err
}

// newPath names a file of the load.
func (l *Loader) newPath(kind string, space byte) string {
	return l.s.o.fs.PathJoin(l.dir, fmt.Sprintf("%s-%02x-%06d.sst", kind, space, l.files.Add(1)))
}

// NewRuns makes a file of sorted runs.
func (l *Loader) newRuns(space byte) (*extsort.Runs, error) {
	name := l.newPath("runs", space)
	f, err := l.s.o.fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, fmt.Errorf("make file of sorted runs: %w", err)
	}
	return extsort.NewRuns(f, func() error { return l.s.o.fs.Remove(name) }), nil
}

// spillRows leaves duplicates in, which the merge names.
func (c *chunk) spillRows(w *extsort.RunWriter) error {
	for _, r := range c.sorted() {
		e := c.entries[r.Entry]
		if err := w.Add(c.rowID(e), c.value(e)); err != nil {
			return err
		}
	}
	return nil
}

// spillJoins divides the chunk's subscriptions among the ranges, which the first
// chunk decides on.
func (l *Loader) spillJoins(c *chunk) error {
	if l.parts == nil {
		f, err := l.s.o.fs.Create(l.newPath("ranges", spaceJoin), vfs.WriteCategoryUnspecified)
		if err != nil {
			return fmt.Errorf("make file of ranges: %w", err)
		}
		var sample extsort.KeyBuffer
		for _, e := range c.entries {
			if e.sub {
				sample.Add(c.joinKey(e))
			}
		}
		l.parts = extsort.NewRanges(f, &sample, l.s.o.chunkBytes/2)
	}
	for _, e := range c.entries {
		if !e.sub {
			continue
		}
		if err := l.parts.Add(c.joinKey(e)); err != nil {
			return err
		}
	}
	return nil
}

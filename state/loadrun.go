package state

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// tableBytes is the size at which a merged table ends and the next begins.
const tableBytes = 32 << 20

// chunk is a part of a load in memory: rows one after the other in an arena,
// each as restaurant, client (00 for NULL), row id. So the tail of a join key
// and the value of a row are contiguous pieces of it.
type chunk struct {
	arena   []byte
	entries []entry
	rows    order             // by row id
	joins   order             // by join key
	names   []string          // of its restaurants, each once
	numbers map[string]uint64 // where they are in names
}

// entry locates a row in the arena: ids at [at, id), row id at [id, end).
type entry struct {
	at, id, end uint32
	sub         bool // has both ids
}

// entryBytes is what an entry takes beside the arena once the chunk is sorted:
// itself, and its place in two lists and their spare ones.
const entryBytes = 16 + 4*16

// add appends a row and returns its fingerprint.
func (c *chunk) add(id RowID, r row) (sum uint64) {
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

func (c *chunk) reset() {
	c.arena, c.entries, c.names = c.arena[:0], c.entries[:0], c.names[:0]
	clear(c.numbers)
}

func (c *chunk) rowID(e entry) []byte   { return c.arena[e.id:e.end] }
func (c *chunk) value(e entry) []byte   { return c.arena[e.at:e.id] }
func (c *chunk) joinKey(e entry) []byte { return c.arena[e.at:e.end] }

// sortedRows gives the entries in the order of row ids.
func (c *chunk) sortedRows() []ranked {
	c.rows.reset()
	for i, e := range c.entries {
		c.rows.add(sortPrefix(c.rowID(e)), i)
	}
	c.rows.sort(func(i uint32) []byte { return c.rowID(c.entries[i]) })
	return c.rows.list
}

// sortedJoins gives the entries that are subscriptions in the order of join
// keys. Rows of one restaurant share the beginning of these, however long, so
// restaurants are sorted by themselves: the rank of one and the beginning of the
// client are a number of the same order.
func (c *chunk) sortedJoins() []ranked {
	c.joins.reset()
	for i, e := range c.entries {
		if e.sub {
			c.joins.add(c.number(c.restaurant(e)), i)
		}
	}
	byName := make([]int, len(c.names))
	for i := range byName {
		byName[i] = i
	}
	slices.SortFunc(byName, func(a, b int) int { return cmp.Compare(c.names[a], c.names[b]) })
	ranks := make([]uint64, len(c.names))
	for rank, i := range byName {
		ranks[i] = uint64(rank)
	}
	for i := range c.joins.list {
		r := &c.joins.list[i]
		e := c.entries[r.entry]
		client := c.arena[int(e.at)+len(c.names[r.sort]) : e.end]
		r.sort = ranks[r.sort]<<32 | sortPrefix(client)>>32
	}
	c.joins.sort(func(i uint32) []byte { return c.joinKey(c.entries[i]) })
	return c.joins.list
}

// number counts restaurants in the order in which they come.
func (c *chunk) number(restaurant []byte) uint64 {
	if n, ok := c.numbers[string(restaurant)]; ok {
		return n
	}
	if c.numbers == nil {
		c.numbers = map[string]uint64{}
	}
	name, n := string(restaurant), uint64(len(c.names))
	c.names, c.numbers[name] = append(c.names, name), n
	return n
}

// restaurant is the restaurant of a subscription.
func (c *chunk) restaurant(e entry) []byte {
	return c.arena[e.at : int(e.at)+idLen(c.arena[e.at:e.id])]
}

// sortPrefix is the first eight bytes of key as a number of the same order.
// Zero padding can make it equal for different keys, never disordered.
func sortPrefix(key []byte) uint64 {
	if len(key) >= 8 {
		return binary.BigEndian.Uint64(key)
	}
	var b [8]byte
	copy(b[:], key)
	return binary.BigEndian.Uint64(b[:])
}

// spilt is the end of a spill, which gives its chunk back.
type spilt struct {
	chunk chunk
	err   error
}

// spill begins to write the chunk as a sorted run of each keyspace, both at
// once, and leaves an empty one to be filled meanwhile. It waits for the spill
// before it, and returns its error.
func (l *Loader) spill() error {
	if len(l.chunk.entries) == 0 {
		return nil
	}
	if err := errors.Join(l.awaitSpill(), l.s.MakeRoom(0)); err != nil {
		return err
	}
	l.files++
	var names [len(loadSpaces)]string
	for i, space := range loadSpaces {
		names[i] = l.path("run", space, l.files)
		l.runs[i] = append(l.runs[i], names[i])
	}
	full := l.chunk
	l.chunk, l.spare = l.spare, chunk{}
	l.chunk.reset()
	l.spilt = make(chan spilt, 1)
	go func(end chan<- spilt) {
		var errs [len(loadSpaces)]error
		var wait sync.WaitGroup
		for i, space := range loadSpaces {
			wait.Go(func() { errs[i] = l.spillSpace(&full, space, names[i]) })
		}
		wait.Wait()
		end <- spilt{full, errors.Join(errs[:]...)}
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

func (l *Loader) path(kind string, space byte, n int) string {
	return l.s.o.fs.PathJoin(l.dir, fmt.Sprintf("%s-%02x-%06d.sst", kind, space, n))
}

func (l *Loader) spillSpace(c *chunk, space byte, name string) error {
	f, err := l.s.o.fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("make sorted run: %w", err)
	}
	w := newRunWriter(f)
	if space == spaceJoin {
		err = c.spillJoins(w)
	} else {
		err = c.spillRows(w)
	}
	if err = errors.Join(err, w.close()); err != nil {
		return fmt.Errorf("write sorted run: %w", err)
	}
	return nil
}

// spillJoins leaves duplicates in, which the merge names.
func (c *chunk) spillJoins(w *runWriter) error {
	for _, r := range c.sortedJoins() {
		if err := w.add(c.joinKey(c.entries[r.entry]), nil); err != nil {
			return err
		}
	}
	return nil
}

func (c *chunk) spillRows(w *runWriter) error {
	for _, r := range c.sortedRows() {
		e := c.entries[r.entry]
		if err := w.add(c.rowID(e), c.value(e)); err != nil {
			return err
		}
	}
	return nil
}

// merge merges the runs of each keyspace into tables without overlap.
func (l *Loader) merge() (tables []string, err error) {
	var errs [len(loadSpaces)]error
	var outs [len(loadSpaces)][]string
	var wait sync.WaitGroup
	for i, space := range loadSpaces {
		want := l.rows
		if space == spaceJoin {
			want = l.subs
		}
		wait.Go(func() { outs[i], errs[i] = l.mergeSpace(space, l.runs[i], want) })
	}
	wait.Wait()
	return slices.Concat(outs[:]...), errors.Join(errs[:]...)
}

// mergeSpace merges runs. It returns ErrDuplicateRow if a key comes twice, which
// only one with the same row id can.
func (l *Loader) mergeSpace(space byte, runs []string, want int64) (tables []string, err error) {
	if len(runs) == 0 {
		return nil, nil
	}
	m, err := openMerger(l.s.o.fs, runs)
	if err != nil {
		return nil, err
	}
	out := tableWriter{l: l, space: space}
	n, err := l.mergeInto(&out, m)
	if err = errors.Join(err, out.close(), m.close()); err != nil {
		return nil, fmt.Errorf("merge sorted runs: %w", err)
	}
	if n != want {
		return nil, fmt.Errorf("merge sorted runs: %d records of %d: %w", n, want, errDamagedRun)
	}
	return out.names, nil
}

// mergeInto writes all records and counts them.
func (l *Loader) mergeInto(out *tableWriter, m *merger) (n int64, err error) {
	full := appendGen(nil, out.space, l.gen)
	for key, value := m.record(); key != nil; key, value = m.record() {
		if n > 0 && bytes.Equal(full[genLen:], key) {
			return n, duplicate(out.space, full)
		}
		full = append(full[:genLen], key...)
		if err := out.set(full, value); err != nil {
			return n, err
		}
		n++
		if err := m.next(); err != nil {
			return n, err
		}
	}
	return n, nil
}

func duplicate(space byte, key []byte) error {
	id := key[genLen:]
	if at, ok := joinRow(key); space == spaceJoin && ok {
		id = key[at:]
	}
	return fmt.Errorf("row %s: %w; source.columns.id must name the table's key", RowID(id).Text(), ErrDuplicateRow)
}

// tableWriter cuts a sorted stream into tables.
type tableWriter struct {
	l     *Loader
	space byte
	w     *sstable.Writer
	names []string
}

func (t *tableWriter) set(key, value []byte) error {
	if t.w != nil && t.w.Raw().EstimatedSize() >= tableBytes {
		if err := t.close(); err != nil {
			return err
		}
		if err := t.l.s.MakeRoom(0); err != nil {
			return err
		}
	}
	if t.w == nil {
		name := t.l.path("table", t.space, len(t.names))
		w, err := t.l.newTable(name)
		if err != nil {
			return err
		}
		t.w, t.names = w, append(t.names, name)
	}
	return t.w.Set(key, value)
}

func (t *tableWriter) close() error {
	if t.w == nil {
		return nil
	}
	w := t.w
	t.w = nil
	return w.Close()
}

// newTable opens a table file for the bottom level. Close syncs it.
func (l *Loader) newTable(name string) (*sstable.Writer, error) {
	f, err := l.s.o.fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, fmt.Errorf("make table file: %w", err)
	}
	o := l.s.pebbleOpts.MakeWriterOptions(len(l.s.pebbleOpts.Levels)-1, l.s.db.TableFormat())
	return sstable.NewWriter(objstorageprovider.NewFileWritable(f), o), nil
}

// ingest puts the tables into the store, durably. They share no key with
// anything in it: the generation is new.
func (l *Loader) ingest(tables []string) error {
	if len(tables) == 0 {
		return nil
	}
	if err := l.s.db.Ingest(context.Background(), tables); err != nil {
		return fmt.Errorf("ingest load: %w", err)
	}
	return nil
}

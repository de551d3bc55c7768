package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/sstable/block"
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sync/errgroup"

	"dinnerbell/state/extsort"
	"dinnerbell/state/id"
)

const (
	// tableBytes is the size at which a table ends and the next begins.
	tableBytes = 32 << 20
	// maxBuilders is the largest number of goroutines that make tables. Each holds a
	// range of keys in memory.
	maxBuilders = 4
)

// tableBuilder makes the tables of a load from its runs and ranges.
type tableBuilder struct {
	l    *Loader
	keys extsort.RangeReader

	mu     sync.Mutex // guards the fields below
	tables []string
	rows   int64 // keys of the row index that were written
	joins  int64 // join keys that were written
}

// buildTask makes some of the tables. buffer is scratch memory.
type buildTask func(buffer *extsort.KeyBuffer) error

// buildTables makes tables whose keys do not overlap. Its goroutines take one task after
// the other.
func (l *Loader) buildTables() (tables []string, err error) {
	if l.rows == 0 {
		return nil, nil
	}
	if err := l.ranges.Finish(); err != nil {
		return nil, err
	}
	b := &tableBuilder{l: l, keys: l.ranges.Reader(l.s.o.chunkBytes)}
	list := b.listTasks()
	tasks := make(chan buildTask, len(list))
	for _, t := range list {
		tasks <- t
	}
	close(tasks)
	g, ctx := errgroup.WithContext(context.Background())
	for range min(maxBuilders, runtime.GOMAXPROCS(0), len(list)) {
		g.Go(func() error {
			var buffer extsort.KeyBuffer
			for t := range tasks {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err := t(&buffer); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if b.rows != l.rows || b.joins != l.subs {
		return nil, fmt.Errorf("build tables: %d of %d rows and %d of %d join keys: %w", b.rows, l.rows, b.joins, l.subs, extsort.ErrDamaged)
	}
	return b.tables, nil
}

// listTasks returns the tasks. The first makes the row index, the longest task. Each of
// the others takes as many ranges of join keys as fill a table; the last tasks are
// smaller, so that all goroutines end at about the same time.
func (b *tableBuilder) listTasks() []buildTask {
	list := []buildTask{func(*extsort.KeyBuffer) error { return b.buildRows() }}
	all := b.l.ranges.All()
	left := int64(0)
	for i := range all {
		left += all[i].Size()
	}
	for from := 0; from < len(all); {
		enough := min(max(left/(2*maxBuilders), tableBytes/8), tableBytes)
		to, size := from, int64(0)
		for to < len(all) && size < enough {
			size += all[to].Size()
			to++
		}
		some := all[from:to]
		list = append(list, func(buffer *extsort.KeyBuffer) error { return b.buildJoins(some, buffer) })
		from, left = to, left-size
	}
	return list
}

// buildRows merges the runs of the row index.
func (b *tableBuilder) buildRows() error {
	out := newTableWriter(b.l, spaceRow)
	return b.finishTask(out, b.mergeRuns(out, b.l.runs))
}

// buildJoins makes tables of the join keys of some ranges.
func (b *tableBuilder) buildJoins(some []extsort.Range, buffer *extsort.KeyBuffer) error {
	out := newTableWriter(b.l, spaceJoin)
	for i := range some {
		if err := b.buildRange(out, &some[i], buffer); err != nil {
			return b.finishTask(out, err)
		}
	}
	return b.finishTask(out, nil)
}

// buildRange writes one range, sorted in memory, or in runs if it does not fit into
// memory.
func (b *tableBuilder) buildRange(out *tableWriter, d *extsort.Range, buffer *extsort.KeyBuffer) error {
	if b.keys.FitsBuffer(d) {
		return b.keys.EachBuffer(d, buffer, func() error {
			for _, r := range buffer.Sorted() {
				if err := out.addRecord(buffer.Key(r.Entry), nil); err != nil {
					return err
				}
			}
			return nil
		})
	}
	sorted, err := b.l.newRuns(spaceJoin)
	if err != nil {
		return err
	}
	err = b.keys.EachBuffer(d, buffer, func() error {
		return sorted.Add(func(w *extsort.RunWriter) error {
			for _, r := range buffer.Sorted() {
				if err := w.Add(buffer.Key(r.Entry), nil); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		return errors.Join(err, sorted.Remove())
	}
	return b.mergeRuns(out, sorted)
}

// mergeRuns writes the records of runs, and removes the runs.
func (b *tableBuilder) mergeRuns(out *tableWriter, sorted *extsort.Runs) error {
	if err := errors.Join(sorted.Merge(b.l.s.o.fanIn, out.addRecord), sorted.Remove()); err != nil {
		return fmt.Errorf("merge sorted runs: %w", err)
	}
	return nil
}

// finishTask closes the tables of a task, adds them to the result and joins their errors
// to err.
func (b *tableBuilder) finishTask(out *tableWriter, err error) error {
	err = errors.Join(err, out.closeTables())
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tables = append(b.tables, out.names...)
	if out.space == spaceRow {
		b.rows += out.records
	} else {
		b.joins += out.records
	}
	return err
}

// tableWriter writes sorted records into tables of a limited size.
type tableWriter struct {
	l       *Loader
	space   byte
	key     []byte // of the last record
	records int64
	names   []string
	w       *sstable.Writer
	closing chan error // receives the result of closing the previous table, while the next one is written; nil: there is none
}

func newTableWriter(l *Loader, space byte) *tableWriter {
	return &tableWriter{l: l, space: space, key: appendGen(nil, space, l.gen)}
}

// addRecord appends a record. Its key comes without keyspace and generation. It returns
// ErrDuplicateRow if a key comes twice: then two rows have the same row id.
func (t *tableWriter) addRecord(key, value []byte) error {
	if t.records > 0 && bytes.Equal(t.key[genLen:], key) {
		return duplicateError(t.space, t.key)
	}
	t.key = append(t.key[:genLen], key...)
	t.records++
	const often = 1 << 8 // records between two looks at the table's size
	if t.w == nil || t.records%often == 0 && t.w.Raw().EstimatedSize() >= tableBytes {
		if err := t.beginTable(); err != nil {
			return err
		}
	}
	return t.w.Set(t.key, value)
}

func duplicateError(space byte, key []byte) error {
	rowID := key[genLen:]
	if at, ok := joinRow(key); space == spaceJoin && ok {
		rowID = key[at:]
	}
	return fmt.Errorf("row %s: %w; source.columns.id must name the table's key", id.RowID(rowID).Text(), ErrDuplicateRow)
}

// beginTable begins a table.
func (t *tableWriter) beginTable() error {
	if err := t.endTable(); err != nil {
		return err
	}
	if err := t.l.s.MakeRoom(0); err != nil {
		return err
	}
	name := t.l.newFileName("table", t.space)
	w, err := t.l.newTable(name, t.space)
	if err != nil {
		return err
	}
	t.w, t.names = w, append(t.names, name)
	return nil
}

// endTable begins to close the table, on a goroutine because that waits for the disk, and
// waits until the previous table is closed.
func (t *tableWriter) endTable() error {
	if t.w == nil {
		return nil
	}
	err := t.awaitClose()
	w, closing := t.w, make(chan error, 1)
	t.w, t.closing = nil, closing
	go func() { closing <- w.Close() }()
	return err
}

func (t *tableWriter) awaitClose() error {
	if t.closing == nil {
		return nil
	}
	err := <-t.closing
	t.closing = nil
	if err != nil {
		return fmt.Errorf("write table: %w", err)
	}
	return nil
}

// closeTables returns when all tables are on the disk.
func (t *tableWriter) closeTables() error { return errors.Join(t.endTable(), t.awaitClose()) }

// newTable opens a table file for the bottom level. Close syncs it.
func (l *Loader) newTable(name string, space byte) (*sstable.Writer, error) {
	f, err := l.s.o.fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, fmt.Errorf("make table file: %w", err)
	}
	o := l.s.pebbleOpts.MakeWriterOptions(len(l.s.pebbleOpts.Levels)-1, l.s.db.TableFormat())
	if space == spaceJoin {
		o.FilterPolicy = nil // the join only scans: no join key is ever looked up
		o.Compression = joinCompression
	} else {
		o.Compression = rowCompression
	}
	return sstable.NewWriter(objstorageprovider.NewFileWritable(f), o), nil
}

// The compression of a load's tables is cheaper than that of compactions, which would take
// as long as the sorting. It compresses blocks that shrink little as well. Measured as for
// newPebbleOptions: 60.9 bytes per subscription. Join keys are client ids for the most
// part, which do not shrink: zstd would save 2.3 bytes. In rows a restaurant may come
// again, of which zstd makes use: it saves 3.7 bytes.
var (
	joinCompression = alwaysCompress(*block.FastestCompression)
	rowCompression  = alwaysCompress(*block.BalancedCompression)
)

func alwaysCompress(p block.CompressionProfile) *block.CompressionProfile {
	p.MinReductionPercent, p.AdaptiveReductionCutoffPercent = 1, 0
	return &p
}

// ingestTables puts the tables into the store, durably. They share no key with the store,
// because the generation is new.
func (l *Loader) ingestTables(tables []string) error {
	if len(tables) == 0 {
		return nil
	}
	if err := l.s.db.Ingest(context.Background(), tables); err != nil {
		return fmt.Errorf("ingest load: %w", err)
	}
	return nil
}

// Package extsort sorts more records than fit into memory. It divides keys into
// ranges that are sorted in memory each ([Ranges]), and merges sorted runs
// ([Runs]). It knows neither the store nor Pebble: it works on files that the
// caller makes, which only the process that wrote them reads.
package extsort

import (
	"errors"
	"fmt"
	"io"
)

// File is a file that the caller has made and nobody else uses. It is written at
// its end and read at any place.
type File interface {
	io.Writer
	io.ReaderAt
	io.Closer
}

// Runs are sorted runs, one behind the other in one file, so that a sort of any
// size needs few descriptors. One goroutine at a time uses them.
type Runs struct {
	f        File         // nil once it is closed
	removing func() error // removes the closed file
	end      int64        // length of the file
	list     []runSpan
}

// runSpan locates a run in the file.
type runSpan struct{ at, end int64 }

// MaxFanIn is how many runs are merged at once, each with a block in memory. Where
// there are more, some of them are merged into one run first.
const MaxFanIn = 512

// NewRuns returns empty runs that take f over. remove removes the file.
func NewRuns(f File, remove func() error) *Runs { return &Runs{f: f, removing: remove} }

// Count returns how many runs there are.
func (r *Runs) Count() int { return len(r.list) }

// Add appends a run of the records that fill adds.
func (r *Runs) Add(fill func(w *RunWriter) error) error {
	w := newRunWriter(r.f)
	if err := errors.Join(fill(w), w.flushBlock()); err != nil {
		return fmt.Errorf("write sorted run: %w", err)
	}
	r.list = append(r.list, runSpan{r.end, r.end + w.written})
	r.end += w.written
	return nil
}

// Merge calls do with the records of all runs, in the order of keys; records with
// the same key come one after the other. It reads at most fanIn runs at once, which
// must be at least two.
func (r *Runs) Merge(fanIn int, do func(key, value []byte) error) error {
	for len(r.list) > fanIn {
		n := min(fanIn, len(r.list)-fanIn+1)
		some := r.list[:n]
		r.list = r.list[n:]
		if err := r.Add(func(w *RunWriter) error { return r.each(some, w.Add) }); err != nil {
			return err
		}
	}
	return r.each(r.list, do)
}

func (r *Runs) each(some []runSpan, do func(key, value []byte) error) error {
	readers := make([]io.Reader, len(some))
	for i, s := range some {
		readers[i] = io.NewSectionReader(r.f, s.at, s.end-s.at)
	}
	m, err := newRunMerger(readers)
	if err != nil {
		return err
	}
	for key, value := m.currentRecord(); key != nil; key, value = m.currentRecord() {
		if err := do(key, value); err != nil {
			return err
		}
		if err := m.nextRecord(); err != nil {
			return err
		}
	}
	return nil
}

// Remove closes the file and removes it.
func (r *Runs) Remove() error {
	if err := errors.Join(r.Close(), r.removing()); err != nil {
		return fmt.Errorf("remove sorted runs: %w", err)
	}
	return nil
}

// Close closes the file, once.
func (r *Runs) Close() error {
	if r.f == nil {
		return nil
	}
	f := r.f
	r.f = nil
	return f.Close()
}

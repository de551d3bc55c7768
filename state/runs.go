package state

import (
	"errors"
	"fmt"
	"io"
)

// File is a file that the caller has made and nobody else uses: it is written at
// its end and read back anywhere.
type File interface {
	io.Writer
	io.ReaderAt
	io.Closer
}

// runs are sorted runs, one behind the other in a file of their own, so that a
// load of any size needs few descriptors. One goroutine uses them at a time.
type runs struct {
	f        File         // nil once it is closed
	removing func() error // removes the closed file
	end      int64        // of the file
	list     []runSpan
}

// runSpan is where a run lies.
type runSpan struct{ at, end int64 }

// maxFanIn is how many runs are merged at once. Each has a block in memory: of
// more runs, some are merged into one first.
const maxFanIn = 512

// newRuns returns empty runs that take f over. remove removes the file.
func newRuns(f File, remove func() error) *runs { return &runs{f: f, removing: remove} }

// count returns how many runs there are.
func (r *runs) count() int { return len(r.list) }

// add appends a run of what fill adds.
func (r *runs) add(fill func(w *runWriter) error) error {
	w := newRunWriter(r.f)
	if err := errors.Join(fill(w), w.flush()); err != nil {
		return fmt.Errorf("write sorted run: %w", err)
	}
	r.list = append(r.list, runSpan{r.end, r.end + w.written})
	r.end += w.written
	return nil
}

// merge calls do with the records of all runs, in order. Records with the same
// key stay apart. No more than fanIn runs, two at least, are read at once.
func (r *runs) merge(fanIn int, do func(key, value []byte) error) error {
	for len(r.list) > fanIn {
		n := min(fanIn, len(r.list)-fanIn+1)
		some := r.list[:n]
		r.list = r.list[n:]
		if err := r.add(func(w *runWriter) error { return r.each(some, w.add) }); err != nil {
			return err
		}
	}
	return r.each(r.list, do)
}

func (r *runs) each(some []runSpan, do func(key, value []byte) error) error {
	readers := make([]io.Reader, len(some))
	for i, s := range some {
		readers[i] = io.NewSectionReader(r.f, s.at, s.end-s.at)
	}
	m, err := newMerger(readers)
	if err != nil {
		return err
	}
	for key, value := m.record(); key != nil; key, value = m.record() {
		if err := do(key, value); err != nil {
			return err
		}
		if err := m.next(); err != nil {
			return err
		}
	}
	return nil
}

// remove closes the file and removes it.
func (r *runs) remove() error {
	if err := errors.Join(r.close(), r.removing()); err != nil {
		return fmt.Errorf("remove sorted runs: %w", err)
	}
	return nil
}

// close closes the file, once.
func (r *runs) close() error {
	if r.f == nil {
		return nil
	}
	f := r.f
	r.f = nil
	return f.Close()
}

package extsort

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
)

// addRun appends a run of records, each with its key reversed as the value.
func addRun(t *testing.T, r *Runs, keys []string) {
	t.Helper()
	err := r.Add(func(w *RunWriter) error {
		for _, k := range slices.Sorted(slices.Values(keys)) {
			value := []byte(k)
			slices.Reverse(value)
			if err := w.Add([]byte(k), value); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// memFile is a File in memory.
type memFile struct {
	*bytes.Reader // of all; each write makes a new one
	all           []byte
}

func newMemFile(content []byte) *memFile { return &memFile{bytes.NewReader(content), content} }

// Write implements io.Writer.
func (f *memFile) Write(p []byte) (int, error) {
	f.all = append(f.all, p...)
	f.Reader = bytes.NewReader(f.all)
	return len(p), nil
}

// Close implements io.Closer.
func (f *memFile) Close() error { return nil }

func makeRuns() (*Runs, *memFile) {
	f := newMemFile(nil)
	return NewRuns(f, func() error { return nil }), f
}

// Any number of runs of any length, keys of any length, come out in order,
// however many are merged at once.
func TestMerge(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(4, 2))
	for n := 1; n < 20; n++ {
		var all []string
		sorted, _ := makeRuns()
		for range n {
			var keys []string
			for range r.IntN(3000) * r.IntN(2) {
				var key []byte
				for range r.IntN(60) {
					key = append(key, "\x00ab\xff"[r.IntN(4)])
				}
				if r.IntN(500) == 0 {
					key = append(key, bytes.Repeat([]byte{'x'}, r.IntN(3*runBlock))...)
				}
				keys = append(keys, string(key))
			}
			all = append(all, keys...)
			addRun(t, sorted, keys)
		}
		slices.Sort(all)
		fanIn, i := 2+r.IntN(n+2), 0
		err := sorted.Merge(fanIn, func(key, value []byte) error {
			slices.Reverse(value)
			if i == len(all) || string(key) != all[i] || string(value) != all[i] {
				return fmt.Errorf("record %d of %d is %.20q: %.20q", i, len(all), key, value)
			}
			i++
			return nil
		})
		if err != nil || i != len(all) || len(sorted.list) > fanIn {
			t.Fatalf("%d runs, %d at once: %d of %d records, %d runs at the end: %v", n, fanIn, i, len(all), len(sorted.list), err)
		}
		if err := sorted.Remove(); err != nil {
			t.Fatal(err)
		}
	}
}

// A run with a byte that differs from the byte that was written is an error, whichever
// byte it is.
func TestDamagedRun(t *testing.T) {
	t.Parallel()
	whole, f := makeRuns()
	addRun(t, whole, []string{"a", "bc", "def"})
	good := f.all
	read := func(data []byte) error {
		m, err := newRunMerger([]io.Reader{bytes.NewReader(data)})
		for err == nil {
			if key, _ := m.currentRecord(); key == nil {
				break
			}
			err = m.nextRecord()
		}
		return err
	}
	if err := read(good); err != nil || len(good) != runHeader+2+2+2+4+2+6 {
		t.Fatalf("the good run of %d bytes: %v", len(good), err)
	}
	for i := range good {
		bad := slices.Clone(good)
		bad[i] ^= 0x01
		if read(bad) == nil {
			t.Errorf("a bit of byte %d was flipped, and nobody noticed", i)
		}
		if i > 0 && read(good[:i]) == nil {
			t.Errorf("only %d bytes are left, and nobody noticed", i)
		}
	}
}

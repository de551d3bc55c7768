package state

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// writeRun writes records, sorted, each with its key reversed as the value.
func writeRun(t *testing.T, fs vfs.FS, name string, keys []string) {
	t.Helper()
	f, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	w := newRunWriter(f)
	for _, k := range slices.Sorted(slices.Values(keys)) {
		value := []byte(k)
		slices.Reverse(value)
		if err := w.add([]byte(k), value); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
}

// Any number of runs of any length, keys of any length, come out in order.
func TestMerge(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(4, 2))
	for runs := 1; runs < 20; runs++ {
		fs := vfs.NewMem()
		var all, names []string
		for n := range runs {
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
			names, all = append(names, fmt.Sprint(n)), append(all, keys...)
			writeRun(t, fs, names[n], keys)
		}
		m, err := openMerger(fs, names)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(all)
		for i, want := range all {
			key, value := m.record()
			slices.Reverse(value)
			if key == nil || string(key) != want || string(value) != want {
				t.Fatalf("%d runs: record %d of %d is %.20q: %.20q, want %.20q", runs, i, len(all), key, value, want)
			}
			if err := m.next(); err != nil {
				t.Fatal(err)
			}
		}
		if key, _ := m.record(); key != nil {
			t.Errorf("%d runs: %.20q comes after the last", runs, key)
		}
		if err := m.close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A run that reads otherwise than it was written is an error, whatever byte it
// is in.
func TestDamagedRun(t *testing.T) {
	t.Parallel()
	fs := vfs.NewMem()
	writeRun(t, fs, "good", []string{"a", "bc", "def"})
	f, err := fs.Open("good")
	if err != nil {
		t.Fatal(err)
	}
	good := make([]byte, 100)
	n, _ := f.Read(good)
	good = good[:n]
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	read := func(data []byte) error {
		f, err := fs.Create("bad", vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		m, err := openMerger(fs, []string{"bad"})
		for err == nil {
			if key, _ := m.record(); key == nil {
				break
			}
			err = m.next()
		}
		return errors.Join(err, m.close())
	}
	if err := read(good); err != nil || n != runHeader+2+2+2+4+2+6 {
		t.Fatalf("the good run of %d bytes: %v", n, err)
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

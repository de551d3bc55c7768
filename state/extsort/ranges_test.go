package extsort

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// A range with a byte that differs from the byte that was written is an error, whichever
// byte it is.
func TestDamagedRange(t *testing.T) {
	t.Parallel()
	r, f := rand.New(rand.NewPCG(7, 7)), newMemFile(nil)
	var buffer KeyBuffer
	keys := alikeKeys(r, 40)
	for _, key := range keys {
		buffer.Add(key)
	}
	p := NewRanges(f, &buffer, 200)
	for _, key := range keys {
		if err := p.Add(key); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Finish(); err != nil {
		t.Fatal(err)
	}
	read := func(f File, limit int) (n int, err error) {
		reader := RangeReader{f: f, limit: limit}
		for i := range p.ranges {
			err := reader.EachBuffer(&p.ranges[i], &buffer, func() error { n += len(buffer.spans); return nil })
			if err != nil {
				return n, err
			}
		}
		return n, nil
	}
	for _, limit := range []int{1, 1000, 1 << 30} {
		if n, err := read(f, limit); n != len(keys) || err != nil {
			t.Fatalf("%d of %d keys: %v", n, len(keys), err)
		}
	}
	good := f.all
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x01
		if _, err := read(newMemFile(bad), 1<<30); err == nil {
			t.Errorf("a bit of byte %d was flipped, and nobody noticed", i)
		}
	}
}

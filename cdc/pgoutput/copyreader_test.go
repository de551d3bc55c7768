package pgoutput

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"dinnerbell/state/id"
)

// copyData encodes rows as COPY … (FORMAT binary) does; nil is NULL.
func copyData(rows ...[NeededColumns][]byte) []byte {
	b := append([]byte(copySignature), make([]byte, 8)...)
	for _, row := range rows {
		b = binary.BigEndian.AppendUint16(b, NeededColumns)
		for _, v := range row {
			if v == nil {
				b = binary.BigEndian.AppendUint32(b, noValue)
				continue
			}
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...)
		}
	}
	return append(b, 0xff, 0xff)
}

// collect is a reader whose rows end up in the list.
func collect(list *[]string) *CopyReader {
	return &CopyReader{Integers: [NeededColumns]bool{KeyColumn: true}, Pack: &id.Packer{}, Add: func(row id.RowID, restaurant, client id.ID) error {
		*list = append(*list, fmt.Sprintf("%s %q %q", row.Text(), restaurant.Text(), client.Text()))
		return nil
	}}
}

// The data may be cut anywhere.
func TestCopyReaderInPieces(t *testing.T) {
	t.Parallel()
	data := copyData(
		[NeededColumns][]byte{{0, 0, 0, 1}, []byte("r"), []byte("c")},
		[NeededColumns][]byte{{0xff, 0xff, 0xff, 0xff}, nil, []byte("c")},
		[NeededColumns][]byte{{0, 0, 0, 0, 0, 0, 1, 0}, []byte("123e4567-e89b-12d3-a456-426614174000"), []byte("")},
		[NeededColumns][]byte{{0, 5}, []byte("\xff"), []byte("c")},
	)
	want := []string{`1 "r" "c"`, `-1 "" "c"`, `256 "123e4567-e89b-12d3-a456-426614174000" ""`, `5 "" "c"`}
	for size := 1; size <= len(data); size++ {
		var got []string
		r := collect(&got)
		for piece := range slices.Chunk(data, size) {
			if _, err := r.Write(piece); err != nil {
				t.Fatalf("in pieces of %d bytes: %v", size, err)
			}
		}
		if !slices.Equal(got, want) || !r.Ended || r.Rows != 4 || r.BadIDs != 2 {
			t.Fatalf("in pieces of %d bytes: %q, ended %v, %d rows, %d bad ids; want %q", size, got, r.Ended, r.Rows, r.BadIDs, want)
		}
	}
}

func TestCopyReaderRefuses(t *testing.T) {
	t.Parallel()
	for name, data := range map[string][]byte{
		"another header":   bytes.Repeat([]byte("x"), 40),
		"with OIDs":        append([]byte(copySignature), 0, 1, 0, 0, 0, 0, 0, 0),
		"two columns":      append(copyData()[:copyHeaderLen], 0, 2),
		"a NULL id":        copyData([NeededColumns][]byte{nil, []byte("r"), []byte("c")}),
		"a 3-byte integer": copyData([NeededColumns][]byte{{1, 2, 3}, []byte("r"), []byte("c")}),
	} {
		var got []string
		if _, err := collect(&got).Write(data); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want errMalformed", name, err)
		}
	}
}

func FuzzCopyReader(f *testing.F) {
	f.Add(copyData([NeededColumns][]byte{{0, 0, 0, 1}, []byte("r"), nil}), uint8(3))
	f.Fuzz(func(t *testing.T, data []byte, size uint8) {
		var got []string
		r := collect(&got)
		for piece := range slices.Chunk(data, int(size)+1) {
			if _, err := r.Write(piece); err != nil {
				return
			}
		}
		if int64(len(got)) != r.Rows {
			t.Fatalf("%d rows were added, %d counted", len(got), r.Rows)
		}
	})
}

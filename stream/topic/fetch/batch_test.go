package fetch

import (
	"errors"
	"strings"
	"testing"

	"dinnerbell/internal/testenv/envtest/rawbatch"
)

// The reader never panics, holds more than its bound, or loops, whatever the bytes.
func FuzzReadBatch(f *testing.F) {
	for _, codec := range []rawbatch.Codec{rawbatch.Plain, rawbatch.Gzip, rawbatch.Snappy, rawbatch.LZ4, rawbatch.Zstd} {
		f.Add(int16(codec), int32(2), append(rawbatch.Record(0, "x"), rawbatch.Record(1, strings.Repeat("y", 300))...))
	}
	f.Add(int16(rawbatch.Zstd), int32(1), rawbatch.Bomb(f, rawbatch.Zstd, 1<<20))
	f.Add(int16(rawbatch.Snappy), int32(1), append(append([]byte{}, xerialMagic...), make([]byte, 20)...))
	f.Fuzz(func(t *testing.T, codec int16, count int32, records []byte) {
		const most = 1 << 10
		n := int32(0)
		b := recordBatch{magic: 2, attributes: codec & codecBits, count: count, records: records}
		err := b.readRecords(&batchInflater{}, most, func(r *Record) error {
			n++
			if held := len(r.Key) + len(r.Value) + len(r.headers); held > most && !r.Truncated {
				t.Errorf("%d bytes are held of a record", held)
			}
			r.EachHeader(func(string, []byte) {})
			return nil
		})
		if err == nil && n != max(count, 0) {
			t.Errorf("%d records of %d, and no error", n, count)
		}
		if errors.Is(err, errWalkStopped) {
			t.Error(err)
		}
	})
}

package fetch

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

const (
	// maxZstdWindow bounds zstd's window, which the decoder holds in memory. Encoders
	// use up to 8 MiB, unless they are configured for more.
	maxZstdWindow = 32 << 20
	// maxSnappyBlock bounds an inflated block of snappy, which the decoder holds whole.
	// A compressed block of 1 MiB inflates to about 20 MiB at most.
	maxSnappyBlock = 32 << 20
)

// The codecs, as attributes name them.
const (
	codecNone   = 0
	codecGzip   = 1
	codecSnappy = 2
	codecLZ4    = 3
	codecZstd   = 4
)

// batchInflater opens compressed batches as streams. It is for one goroutine and one
// stream at a time: each stream uses the memory of the stream before.
type batchInflater struct {
	buffered *bufio.Reader
	zstd     *zstd.Decoder
}

// openStream returns the inflated records of a batch as a stream. The stream ends
// with errTooLarge after maxInflatedBytes.
func (in *batchInflater) openStream(codec int, b []byte) (*bufio.Reader, error) {
	r, err := in.openCodec(codec, b)
	if err != nil {
		return nil, fmt.Errorf("inflate the batch: %w", err)
	}
	if in.buffered == nil {
		in.buffered = bufio.NewReaderSize(nil, 32<<10)
	}
	in.buffered.Reset(&boundedReader{r: r, left: maxInflatedBytes})
	return in.buffered, nil
}

func (in *batchInflater) openCodec(codec int, b []byte) (io.Reader, error) {
	switch codec {
	case codecNone:
		return bytes.NewReader(b), nil
	case codecGzip:
		return gzip.NewReader(bytes.NewReader(b))
	case codecSnappy:
		if len(b) >= len(xerialMagic)+8 && bytes.HasPrefix(b, xerialMagic) {
			return &xerialReader{in: b[len(xerialMagic)+8:]}, nil
		}
		block, err := inflateSnappy(nil, b)
		return bytes.NewReader(block), err
	case codecLZ4:
		return lz4.NewReader(bytes.NewReader(b)), nil
	case codecZstd:
		if in.zstd == nil {
			var err error
			if in.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow)); err != nil {
				return nil, err
			}
		}
		return in.zstd, in.zstd.Reset(bytes.NewReader(b))
	}
	return nil, fmt.Errorf("unknown codec %d", codec)
}

// inflateSnappy inflates one block into dst.
func inflateSnappy(dst, b []byte) ([]byte, error) {
	n, err := snappy.DecodedLen(b)
	if err != nil {
		return nil, err
	}
	if n > maxSnappyBlock {
		return nil, fmt.Errorf("%w: a snappy block claims %d bytes", errTooLarge, n)
	}
	return snappy.Decode(dst, b)
}

// xerialMagic begins the snappy format of Java clients: the magic, two versions, then
// blocks of snappy, each behind its length.
var xerialMagic = []byte{130, 'S', 'N', 'A', 'P', 'P', 'Y', 0}

// xerialReader inflates the blocks of that format, one after the other.
type xerialReader struct {
	in, buffer, block []byte
}

func (x *xerialReader) Read(p []byte) (int, error) {
	for len(x.block) == 0 {
		if len(x.in) == 0 {
			return 0, io.EOF
		}
		if len(x.in) < 4 {
			return 0, errMalformedXerial
		}
		n := int64(binary.BigEndian.Uint32(x.in))
		if n > int64(len(x.in)-4) {
			return 0, errMalformedXerial
		}
		var err error
		if x.buffer, err = inflateSnappy(x.buffer[:cap(x.buffer)], x.in[4:4+n]); err != nil {
			return 0, err
		}
		x.in, x.block = x.in[4+n:], x.buffer
	}
	n := copy(p, x.block)
	x.block = x.block[n:]
	return n, nil
}

var errMalformedXerial = errors.New("the blocks of snappy exceed the batch")

// mendLZ4Header returns the LZ4 frame of a message of format 0 with the right checksum of
// its header: Kafka's first clients also put the frame's magic under the checksum
// (KIP-57).
func mendLZ4Header(frame []byte) []byte {
	const (
		flags     = 4 // behind the magic
		sizeFlag  = 0x08
		sizeBytes = 8
	)
	end := flags + 2
	if len(frame) > flags && frame[flags]&sizeFlag != 0 {
		end += sizeBytes
	}
	if len(frame) <= end {
		return frame
	}
	out := bytes.Clone(frame)
	out[end] = byte(xxHash32(frame[flags:end]) >> 8)
	return out
}

// xxHash32 returns the XXH32 hash of less than 16 bytes, with seed 0.
// https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
func xxHash32(b []byte) uint32 {
	const (
		prime1 uint32 = 2654435761
		prime2 uint32 = 2246822519
		prime3 uint32 = 3266489917
		prime4 uint32 = 668265263
		prime5 uint32 = 374761393
	)
	h := prime5 + uint32(len(b))
	for ; len(b) >= 4; b = b[4:] {
		h = bits.RotateLeft32(h+binary.LittleEndian.Uint32(b)*prime3, 17) * prime4
	}
	for _, c := range b {
		h = bits.RotateLeft32(h+uint32(c)*prime5, 11) * prime1
	}
	h = (h ^ h>>15) * prime2
	h = (h ^ h>>13) * prime3
	return h ^ h>>16
}

// boundedReader fails with errTooLarge after left bytes.
type boundedReader struct {
	r    io.Reader
	left int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLarge
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

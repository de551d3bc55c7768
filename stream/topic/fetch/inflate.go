package fetch

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

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
	case 0:
		return bytes.NewReader(b), nil
	case 1:
		return gzip.NewReader(bytes.NewReader(b))
	case 2:
		if len(b) >= len(xerialMagic)+8 && bytes.HasPrefix(b, xerialMagic) {
			return &xerialReader{in: b[len(xerialMagic)+8:]}, nil
		}
		block, err := inflateSnappy(nil, b)
		return bytes.NewReader(block), err
	case 3:
		return lz4.NewReader(bytes.NewReader(b)), nil
	case 4:
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

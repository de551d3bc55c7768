package record

import (
	"encoding/binary"
	"fmt"
)

// payloadReader takes values off the front of b; the first error stays and makes all
// later reads return zero values.
type payloadReader struct {
	b       []byte
	version byte // of the payload
	err     error
}

func (r *payloadReader) setShort() { r.b, r.err = nil, fmt.Errorf("short payload") }

func (r *payloadReader) readCount() int {
	n, w := binary.Uvarint(r.b)
	if r.err != nil || w <= 0 || n > uint64(len(r.b)) {
		if r.err == nil {
			r.setShort()
		}
		return 0
	}
	r.b = r.b[w:]
	return int(n)
}

func (r *payloadReader) readVarint() int64 {
	n, w := binary.Varint(r.b)
	if r.err != nil || w <= 0 {
		if r.err == nil {
			r.setShort()
		}
		return 0
	}
	r.b = r.b[w:]
	return n
}

func (r *payloadReader) readBytes() []byte {
	n := r.readCount()
	if r.err != nil || n > len(r.b) {
		if r.err == nil {
			r.setShort()
		}
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *payloadReader) readNullable() []byte {
	if r.err != nil || len(r.b) == 0 {
		if r.err == nil {
			r.setShort()
		}
		return nil
	}
	present := r.b[0] != 0
	r.b = r.b[1:]
	if !present {
		return nil
	}
	return append([]byte{}, r.readBytes()...)
}

package record

import (
	"encoding/binary"
	"fmt"
)

// payloadReader takes values off the front of b; the first error stays and makes all
// later reads return zero values.
type payloadReader struct {
	b   []byte
	err error
}

func (r *payloadReader) fail() { r.b, r.err = nil, fmt.Errorf("short payload") }

func (r *payloadReader) count() int {
	n, w := binary.Uvarint(r.b)
	if r.err != nil || w <= 0 || n > uint64(len(r.b)) {
		if r.err == nil {
			r.fail()
		}
		return 0
	}
	r.b = r.b[w:]
	return int(n)
}

func (r *payloadReader) varint() int64 {
	n, w := binary.Varint(r.b)
	if r.err != nil || w <= 0 {
		if r.err == nil {
			r.fail()
		}
		return 0
	}
	r.b = r.b[w:]
	return n
}

func (r *payloadReader) bytes() []byte {
	n := r.count()
	if r.err != nil || n > len(r.b) {
		if r.err == nil {
			r.fail()
		}
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *payloadReader) nullable() []byte {
	if r.err != nil || len(r.b) == 0 {
		if r.err == nil {
			r.fail()
		}
		return nil
	}
	present := r.b[0] != 0
	r.b = r.b[1:]
	if !present {
		return nil
	}
	return append([]byte{}, r.bytes()...)
}

package id

import (
	"encoding/binary"
	"math/bits"
	"strconv"
)

// RowID is the packed primary key of a source row:
//
//	decimal integer < 0   0x10-n | n bytes, complemented, of -v-1 big-endian
//	decimal integer ≥ 0   0x10+n | n bytes of v big-endian, n minimal, 0…8
//	lower-case UUID       0x40 | 16 bytes
//	any other text        0x80 | text
//
// Bytewise order is numeric order for integers, so that rows that were inserted
// one after the other lie together; a serial key takes 2 to 5 bytes. A row id does
// not delimit itself: it always comes last in a key. "" is no row id. Only the
// canonical spelling of an integer ("7", "-7"; not "007" or "-0") is packed as an
// integer, so that packing is a bijection.
type RowID string

const (
	tagRowZero = 0x10
	tagRowUUID = 0x40
	tagRowText = 0x80
)

// PackRow packs the text form of a key. Every text has a row id, the empty text too.
func PackRow(text string) RowID {
	if v, err := strconv.ParseInt(text, 10, 64); err == nil && strconv.FormatInt(v, 10) == text {
		var b [9]byte
		return RowID(appendRowInt(b[:0], v))
	}
	var uuid [uuidPackLen]byte
	if packUUID(&uuid, text) {
		uuid[0] = tagRowUUID
		return RowID(uuid[:])
	}
	b := make([]byte, 0, 1+len(text))
	b = append(b, tagRowText)
	return RowID(append(b, text...))
}

// ViewRowID returns packed as a row id without copying it. The caller must not change
// packed while the id is in use.
func ViewRowID(packed []byte) RowID { return RowID(asString(packed)) }

func appendRowInt(dst []byte, v int64) []byte {
	m := uint64(v)
	if v < 0 {
		m = ^m // -v-1
	}
	n := (bits.Len64(m) + 7) / 8
	tag := byte(tagRowZero + n)
	if v < 0 {
		// -1 has no digits (n = 0) and must not share the tag of zero.
		n = max(n, 1)
		tag, m = byte(tagRowZero-n), ^m
	}
	var b [9]byte
	binary.BigEndian.PutUint64(b[1:], m)
	b[8-n] = tag
	return append(dst, b[8-n:]...)
}

// Text returns the key as Postgres writes it.
func (r RowID) Text() string {
	switch {
	case r == "":
		return ""
	case r[0] == tagRowText:
		return string(r[1:])
	case r[0] == tagRowUUID:
		return ID(string([]byte{tagUUID}) + string(r[1:])).Text()
	}
	v, _ := RowNumber(r)
	return strconv.FormatInt(v, 10)
}

// RowNumber returns the value of a packed key that is an integer.
func RowNumber[T RowID | []byte](r T) (n int64, ok bool) {
	if len(r) == 0 || r[0] >= tagRowUUID {
		return 0, false
	}
	var v uint64
	if r[0] < tagRowZero {
		v = ^uint64(0)
	}
	for i := 1; i < len(r); i++ {
		v = v<<8 | uint64(r[i])
	}
	return int64(v), true
}

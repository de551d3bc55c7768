// Package id holds the words that every other package shares: packed ids and row
// ids, positions in the write-ahead log, and changes of source rows. It is pure,
// so that a package can speak of them without the store.
package id

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
	"unsafe"
)

// ID is a packed client, restaurant or campaign id:
//
//	canonical lower-case UUID   0x01 | 16 bytes
//	any other text              0x02 | UTF-8 | 0x00
//
// Packing is a bijection, so two ids are equal exactly if their texts are. A
// packed id is self-delimiting and no packed id is a prefix of another, so ids
// can be concatenated into keys and compared bytewise. Only the canonical
// spelling is packed as a UUID: "A0EE…", "{a0ee…}" and "a0ee…" are different
// texts in Postgres and stay different here.
//
// "" is no id: NULL or none.
type ID string

// ErrBadID means that a text cannot be an id (it is empty, too long, holds U+0000 or is
// not valid UTF-8), or that bytes are not a packed id.
var ErrBadID = errors.New("malformed id")

// MaxBytes is the length of the longest text that is an id. A few keys of longer
// texts would fill the memory; no campaign can name them, and no index hold them.
const MaxBytes = 1 << 20

const (
	tagUUID = 0x01
	tagText = 0x02
	endText = 0x00

	uuidTextLen = 36
	uuidPackLen = 17
)

// Pack packs text. It returns [ErrBadID] for a text that is empty, longer than
// [MaxBytes], holds U+0000 or is not valid UTF-8.
func Pack(text string) (ID, error) {
	var uuid [uuidPackLen]byte
	if packUUID(&uuid, text) {
		return ID(uuid[:]), nil
	}
	if !isID(text) {
		return "", fmt.Errorf("pack id %.80q: %w", text, ErrBadID)
	}
	b := make([]byte, 0, len(text)+2)
	b = append(b, tagText)
	b = append(b, text...)
	return ID(append(b, endText)), nil
}

func isID(text string) bool {
	return text != "" && len(text) <= MaxBytes && strings.IndexByte(text, 0) < 0 && utf8.ValidString(text)
}

// PackBytes packs text as [Pack] does. It copies the bytes.
func PackBytes(text []byte) (ID, error) {
	var uuid [uuidPackLen]byte
	if packUUID(&uuid, asString(text)) {
		return ID(uuid[:]), nil
	}
	return Pack(string(text))
}

// packUUID packs text into dst if it is a canonical lower-case UUID.
func packUUID(dst *[uuidPackLen]byte, text string) bool {
	if len(text) != uuidTextLen || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' {
		return false
	}
	a, ok1 := parseHex8(uint64(fourBytes(text[0:]))<<32 | uint64(fourBytes(text[4:])))
	b, ok2 := parseHex8(uint64(fourBytes(text[9:]))<<32 | uint64(fourBytes(text[14:])))
	c, ok3 := parseHex8(uint64(fourBytes(text[19:]))<<32 | uint64(fourBytes(text[24:])))
	d, ok4 := parseHex8(uint64(fourBytes(text[28:]))<<32 | uint64(fourBytes(text[32:])))
	dst[0] = tagUUID
	binary.BigEndian.PutUint32(dst[1:], a)
	binary.BigEndian.PutUint32(dst[5:], b)
	binary.BigEndian.PutUint32(dst[9:], c)
	binary.BigEndian.PutUint32(dst[13:], d)
	return ok1 && ok2 && ok3 && ok4
}

func fourBytes(s string) uint32 {
	return uint32(s[3]) | uint32(s[2])<<8 | uint32(s[1])<<16 | uint32(s[0])<<24
}

// parseHex8 reads eight lower-case hexadecimal digits at once: each byte of digits
// is a digit. A snapshot of ten million rows reads 160 million pairs of digits.
func parseHex8(digits uint64) (value uint32, ok bool) {
	const each = 0x0101010101010101
	// Letters have bit 6. A byte that is not a digit has a value above 15, or its
	// value is that of another byte: the one that spelled holds.
	n := digits&(0x0f*each) + 9*(digits>>6&each)
	spelled := n + '0'*each + ('a'-'0'-10)*((n+6*each)>>4&each)
	ok = spelled == digits && n&(0xf0*each) == 0
	n |= n >> 4 // the value of each pair, in every second byte
	n &= 0x00ff00ff00ff00ff
	n |= n >> 8
	n &= 0x0000ffff0000ffff
	return uint32(n | n>>16), ok
}

// TextPrefix returns the common prefix of all packed text ids whose text begins
// with text. text must not be empty, nor the beginning of a UUID.
func TextPrefix(text string) ID { return ID([]byte{tagText}) + ID(text) }

// AppendText appends the id's text to dst. It allocates only to grow dst.
func (id ID) AppendText(dst []byte) []byte {
	switch {
	case id == "":
		return dst
	case id[0] == tagText:
		return append(dst, id[1:len(id)-1]...)
	}
	var bin [16]byte
	copy(bin[:], id[1:])
	var text [uuidTextLen]byte
	hex.Encode(text[0:8], bin[0:4])
	hex.Encode(text[9:13], bin[4:6])
	hex.Encode(text[14:18], bin[6:8])
	hex.Encode(text[19:23], bin[8:10])
	hex.Encode(text[24:], bin[10:])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
	return append(dst, text[:]...)
}

// IsUUID reports whether the id is a canonical lower-case UUID.
func (id ID) IsUUID() bool { return id != "" && id[0] == tagUUID }

// AppendUUID appends the 16 bytes that Postgres sends for the id as a uuid. It
// returns false where the id is not a canonical lower-case UUID: a uuid column would
// return another spelling, or refuse the id.
func (id ID) AppendUUID(dst []byte) ([]byte, bool) {
	if !id.IsUUID() {
		return dst, false
	}
	return append(dst, id[1:]...), true
}

// Text returns the id as Postgres and Kafka spell it. The text is a copy, because id
// may be a view into a [List].
func (id ID) Text() string {
	return string(id.AppendText(nil))
}

// TextLen returns the length of the text in bytes.
func (id ID) TextLen() int {
	switch {
	case id == "":
		return 0
	case id[0] == tagText:
		return len(id) - 2
	}
	return uuidTextLen
}

// Read copies the packed id at the beginning of b and returns the rest of b. It
// returns [ErrBadID] if b does not begin with a whole packed id.
func Read(b []byte) (id ID, rest []byte, err error) {
	n := PackedLen(b)
	if n == 0 {
		return "", b, fmt.Errorf("read packed id: %w", ErrBadID)
	}
	return ID(b[:n]), b[n:], nil
}

// PackedLen returns the length of the packed id at the beginning of b, 0 if there is
// none. It does not check the text between the tags: this package packed the keys.
func PackedLen(b []byte) int {
	if len(b) >= uuidPackLen && b[0] == tagUUID {
		return uuidPackLen
	}
	if len(b) < 3 || b[0] != tagText {
		return 0
	}
	// A text id holds at least one byte, so b[1] == 0 is no id.
	if end := bytes.IndexByte(b[1:], endText); end > 0 {
		return end + 2
	}
	return 0
}

// List is a list of packed ids in one piece of memory, which it uses again after
// Reset, without allocations. The zero value is an empty list. A list has one owner
// at a time.
type List struct {
	arena []byte
	ends  []uint32
}

// Len returns the number of ids.
func (l *List) Len() int { return len(l.ends) }

// Grow makes room for n more ids of a UUID's size.
func (l *List) Grow(n int) {
	l.arena, l.ends = slices.Grow(l.arena, n*uuidPackLen), slices.Grow(l.ends, n)
}

// At returns the i-th id as a view into the list, which holds until Reset.
// strings.Clone makes a copy that holds longer.
func (l *List) At(i int) ID {
	start := uint32(0)
	if i > 0 {
		start = l.ends[i-1]
	}
	b := l.arena[start:l.ends[i]]
	return ID(unsafe.String(unsafe.SliceData(b), len(b))) //nolint:gosec // the arena is not written below its end before Reset
}

// Append adds a valid id. A list holds up to 4 GiB.
func (l *List) Append(id ID) {
	l.arena = append(l.arena, id...)
	l.ends = append(l.ends, uint32(len(l.arena)))
}

// AppendBytes appends a valid id that is a part of a key.
func (l *List) AppendBytes(id []byte) {
	l.arena = append(l.arena, id...)
	l.ends = append(l.ends, uint32(len(l.arena)))
}

// Reset empties the list and keeps its memory.
func (l *List) Reset() { l.arena, l.ends = l.arena[:0], l.ends[:0] }

// Bytes returns all ids one after the other, as [Read] reads them: a view that holds
// until Reset.
func (l *List) Bytes() []byte { return l.arena }

// Packer packs ids into memory of its own, which it uses again after Reset. The ids
// it returns are views that hold until Reset; strings.Clone makes copies that hold
// longer. The zero value is ready. A packer has one owner at a time.
type Packer struct {
	arena []byte
}

// keptArena is the largest arena that Reset keeps.
const keptArena = 1 << 20

// ID packs text as [Pack] does.
func (p *Packer) ID(text []byte) (ID, error) {
	at := len(p.arena)
	var uuid [uuidPackLen]byte
	if packUUID(&uuid, asString(text)) {
		p.arena = append(p.arena, uuid[:]...)
		return ID(asString(p.arena[at:])), nil
	}
	if !isID(asString(text)) {
		return Pack(string(text)) // for its error
	}
	p.arena = append(append(append(p.arena, tagText), text...), endText)
	return ID(asString(p.arena[at:])), nil
}

// RowID packs text as [PackRow] does.
func (p *Packer) RowID(text []byte) RowID { return PackRow(string(text)) }

// RowNumber packs the decimal text of n as [PackRow] does.
func (p *Packer) RowNumber(n int64) RowID {
	at := len(p.arena)
	p.arena = appendRowInt(p.arena, n)
	return RowID(asString(p.arena[at:]))
}

// Reset invalidates all ids that the packer returned.
func (p *Packer) Reset() {
	p.arena = p.arena[:0]
	if cap(p.arena) > keptArena {
		p.arena = nil
	}
}

// asString returns b as a string without copying it.
func asString(b []byte) string {
	return unsafe.String(unsafe.SliceData(b), len(b)) //nolint:gosec // the caller does not change b while the string is in use
}

// View returns packed as an id without copying it. The caller must not change packed
// while the id is in use.
func View(packed []byte) ID { return ID(asString(packed)) }

package state

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode/utf8"
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

// MaxIDBytes is the longest text that is an id. What is longer would make keys
// of which a few fill the memory; no campaign can name it, and no index hold it.
const MaxIDBytes = 1 << 20

const (
	tagUUID = 0x01
	tagText = 0x02
	endText = 0x00

	uuidTextLen = 36
	uuidPackLen = 17
)

// PackID packs text. It returns [ErrBadID] for what no id may be: empty, longer
// than [MaxIDBytes], with U+0000 in it, not valid UTF-8.
func PackID(text string) (ID, error) {
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
	return text != "" && len(text) <= MaxIDBytes && strings.IndexByte(text, 0) < 0 && utf8.ValidString(text)
}

// PackIDBytes is [PackID] for bytes, which it does not keep.
func PackIDBytes(text []byte) (ID, error) {
	var uuid [uuidPackLen]byte
	if packUUID(&uuid, text) {
		return ID(uuid[:]), nil
	}
	return PackID(string(text))
}

// packUUID packs text into dst if it is a canonical lower-case UUID.
func packUUID[T string | []byte](dst *[uuidPackLen]byte, text T) bool {
	if len(text) != uuidTextLen || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' {
		return false
	}
	dst[0] = tagUUID
	all := byte(0)
	for i, at := range uuidDigits {
		high, low := nibbles[text[at]], nibbles[text[at+1]]
		all |= high | low
		dst[i+1] = high<<4 | low
	}
	return all <= 0x0f
}

// uuidDigits is where the text of each byte begins.
var uuidDigits = [uuidPackLen - 1]uint8{0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34}

// nibbles is the value of each lower-case hexadecimal digit, 0xff for other
// bytes.
var nibbles = func() (values [256]byte) {
	for i := range values {
		values[i] = 0xff
	}
	for value, digit := range []byte("0123456789abcdef") {
		values[digit] = byte(value)
	}
	return values
}()

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

// Text gives the id as it is spelled in Postgres and Kafka. It is a copy, for
// id may be a view into an [IDList].
func (id ID) Text() string {
	return string(id.AppendText(nil))
}

// TextLen is the length of the text in bytes.
func (id ID) TextLen() int {
	switch {
	case id == "":
		return 0
	case id[0] == tagText:
		return len(id) - 2
	}
	return uuidTextLen
}

// ReadID copies one packed id off the front of b and returns what follows it.
// It returns [ErrBadID] if b does not begin with a whole packed id.
func ReadID(b []byte) (id ID, rest []byte, err error) {
	n := idLen(b)
	if n == 0 {
		return "", b, fmt.Errorf("read packed id: %w", ErrBadID)
	}
	return ID(b[:n]), b[n:], nil
}

// idLen is the length of the packed id that b begins with, 0 if there is none.
// It trusts the text between the tags: keys were packed here.
func idLen(b []byte) int {
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

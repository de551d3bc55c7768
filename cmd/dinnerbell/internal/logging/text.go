package logging

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// MaxText is the size limit, in bytes, of a text from another system: a server may
// send an error of megabytes, at every retry.
const MaxText = 2000

// Line returns a text as one line of a log or of a status: bounded, with its white
// space folded. The driver's errors have a line for each address.
func Line(text string) string {
	text, left := splitAt(text, MaxText)
	return strings.Join(strings.Fields(text), " ") + left
}

// Bound returns a text of at most limit bytes, and how many bytes were left out.
func Bound(text string, limit int) string {
	text, left := splitAt(text, limit)
	return text + left
}

// splitAt splits a text at limit bytes, between two characters.
func splitAt(text string, limit int) (kept, left string) {
	if len(text) <= limit {
		return text, ""
	}
	n := limit
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n], fmt.Sprintf(" … (%d bytes more)", len(text)-n)
}

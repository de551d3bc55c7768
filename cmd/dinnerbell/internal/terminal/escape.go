// Package terminal writes for people: escaped text, numbers with separators, and a
// progress bar.
package terminal

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Ids, topics and error texts come from other people's tables, messages and
// servers. Characters that a terminal would obey, or leave out, instead of showing are escaped
// before they are written:
//
//   - Escape, for one field of a listing: newlines and tabs as well, so that an
//     id is never two lines or two columns;
//   - EscapingWriter, for all that the process writes, in case a field was not escaped.
//
// Escapes have the form \u001b, which JSON reads back as the character: the output
// of --json stays exact.

// isHidden reports whether a terminal obeys r, or shows it as nothing or as a blank:
// controls, formats such as those that change the direction of text, private and
// unassigned characters, and those that Unicode has a terminal ignore
// (https://www.unicode.org/reports/tr44/#Default_Ignorable_Code_Point). The spaces beside
// U+0020 are hidden too, except in running text, whose languages use them.
func isHidden(r rune, text bool) bool {
	switch {
	case unicode.Is(unicode.Zs, r):
		return r != ' ' && !text
	case r == 0x2800: // a pattern of Braille without a dot
		return true
	}
	return !unicode.IsPrint(r) || unicode.In(r, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point)
}

// Escape returns s as one field of a listing.
func Escape(s string) string {
	if isPlain(s) {
		return s
	}
	return string(appendEscaped(make([]byte, 0, len(s)+16), s, false))
}

// isPlain reports whether s has nothing to escape, as most texts do.
func isPlain[T string | []byte](s T) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// appendEscaped appends s with controls escaped, and each byte that is not valid
// UTF-8 as \xNN. layout keeps newlines and tabs.
func appendEscaped[T string | []byte](dst []byte, s T, layout bool) []byte {
	for len(s) > 0 {
		r, n := decodeRune(s)
		switch {
		case layout && (r == '\n' || r == '\t'):
			dst = append(dst, byte(r))
		case r == '\n':
			dst = append(dst, `\n`...)
		case r == '\t':
			dst = append(dst, `\t`...)
		case r == utf8.RuneError && n == 1:
			dst = fmt.Appendf(dst, `\x%02x`, s[0])
		case isHidden(r, layout) && r > 0xffff: // JSON has no escape of more than four digits
			high, low := utf16.EncodeRune(r)
			dst = fmt.Appendf(dst, `\u%04x\u%04x`, high, low)
		case isHidden(r, layout):
			dst = fmt.Appendf(dst, `\u%04x`, r)
		default:
			dst = append(dst, s[:n]...)
		}
		s = s[n:]
	}
	return dst
}

func decodeRune[T string | []byte](s T) (rune, int) {
	return utf8.DecodeRuneInString(string(s[:min(len(s), utf8.UTFMax)]))
}

// EscapingWriter escapes everything that is written through it except newlines and
// tabs. A character may arrive in parts. Any goroutine may write.
type EscapingWriter struct {
	mu   sync.Mutex
	Out  io.Writer
	part []byte // of a character whose end has not been written yet
}

// Write implements io.Writer.
func (w *EscapingWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := p
	if len(w.part) > 0 {
		text = slices.Concat(w.part, p)
		w.part = nil
	}
	whole := len(text) - incompleteTail(text)
	if whole < len(text) {
		w.part = append([]byte(nil), text[whole:]...)
	}
	if err := w.writeEscaped(text[:whole]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush writes the rest of an incomplete character.
func (w *EscapingWriter) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := w.part
	w.part = nil
	return w.writeEscaped(text)
}

func (w *EscapingWriter) writeEscaped(text []byte) error {
	if len(text) == 0 {
		return nil
	}
	if !isHarmless(text) {
		text = appendEscaped(make([]byte, 0, len(text)+64), text, true)
	}
	_, err := w.Out.Write(text)
	return err
}

// isHarmless reports whether text is ASCII with no control but newline and tab.
func isHarmless(text []byte) bool {
	for _, c := range text {
		if c < ' ' && c != '\n' && c != '\t' || c >= 0x7f {
			return false
		}
	}
	return true
}

// incompleteTail returns the number of bytes at the end of text that begin an
// incomplete character.
func incompleteTail(text []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(text); n++ {
		if tail := text[len(text)-n:]; utf8.RuneStart(tail[0]) {
			if utf8.FullRune(tail) {
				return 0
			}
			return n
		}
	}
	return 0
}

// Indent puts blanks before the second and later lines of an error, so that no line
// passes for a separate message.
func Indent(text string) string { return strings.ReplaceAll(text, "\n", "\n  ") }

package terminal

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
)

// Style is how text is written to one output: in colour or not, and how wide.
type Style struct {
	Colour bool
	Width  int // characters in a line
}

// Widths of text that is wrapped: a narrower terminal wraps by itself, a wider one is
// not filled, since long lines are hard to read.
const (
	minWidth = 80
	maxWidth = 100
)

// Colour is an SGR sequence's parameters.
// https://www.ecma-international.org/publications-and-standards/standards/ecma-48/
type Colour string

// Colours that read on dark and on light backgrounds.
const (
	Bold    Colour = "1"
	Faint   Colour = "2"
	Red     Colour = "1;31"
	Green   Colour = "32"
	Yellow  Colour = "33"
	Magenta Colour = "35"
)

// OpenStyled returns the writer for styled text to an output of a command, and the
// style. On a terminal it is in colour, unless the environment has NO_COLOR
// (https://no-color.org) or TERM=dumb. The writer does not escape: each field must be
// escaped by Escape before it is painted.
func OpenStyled(out io.Writer, env map[string]string) (io.Writer, Style) {
	escaping, ok := out.(*EscapingWriter)
	if !ok {
		return out, Style{Width: maxWidth}
	}
	f, ok := escaping.Out.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return out, Style{Width: maxWidth}
	}
	style := Style{Colour: env["NO_COLOR"] == "" && env["TERM"] != "dumb", Width: maxWidth}
	if width, _, err := term.GetSize(int(f.Fd())); err == nil {
		style.Width = min(maxWidth, max(minWidth, width))
	}
	return f, style
}

// Paint returns text in a colour, as it is without colours.
func (s Style) Paint(c Colour, text string) string {
	if !s.Colour {
		return text
	}
	return fmt.Sprintf("\x1b[%sm%s\x1b[0m", c, text)
}

package terminal

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// hostile has each kind of what a terminal obeys.
const hostile = "a\nb\tc\x1b[2J\x07\r\x7f\u009b31m\u202egnp\u2066x\u2069\u200f\u061c\u2028\x00é世"

// A field of a listing shows every control as text, in one line.
func TestPrintable(t *testing.T) {
	t.Parallel()
	want := `a\nb\tc\u001b[2J\u0007\u000d\u007f\u009b31m\u202egnp\u2066x\u2069\u200f\u061c\u2028\u0000é世`
	if got := Escape(hostile); got != want {
		t.Errorf("%q\nwant %q", got, want)
	}
	if got := Escape("\xff\xc3(\xe4\xb8"); got != `\xff\xc3(\xe4\xb8` {
		t.Errorf("invalid UTF-8: %q", got)
	}
	hidden := "\u200b\u00a0\u3000\u00ad\ufeff\u2060\ufe0f\u3164\u034f\u2800\ue000\U000e0041\U000e0100"
	if got, want := Escape(hidden), `\u200b\u00a0\u3000\u00ad\ufeff\u2060\ufe0f\u3164\u034f\u2800\ue000\udb40\udc41\udb40\udd00`; got != want {
		t.Errorf("hidden characters: %q, want %q", got, want)
	}
	for _, s := range []string{"", "plain id", `back\slash`, "Ünïcode 世界 👍🏽", "\ufffd"} {
		if got := Escape(s); got != s {
			t.Errorf("%q became %q", s, got)
		}
	}
}

// Every text reaches the terminal escaped, however it is cut into writes; and JSON
// stays the same JSON.
func TestPrintableWriter(t *testing.T) {
	t.Parallel()
	text := "line\n\tcolumn " + hostile + "\xff\n"
	for size := 1; size <= len(text); size++ {
		var out bytes.Buffer
		w := &EscapingWriter{Out: &out}
		for rest := text; rest != ""; {
			n := min(size, len(rest))
			if wrote, err := w.Write([]byte(rest[:n])); wrote != n || err != nil {
				t.Fatalf("wrote %d of %d: %v", wrote, n, err)
			}
			rest = rest[n:]
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		want := "line\n\tcolumn a\nb\tc" + `\u001b[2J\u0007\u000d\u007f\u009b31m\u202egnp\u2066x\u2069\u200f\u061c\u2028\u0000é世\xff` + "\n"
		if out.String() != want {
			t.Fatalf("in parts of %d: %q\nwant %q", size, out.String(), want)
		}
	}
	var out bytes.Buffer
	w := &EscapingWriter{Out: &out}
	hostile := "\u200b\U000e0041" + hostile
	if err := json.NewEncoder(w).Encode(hostile); err != nil {
		t.Fatal(err)
	}
	var back string
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || back != hostile || !isPlain(strings.Trim(out.String(), "é世\"\n")) {
		t.Errorf("JSON %q gives %q, %v", out.String(), back, err)
	}
	out.Reset()
	_, _ = w.Write([]byte("cut \xe4\xb8"))
	if err := w.Flush(); err != nil || out.String() != `cut \xe4\xb8` {
		t.Errorf("a character that never ended: %q, %v", out.String(), err)
	}
}

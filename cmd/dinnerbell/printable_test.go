package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"dinnerbell/stream"
)

// hostile has each kind of what a terminal obeys.
const hostile = "a\nb\tc\x1b[2J\x07\r\x7f\u009b31m\u202egnp\u2066x\u2069\u200f\u061c\u2028\x00é世"

// A field of a listing shows every control as text, in one line.
func TestPrintable(t *testing.T) {
	t.Parallel()
	want := `a\nb\tc\u001b[2J\u0007\u000d\u007f\u009b31m\u202egnp\u2066x\u2069\u200f\u061c\u2028\u0000é世`
	if got := printable(hostile); got != want {
		t.Errorf("%q\nwant %q", got, want)
	}
	if got := printable("\xff\xc3(\xe4\xb8"); got != `\xff\xc3(\xe4\xb8` {
		t.Errorf("invalid UTF-8: %q", got)
	}
	for _, s := range []string{"", "plain id", `back\slash`, "Ünïcode 世界 👍🏽", "\ufffd"} {
		if got := printable(s); got != s {
			t.Errorf("%q became %q", s, got)
		}
	}
}

// Whatever is written, in whatever parts, reaches the terminal escaped; and JSON
// stays the same JSON.
func TestPrintableWriter(t *testing.T) {
	t.Parallel()
	text := "line\n\tcolumn " + hostile + "\xff\n"
	for size := 1; size <= len(text); size++ {
		var out bytes.Buffer
		w := &printableWriter{out: &out}
		for rest := text; rest != ""; {
			n := min(size, len(rest))
			if wrote, err := w.Write([]byte(rest[:n])); wrote != n || err != nil {
				t.Fatalf("wrote %d of %d: %v", wrote, n, err)
			}
			rest = rest[n:]
		}
		if err := w.flush(); err != nil {
			t.Fatal(err)
		}
		want := "line\n\tcolumn a\nb\tc" + `\u001b[2J\u0007\u000d\u007f\u009b31m\u202egnp\u2066x\u2069\u200f\u061c\u2028\u0000é世\xff` + "\n"
		if out.String() != want {
			t.Fatalf("in parts of %d: %q\nwant %q", size, out.String(), want)
		}
	}
	var out bytes.Buffer
	w := &printableWriter{out: &out}
	if err := json.NewEncoder(w).Encode(hostile); err != nil {
		t.Fatal(err)
	}
	var back string
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || back != hostile || !isPlain(strings.Trim(out.String(), "é世\"\n")) {
		t.Errorf("JSON %q gives %q, %v", out.String(), back, err)
	}
	out.Reset()
	_, _ = w.Write([]byte("cut \xe4\xb8"))
	if err := w.flush(); err != nil || out.String() != `cut \xe4\xb8` {
		t.Errorf("a character that never ended: %q, %v", out.String(), err)
	}
}

// What people read has an id in one line, whoever prints it.
func TestListingsEscapeIDs(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	pair := &pairItem{Restaurant: new(hostile), Client: new(hostile)}
	item, err := json.Marshal(differenceItem{Row: hostile, Index: "rows", Wrong: "different", Wanted: pair, Stored: pair})
	if err != nil {
		t.Fatal(err)
	}
	a := &app{stdout: &out}
	for name, tc := range map[string]struct {
		print func() error
		lines int
	}{
		"subscribers":        {func() error { return (&subscribersCmd{}).write(&out, []string{hostile}) }, 1},
		"dead letters":       {func() error { return printDeadLetter(&out, &deadLetterItem{Topic: hostile, Reason: hostile}) }, 1},
		"dead letters retry": {func() error { return printRetried(&out, &stream.Retried{SentTo: -1, Reason: hostile}) }, 1},
		"preview": {func() error {
			return printPreview(&out, &stream.Preview{Campaign: hostile, Restaurant: hostile, Outcome: "valid"})
		}, 6},
		"verify": {func() error { return (&verifyCmd{}).printItem(&out, item) }, 1},
		"audit":  {func() error { return (&auditCmd{}).print(a, stream.Finding{What: hostile}) }, 1},
		"status": {func() error {
			return printStatus(&out, &statusReport{Reasons: []string{hostile}, Halted: &haltReport{What: hostile, Hint: hostile}, Version: hostile, Source: sourceReport{LastError: hostile, State: hostile}})
		}, 12},
	} {
		out.Reset()
		if err := tc.print(); err != nil {
			t.Fatal(err)
		}
		text := out.String()
		if n := strings.Count(text, "\n"); n != tc.lines {
			t.Errorf("%s: %d lines, want %d: %q", name, n, tc.lines, text)
		}
		for _, r := range text {
			if r != '\n' && isControl(r) || r == utf8.RuneError {
				t.Errorf("%s: %U in %q", name, r, text)
				break
			}
		}
	}
}

// An error's further lines cannot pass for messages of their own, and nothing in
// it reaches the terminal raw.
func TestErrorsAreEscaped(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	code := (&app{messages: &printableWriter{out: &out}}).conclude(errors.Join(errors.New("first"), fmt.Errorf("client %s", "x\x1b[2J\ndinnerbell: all is well")))
	if want := "dinnerbell: first\n  client x\\u001b[2J\n  dinnerbell: all is well\n"; out.String() != want || code != exitFailed {
		t.Errorf("%q, exit %d; want %q", out.String(), code, want)
	}
}

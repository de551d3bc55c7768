package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"dinnerbell/cmd/dinnerbell/internal/status"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/stream"
	"dinnerbell/stream/operator"
)

// hostileID has each kind of what a terminal obeys.
const hostileID = "a\nb\tc\x1b[2J\x07\r\x7f\u009b31m\u202egnp\u2066x\u2069\u200f\u061c\u2028\x00é世"

// Every listing for people shows an id in one line.
func TestListingsEscapeIDs(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	pair := &pairItem{Restaurant: new(hostileID), Client: new(hostileID)}
	item, err := json.Marshal(differenceItem{Row: hostileID, Index: "rows", Wrong: "different", Wanted: pair, Stored: pair})
	if err != nil {
		t.Fatal(err)
	}
	a := &invocation{stdout: &out}
	for name, tc := range map[string]struct {
		print func() error
		lines int
	}{
		"subscribers":        {func() error { return (&subscribersCmd{}).writePage(&out, []string{hostileID}) }, 1},
		"dead letters":       {func() error { return printDeadLetter(&out, &deadLetterItem{Topic: hostileID, Reason: hostileID}) }, 1},
		"dead letters retry": {func() error { return printRetried(&out, &operator.Retried{SentTo: -1, Reason: hostileID}) }, 1},
		"preview": {func() error {
			return printPreview(&out, &stream.Preview{Campaign: hostileID, Restaurant: hostileID, Outcome: "valid"})
		}, 6},
		"verify": {func() error { return (&verifyCmd{}).printItem(&out, item) }, 1},
		"audit":  {func() error { return (&auditCmd{}).printFinding(a, operator.Finding{What: hostileID}) }, 1},
		"status": {func() error {
			return printStatus(&out, &status.Report{Reasons: []string{hostileID}, Halted: &status.Halt{What: hostileID, Hint: hostileID}, Version: hostileID, Source: status.Source{LastError: hostileID, State: hostileID}})
		}, 12}, // a text stands once
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
			if r != '\n' && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) || r == utf8.RuneError {
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
	code := (&invocation{messages: &terminal.EscapingWriter{Out: &out}}).reportError(errors.Join(errors.New("first"), fmt.Errorf("client %s", "x\x1b[2J\ndinnerbell: all is well")))
	if want := "dinnerbell: first\n  client x\\u001b[2J\n  dinnerbell: all is well\n"; out.String() != want || code != exitFailed {
		t.Errorf("%q, exit %d; want %q", out.String(), code, want)
	}
}

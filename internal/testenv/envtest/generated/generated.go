// Package generated keeps documents that are made from the code equal to the code: a
// test renders the text and compares it with the file, or writes it with UPDATE=1.
package generated

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Check compares a part of a document with the text that the code gives. The part lies
// between the lines `<!-- begin NAME … -->` and `<!-- end NAME -->`, which stay. path is
// relative to the test's folder. With UPDATE=1 in the environment Check writes the text
// into the document instead.
func Check(t testing.TB, path, name, text string) {
	t.Helper()
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	updated, err := replacePart(string(old), name, strings.Trim(text, "\n"))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if updated == string(old) {
		return
	}
	if os.Getenv("UPDATE") == "1" {
		if err := os.WriteFile(path, []byte(updated), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	t.Errorf("%s differs from the code, first in\n  %s\nTo write it: (cd %s && UPDATE=1 go test -run '^%s$' .)", filepath.Clean(path), firstDifference(string(old), updated), dir, t.Name())
}

// replacePart returns the document with another text between the two lines.
func replacePart(document, name, text string) (string, error) {
	before, rest, begun := strings.Cut(document, "<!-- begin "+name+" ")
	mark, rest, _ := strings.Cut(rest, "-->\n")
	end := "<!-- end " + name + " -->"
	_, after, ended := strings.Cut(rest, end)
	if !begun || !ended {
		return "", fmt.Errorf("the lines <!-- begin %s … --> and %s are missing", name, end)
	}
	return before + "<!-- begin " + name + " " + mark + "-->\n" + text + "\n" + end + after, nil
}

// firstDifference returns the first line of the new text that the old one does not have
// at its place.
func firstDifference(old, updated string) string {
	lines := strings.Split(old, "\n")
	for i, line := range strings.Split(updated, "\n") {
		if i >= len(lines) || lines[i] != line {
			return line
		}
	}
	return "the end: the document is too long"
}

package main

import (
	"strings"
	"testing"

	"dinnerbell/cmd/dinnerbell/internal/manual"
	"dinnerbell/internal/testenv/envtest/generated"
)

// docs/commands.md is written from the command line, and each command shows an example.
func TestCommandsAreDocumented(t *testing.T) {
	t.Parallel()
	parser, err := newParser(&commandLine{})
	if err != nil {
		t.Fatal(err)
	}
	for _, leaf := range parser.Model.Leaves(true) {
		if !strings.Contains(leaf.Detail, "\n  dinnerbell ") {
			t.Errorf("%s has no example in its help", leaf.Path())
		}
	}
	var text strings.Builder
	if err := manual.WriteMarkdown(&text, parser.Model); err != nil {
		t.Fatal(err)
	}
	generated.Check(t, "../../docs/commands.md", "commands", text.String())
}

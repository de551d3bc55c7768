package manual

import (
	"fmt"
	"io"
	"strings"

	"github.com/alecthomas/kong"
)

// WriteMarkdown writes the reference of the commands of docs/commands.md: a section for
// each group of the help, and in it each command with its arguments, flags, text and
// examples.
func WriteMarkdown(w io.Writer, app *kong.Application) error {
	var b strings.Builder
	b.WriteString("| code | meaning |\n|---|---|\n")
	for _, e := range exitCodes {
		fmt.Fprintf(&b, "| %d | %s |\n", e.code, e.meaning)
	}
	b.WriteString("\n## Flags of every command\n\n")
	writeFlags(&b, app.Flags)
	group := ""
	for _, leaf := range app.Leaves(true) {
		if g := leaf.ClosestGroup(); g != nil && g.Title != group {
			group = g.Title
			fmt.Fprintf(&b, "\n## %s\n", strings.TrimSuffix(group, ":"))
		}
		writeSection(&b, leaf)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeSection writes one command.
func writeSection(b *strings.Builder, node *kong.Node) {
	fmt.Fprintf(b, "\n### %s\n%s\n\n    dinnerbell %s%s%s\n", node.Path(), escapeMarkdown(node.Help), node.Path(), arguments(node), requiredFlags(node))
	for i, arg := range node.Positional {
		if i == 0 {
			b.WriteString("\n| argument | meaning |\n|---|---|\n")
		}
		fmt.Fprintf(b, "| `%s` | %s |\n", arg.Summary(), cell(arg.Help))
	}
	if len(node.Flags) > 0 {
		b.WriteString("\n")
		writeFlags(b, node.Flags)
	}
	if node.Detail != "" {
		b.WriteString("\n" + detailMarkdown(node.Detail))
	}
}

// writeFlags writes the table of the visible flags.
func writeFlags(b *strings.Builder, flags []*kong.Flag) {
	b.WriteString("| flag | meaning |\n|---|---|\n")
	for _, f := range flags {
		if !f.Hidden {
			fmt.Fprintf(b, "| `%s` | %s |\n", strings.ReplaceAll(f.String(), "|", `\|`), cell(f.Help))
		}
	}
}

// requiredFlags returns the flags that the command cannot do without; alternatives are
// joined by a bar.
func requiredFlags(node *kong.Node) (text string) {
	last := ""
	for _, f := range node.Flags {
		if !f.Required {
			continue
		}
		separator := " "
		if group := strings.Join(f.Xor, ","); group != "" && group == last {
			separator = "|"
		}
		text += separator + f.Summary()
		last = strings.Join(f.Xor, ",")
	}
	return text
}

// detailMarkdown returns a command's text, in which indented lines are examples.
func detailMarkdown(text string) string {
	var b strings.Builder
	for line := range strings.Lines(strings.TrimSpace(text) + "\n") {
		example, isExample := strings.CutPrefix(line, "  ")
		switch {
		case isExample:
			b.WriteString("    " + example)
		case strings.HasPrefix(line, "Example"):
			b.WriteString(line + "\n") // a blank line before the block
		default:
			b.WriteString(escapeMarkdown(line))
		}
	}
	return b.String()
}

// cell is a text for a cell of a table.
func cell(text string) string { return strings.ReplaceAll(escapeMarkdown(text), "|", `\|`) }

// escapeMarkdown keeps signs of a text from being read as Markdown or HTML.
func escapeMarkdown(text string) string {
	return strings.NewReplacer("<", `\<`, "*", `\*`, "_", `\_`).Replace(text)
}

// Package manual writes the manual page and docs/commands.md from the model of the
// command line, so that both have every command and every flag. See man(7) for the
// macros.
package manual

import (
	"fmt"
	"io"
	"strings"

	"github.com/alecthomas/kong"
)

const head = `.TH DINNERBELL 1 "" "dinnerbell" "User Commands"
.SH NAME
dinnerbell \- %s
.SH SYNOPSIS
.B dinnerbell
[\-c FILE] COMMAND
.SH COMMANDS
`

// exitCodes are the codes with which every command ends.
var exitCodes = []struct {
	code    int
	meaning string
}{
	{0, "done"},
	{1, "failed"},
	{2, "usage or configuration"},
	{3, "halted: an operator has to decide; a restart does not help"},
}

const tail = `.SH ENVIRONMENT
.TP
.B DINNERBELL_CONFIG
the configuration file, where \-c is not given
.TP
.B DINNERBELL_SECTION_KEY
overrides a key of the configuration: DINNERBELL_SOURCE_URL sets source.url
.SH FILES
.TP
.I /etc/dinnerbell/dinnerbell.yaml
the configuration that the service unit of the packages names
.TP
.I /var/lib/dinnerbell
its local state, which can be rebuilt and needs no backup
`

// Write writes the page of an application.
func Write(w io.Writer, app *kong.Application) error {
	var b strings.Builder
	name, _, _ := strings.Cut(app.Help, ".") // the first sentence
	fmt.Fprintf(&b, head, escape(name))
	for _, leaf := range app.Leaves(true) {
		writeCommand(&b, leaf)
	}
	b.WriteString(".SH EXIT STATUS\n")
	for _, e := range exitCodes {
		fmt.Fprintf(&b, ".TP\n.B %d\n%s\n", e.code, e.meaning)
	}
	b.WriteString(tail)
	_, err := io.WriteString(w, b.String())
	return err
}

func writeCommand(b *strings.Builder, node *kong.Node) {
	fmt.Fprintf(b, ".SS %s\n%s\n", escape(node.Path()+arguments(node)), escape(node.Help))
	for _, arg := range node.Positional {
		writeItem(b, arg.Summary(), arg.Help)
	}
	for _, f := range node.Flags {
		if !f.Hidden && f.Name != "help" {
			writeItem(b, f.String(), f.Help)
		}
	}
	if node.Detail != "" {
		fmt.Fprintf(b, ".PP\n.nf\n%s\n.fi\n", escape(node.Detail))
	}
}

func arguments(node *kong.Node) (text string) {
	for _, arg := range node.Positional {
		text += " " + arg.Summary()
	}
	return text
}

func writeItem(b *strings.Builder, name, help string) {
	fmt.Fprintf(b, ".TP\n.B %s\n%s\n", escape(name), escape(help))
}

// escape keeps a text from being read as macros.
func escape(text string) string {
	text = strings.NewReplacer(`\`, `\e`, `-`, `\-`).Replace(strings.TrimSpace(text))
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") || strings.HasPrefix(l, "'") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

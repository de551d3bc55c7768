package doctor

import (
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode/utf8"

	"dinnerbell/cmd/dinnerbell/internal/terminal"
	"dinnerbell/internal/precondition"
)

// Count returns how many findings of a level there are.
func Count(sections []Section, level precondition.Level) (n int) {
	for _, s := range sections {
		n += len(s.Report.At(level))
	}
	return n
}

// Print writes the findings as text, a section for each system, and a sum at the end.
// Checks that show nothing, and those that one reason keeps from being made, share a
// line.
func Print(out io.Writer, style terminal.Style, sections []Section) error {
	p := &printer{style: style}
	for _, s := range sections {
		for _, l := range foldLines(s) {
			p.nameWidth = min(maxName, max(p.nameWidth, utf8.RuneCountInString(l.Name)))
		}
	}
	for _, s := range sections {
		p.printSection(s)
	}
	p.printSum(sections)
	_, err := io.WriteString(out, p.b.String())
	return err
}

// maxName bounds the column of names.
const maxName = 26

type printer struct {
	b         strings.Builder
	style     terminal.Style
	nameWidth int
}

// foldLines returns the findings with short names, in their order: those with nothing
// to show in one line behind the others, and those that could not be made for one
// describeCause in one line.
func foldLines(s Section) []finding {
	var lines []finding
	var plain []string
	unmade := map[string]int{} // by reason: the line
	var names [][]string       // of the lines in unmade
	for _, f := range s.Report {
		f.Name = strings.TrimPrefix(f.Name, s.Name+".")
		switch at, seen := unmade[f.Found]; {
		case f.Level == precondition.OK && f.Found == precondition.PlainOK:
			plain = append(plain, f.Name)
		case f.Level == precondition.Unknown && f.Object == "" && seen:
			names[at] = append(names[at], f.Name)
		case f.Level == precondition.Unknown && f.Object == "":
			unmade[f.Found] = len(names)
			names = append(names, []string{f.Name})
		default:
			lines = append(lines, f)
		}
	}
	for _, f := range s.Report { // in the order of the report
		if at, ok := unmade[f.Found]; ok && f.Level == precondition.Unknown && len(names[at]) > 0 {
			line := finding{Name: names[at][0], Level: precondition.Unknown, Found: f.Found}
			if n := len(names[at]); n > 1 {
				line.Name, line.Found = fmt.Sprintf("%d checks", n), f.Found+" ("+strings.Join(names[at], ", ")+")"
			}
			lines, names[at] = append(lines, line), nil
		}
	}
	if len(plain) > 0 {
		lines = append(lines, finding{Name: "also", Found: strings.Join(plain, ", ")})
	}
	return lines
}

var levelColours = map[precondition.Level]terminal.Colour{
	precondition.OK: terminal.Green, precondition.Warn: terminal.Yellow, precondition.Unknown: terminal.Magenta, precondition.Fail: terminal.Red,
}

// levelWidth is the width of the longest level.
const levelWidth = len("unknown")

func (p *printer) printSection(s Section) {
	if p.b.Len() > 0 {
		p.b.WriteByte('\n')
	}
	p.b.WriteString(p.style.Paint(terminal.Bold, s.Name) + "\n")
	for _, f := range foldLines(s) {
		p.printFinding(f)
	}
}

func (p *printer) printFinding(f finding) {
	name := terminal.Escape(f.Name)
	level := f.Level.String()
	fmt.Fprintf(&p.b, "  %s%s  %s%s  ", name, padRight(name, p.nameWidth), p.style.Paint(levelColours[f.Level], level), padRight(level, levelWidth))
	indent := 2 + p.nameWidth + 2 + levelWidth + 2
	if utf8.RuneCountInString(name) > p.nameWidth {
		p.b.WriteString("\n" + strings.Repeat(" ", indent))
	}
	text := f.Found
	if f.Object != "" && f.Level != precondition.OK {
		text = f.Object + ": " + text
	}
	if f.Effect != "" {
		text += "; " + f.Effect
	}
	for i, line := range wrapText(terminal.Escape(text), p.style.Width-indent) {
		if i > 0 {
			p.b.WriteString(strings.Repeat(" ", indent))
		}
		p.b.WriteString(line + "\n")
	}
	for _, line := range fixLines(terminal.Escape(f.Fix), p.style.Width-fixIndent) {
		p.b.WriteString(strings.Repeat(" ", fixIndent) + p.style.Paint(terminal.Bold, line) + "\n")
	}
}

func padRight(text string, width int) string {
	return strings.Repeat(" ", max(0, width-utf8.RuneCountInString(text)))
}

// fixIndent is the indentation of what mends a fault: small, so that commands fit.
const fixIndent = 6

// shellCommand matches what a shell runs: there a line that is broken ends with a \.
var shellCommand = regexp.MustCompile(`^(kafka-[a-z-]+\.sh|dinnerbell|install|kill|timedatectl|chown|chmod|mv|psql) `)

// fixLines breaks a command or statement into lines that can be pasted as they are: SQL
// behind each statement and at blanks, a shell's command with \ at the ends.
func fixLines(fix string, width int) (lines []string) {
	if fix == "" {
		return nil
	}
	if shellCommand.MatchString(fix) {
		lines = wrapWords(splitOutsideQuotes(fix), width-2)
		for i := range lines[:len(lines)-1] {
			lines[i] += ` \`
		}
		return lines
	}
	remedy := precondition.SplitRemedy(fix)
	if remedy.Statements == nil {
		return wrapText(fix, width)
	}
	for _, statement := range remedy.Statements {
		lines = append(lines, wrapWords(splitOutsideQuotes(statement+";"), width)...)
	}
	if remedy.Advice != "" { // behind the statements: a comment hides what follows on its line
		for _, line := range wrapText(remedy.Advice, width-len("-- ")) {
			lines = append(lines, "-- "+line)
		}
	}
	return lines
}

// splitOutsideQuotes splits a statement or a shell's command at its blanks, but for those
// within quotes: they belong to a name or a value.
func splitOutsideQuotes(text string) (words []string) {
	word, quote := strings.Builder{}, byte(0)
	end := func() {
		if word.Len() > 0 {
			words = append(words, word.String())
		}
		word.Reset()
	}
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quote == 0 && c == ' ':
			end()
			continue
		case quote == 0 && c == '\\' && i+1 < len(text): // a shell's, before a quote
			word.WriteByte(c)
			i++
		case quote == 0 && (c == '\'' || c == '"'):
			quote = c
		case c == quote:
			quote = 0
		}
		word.WriteByte(text[i])
	}
	end()
	return words
}

// wrapText breaks text at blanks into lines of at most width characters; a longer word
// stays whole.
func wrapText(text string, width int) []string { return wrapWords(strings.Fields(text), width) }

// wrapWords puts words into lines of at most width characters; a longer word stays whole.
func wrapWords(words []string, width int) []string {
	var lines []string
	line := ""
	for _, word := range words {
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width:
			lines, line = append(lines, line), word
		default:
			line += " " + word
		}
	}
	return append(lines, line)
}

// printSum writes how many findings there are of each level.
func (p *printer) printSum(sections []Section) {
	fail, warn, unknown := Count(sections, precondition.Fail), Count(sections, precondition.Warn), Count(sections, precondition.Unknown)
	var parts []string
	add := func(n int, what string, c terminal.Colour) {
		if n > 0 {
			parts = append(parts, p.style.Paint(c, fmt.Sprintf("%d %s", n, what)))
		}
	}
	add(fail, "must be mended", terminal.Red)
	add(warn, "to look at", terminal.Yellow)
	add(unknown, "not known", terminal.Magenta)
	if len(parts) == 0 {
		parts = []string{p.style.Paint(terminal.Green, "all is well")}
	}
	p.b.WriteString("\n" + strings.Join(parts, ", ") + "\n")
}

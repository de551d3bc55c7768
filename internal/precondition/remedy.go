package precondition

import (
	"cmp"
	"regexp"
	"strings"
)

// Remedy is what mends a fault, taken apart for those who run it: at least one of both is
// set unless the text was empty.
type Remedy struct {
	// Statements are SQL, in their order, each for a call of its own: ALTER SYSTEM shares
	// none with another statement. None has a semicolon at its end.
	Statements []string `json:"statements,omitempty"`
	// Advice is all that is no SQL: a command, a sentence, a comment on the statements.
	Advice string `json:"advice,omitempty"`
}

// SplitRemedy takes the text of a remedy apart: statements between backquotes within a
// sentence, or statements with "; " between them, behind which a comment or a sentence may
// stand.
func SplitRemedy(text string) Remedy {
	// A backquote may be part of a name in a statement, or stand alone.
	if n := strings.Count(text, "`"); n > 0 && n%2 == 0 && !sqlStatement.MatchString(strings.TrimSpace(text)) {
		return splitSentence(text)
	}
	return splitStatements(text)
}

// sqlStatement matches the begin of a statement.
var sqlStatement = regexp.MustCompile(`^(ALTER|CREATE|DELETE|DROP|GRANT|INSERT|REVOKE|ROLLBACK|SELECT|UPDATE) `)

// splitStatements takes a text apart that begins with a statement.
func splitStatements(text string) (r Remedy) {
	rest := strings.TrimSpace(text)
	for sqlStatement.MatchString(rest) {
		end, next := endOfStatement(rest)
		r.Statements = append(r.Statements, strings.TrimSpace(rest[:end]))
		rest = strings.TrimSpace(rest[next:])
	}
	r.Advice = strings.TrimSpace(strings.TrimPrefix(rest, "-- "))
	return r
}

// endOfStatement returns where the statement at the begin of a text ends, and where the
// text goes on: behind a semicolon, or at a comment. Those within quotes are the
// statement's.
func endOfStatement(text string) (end, next int) {
	quote := byte(0)
	for i := range len(text) {
		switch c := text[i]; {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		case c == ';' && (i+1 == len(text) || text[i+1] == ' '):
			return i, i + 1
		case strings.HasPrefix(text[i:], "-- "):
			return i, i
		}
	}
	return len(text), len(text)
}

// joined matches what stands between two statements of a sentence.
var joined = regexp.MustCompile(`^[,;]? ?(and |then |and then )?$`)

// splitSentence takes the statements between backquotes out of a sentence. In their place
// the sentence names them.
func splitSentence(text string) (r Remedy) {
	const one, many = "the statement", "the statements"
	var advice strings.Builder
	run := 0 // how many statements follow one another here
	name := func() {
		if run > 0 {
			advice.WriteString([]string{one, many}[min(run, 2)-1])
		}
		run = 0
	}
	between := ""
	for i, part := range strings.Split(text, "`") {
		switch {
		case i%2 == 0:
			between = part
			if run == 0 || !joined.MatchString(part) {
				name()
				advice.WriteString(part)
				between = ""
			}
		case sqlStatement.MatchString(part):
			found := splitStatements(part)
			r.Statements = append(r.Statements, found.Statements...)
			run += len(found.Statements)
			between = ""
			if found.Advice != "" {
				name()
				advice.WriteString(" (" + found.Advice + ")")
			}
		default:
			name()
			advice.WriteString(between + "`" + part + "`")
			between = ""
		}
	}
	name()
	advice.WriteString(between)
	if r.Advice = advice.String(); r.Advice == one || r.Advice == many {
		r.Advice = ""
	}
	return r
}

// remedyMark begins the remedy in the text of an error. A closing parenthesis ends it.
const remedyMark = " (to mend: "

// CutRemedy cuts the remedies out of the text of an error: what stands in "(to mend: …)".
// It returns the first of them, "" if there is none.
func CutRemedy(text string) (rest, remedy string) {
	for {
		before, after, found := strings.Cut(text, remedyMark)
		if !found {
			return rest + text, remedy
		}
		end, depth := len(after), 1
		for i := 0; i < len(after) && end == len(after); i++ {
			switch after[i] {
			case '(':
				depth++
			case ')':
				if depth--; depth == 0 {
					end = i
				}
			case '\'':
				if after[i-min(i, 1)] == ' ' {
					i = findQuoteEnd(after, i)
				}
			}
		}
		rest, remedy, text = rest+before, cmp.Or(remedy, after[:end]), after[min(len(after), end+1):]
	}
}

// findQuoteEnd returns the index of the quote that closes the argument that QuoteArgument
// has begun at text[begin], or begin if there is none.
func findQuoteEnd(text string, begin int) int {
	for at := begin; ; at += len(`\''`) {
		next := strings.IndexByte(text[at+1:], '\'')
		if next < 0 {
			return begin
		}
		if at += 1 + next; !strings.HasPrefix(text[at:], `'\''`) {
			return at
		}
	}
}

// QuoteArgument writes a text as an argument of a command in a POSIX shell.
func QuoteArgument(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_.:@%+=,/", r)
	}
	if s != "" && s[0] != '-' && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

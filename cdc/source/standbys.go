package source

import (
	"fmt"
	"strings"

	"dinnerbell/internal/precondition"
)

// checkStandbys refuses a server that takes the mirror's walsender for a
// synchronous standby. Its commits would wait for the mirror's acknowledgements,
// which are held back to the newest checkpoint; and a commit that was promised to
// lie on a standby would lie here only. pg_stat_replication shows that to members
// of pg_read_all_stats only, so the check reads the setting itself.
func checkStandbys(f *checkFacts) []finding {
	names, err := parseStandbys(f.cat.standbyNames)
	if err != nil {
		return []finding{{Level: precondition.Unknown, Object: "the server's synchronous_standby_names", Found: err.Error()}}
	}
	for _, name := range names {
		if name == "*" || strings.EqualFold(name, f.cat.application) {
			return newViolation("the server", fmt.Sprintf("has synchronous_standby_names = '%s', which takes dinnerbell's connection %q for a synchronous standby", f.cat.standbyNames, f.cat.application),
				"commits would wait for dinnerbell's acknowledgements, and a commit would count as replicated that no standby has",
				"ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf(); "+
					"-- or, with standbys, name them, since '*' leaves nobody out: ALTER SYSTEM SET synchronous_standby_names = 'standby1, standby2'")
		}
	}
	return nil
}

// parseStandbys returns the names in the value of synchronous_standby_names:
//
//	name, name …   N (name, …)   FIRST N (name, …)   ANY N (name, …)
//
// A name is an identifier, digits or *, or stands in double quotes, which it
// doubles. Keywords and names are in any case. A keyword can be a name where no
// number follows. The grammar is that of syncrep_gram.y and syncrep_scanner.l.
// https://www.postgresql.org/docs/current/runtime-config-replication.html#GUC-SYNCHRONOUS-STANDBY-NAMES
func parseStandbys(value string) ([]string, error) {
	tokens, err := scanStandbys(value)
	if err != nil {
		return nil, err
	}
	at := func(i int) standbyToken {
		if i < len(tokens) {
			return tokens[i]
		}
		return standbyToken{}
	}
	first := 0
	if strings.EqualFold(at(0).text, "FIRST") && !at(0).quoted || strings.EqualFold(at(0).text, "ANY") && !at(0).quoted {
		first = 1
	}
	list := tokens
	if at(first+1).text == "(" && !at(first+1).quoted {
		list = tokens[first+2:]
		if end := len(list) - 1; end < 0 || list[end].text != ")" || list[end].quoted {
			return nil, fmt.Errorf("read %q: no closing parenthesis", value)
		}
		list = list[:len(list)-1]
	}
	var names []string
	if len(list) > 0 && len(list)%2 == 0 {
		return nil, fmt.Errorf("read %q: a comma or a name is missing", value)
	}
	for i, t := range list {
		comma := t.text == "," && !t.quoted
		if comma != (i%2 == 1) || !t.quoted && (t.text == "(" || t.text == ")") {
			return nil, fmt.Errorf("read %q: a list of names separated by commas is expected", value)
		}
		if !comma {
			names = append(names, t.text)
		}
	}
	return names, nil
}

// standbyToken is a name or a number, or an unquoted "(", ")" or ",".
type standbyToken struct {
	text   string
	quoted bool
}

// scanStandbys cuts the value into tokens.
func scanStandbys(value string) ([]standbyToken, error) {
	var tokens []standbyToken
	for i := 0; i < len(value); {
		switch c := value[i]; {
		case strings.IndexByte(" \t\n\r\f\v", c) >= 0:
			i++
		case strings.IndexByte("(),*", c) >= 0:
			tokens = append(tokens, standbyToken{text: string(c)})
			i++
		case c == '"':
			name, rest, ok := cutQuoted(value[i+1:])
			if !ok {
				return nil, fmt.Errorf("read %q: a quoted name does not end", value)
			}
			tokens = append(tokens, standbyToken{text: name, quoted: true})
			i = len(value) - len(rest)
		default:
			end := i
			for end < len(value) && isStandbyName(value[end]) {
				end++
			}
			if end == i {
				return nil, fmt.Errorf("read %q: unexpected %q", value, c)
			}
			tokens = append(tokens, standbyToken{text: value[i:end]})
			i = end
		}
	}
	return tokens, nil
}

// cutQuoted reads up to the closing quote; a doubled one is part of the name.
func cutQuoted(text string) (name, rest string, ok bool) {
	for {
		part, behind, found := strings.Cut(text, `"`)
		if !found {
			return "", "", false
		}
		name += part
		if !strings.HasPrefix(behind, `"`) {
			return name, behind, true
		}
		name, text = name+`"`, behind[1:]
	}
}

func isStandbyName(c byte) bool {
	return c == '_' || c == '$' || c >= 0x80 || '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z'
}

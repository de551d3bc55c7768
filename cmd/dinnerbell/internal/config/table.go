package config

import (
	"fmt"
	"strings"

	"dinnerbell/internal/postgres"
)

// Table names a Postgres table. Names are taken as written, without folding to
// lower case; a name with a dot in it is put in double quotes.
type Table struct{ Schema, Name string }

// String returns the name in the form of the file.
func (t Table) String() string { return quotePart(t.Schema) + "." + quotePart(t.Name) }

func quotePart(s string) string {
	if strings.ContainsAny(s, `."`) {
		return `"` + strings.ReplaceAll(s, `"`, `""`) + `"`
	}
	return s
}

// parseTable reads schema.table; a name alone is in public.
func parseTable(s string) (Table, error) {
	first, rest, err := tablePart(s)
	if err != nil {
		return Table{}, err
	}
	if rest == "" {
		return Table{"public", first}, nil
	}
	second, rest, err := tablePart(strings.TrimPrefix(rest, "."))
	if err != nil {
		return Table{}, err
	}
	if rest != "" {
		return Table{}, fmt.Errorf("%q has more than two parts: write schema.table", s)
	}
	return Table{first, second}, nil
}

// tablePart takes one name, quoted or not, off the front; rest is empty or
// begins with the dot.
func tablePart(s string) (name, rest string, err error) {
	quoted, isQuoted := strings.CutPrefix(s, `"`)
	if !isQuoted {
		i := strings.IndexByte(s, '.')
		if i < 0 {
			i = len(s)
		}
		name, rest = s[:i], s[i:]
	} else {
		var b strings.Builder
		for {
			part, after, ok := strings.Cut(quoted, `"`)
			if !ok {
				return "", "", fmt.Errorf("%q has an opening quote without its closing one", s)
			}
			b.WriteString(part)
			if quoted, ok = strings.CutPrefix(after, `"`); !ok {
				rest = after
				break
			}
			b.WriteByte('"') // "" inside quotes is one quote
		}
		name = b.String()
		if rest != "" && rest[0] != '.' {
			return "", "", fmt.Errorf("%q has text behind a quoted name", s)
		}
	}
	if err := postgres.CheckIdentifier(name); err != nil {
		return "", "", err
	}
	return name, rest, nil
}

package postgres

import (
	"errors"
	"fmt"
	"strings"
)

// MaxIdentifier is how many bytes of a name Postgres keeps (NAMEDATALEN - 1,
// https://www.postgresql.org/docs/current/sql-syntax-lexical.html#SQL-SYNTAX-IDENTIFIERS).
const MaxIdentifier = 63

// CheckIdentifier returns an error for a name that Postgres would refuse or, worse,
// cut short.
func CheckIdentifier(name string) error {
	switch {
	case name == "":
		return errors.New("a name is empty")
	case len(name) > MaxIdentifier:
		return fmt.Errorf("%q is longer than the %d bytes of a Postgres name", name, MaxIdentifier)
	case strings.ContainsRune(name, 0):
		return fmt.Errorf("%q holds a NUL", name)
	}
	return nil
}

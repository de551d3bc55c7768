package id

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrBadLSN means that a text is not a WAL position.
var ErrBadLSN = errors.New("malformed LSN")

// LSN is a position in the Postgres write-ahead log, a byte offset that only
// grows on one timeline. Zero means "none".
type LSN uint64

// String returns Postgres' own notation, two hexadecimal halves: "16/B374D848".
func (l LSN) String() string {
	return fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l))
}

// ParseLSN reads the notation of [LSN.String] and of pg_lsn. It returns an
// error that wraps [ErrBadLSN] for anything else.
func ParseLSN(text string) (LSN, error) {
	high, low, ok := strings.Cut(text, "/")
	if !ok {
		return 0, fmt.Errorf("parse LSN %q: %w", text, ErrBadLSN)
	}
	h, err := parseHexHalf(high)
	if err != nil {
		return 0, fmt.Errorf("parse LSN %q: %w", text, err)
	}
	l, err := parseHexHalf(low)
	if err != nil {
		return 0, fmt.Errorf("parse LSN %q: %w", text, err)
	}
	return LSN(h)<<32 | LSN(l), nil
}

// MarshalText returns the notation of [LSN.String], in JSON too.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads a position as [ParseLSN] does.
func (l *LSN) UnmarshalText(text []byte) error {
	v, err := ParseLSN(string(text))
	*l = v
	return err
}

// parseHexHalf reads 1 to 8 hexadecimal digits. strconv alone would accept a sign and
// underscores too.
func parseHexHalf(text string) (uint32, error) {
	if strings.ContainsAny(text, "+-_") {
		return 0, ErrBadLSN
	}
	v, err := strconv.ParseUint(text, 16, 32)
	if err != nil {
		return 0, ErrBadLSN
	}
	return uint32(v), nil
}

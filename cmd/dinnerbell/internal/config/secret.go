package config

import (
	"fmt"
	"log/slog"
)

// redacted is shown in the place of a secret.
const redacted = "[redacted]"

// Secret is a value that is never shown. It holds the text of the configuration;
// Reveal looks up the references in it, each time anew, so that a rotated
// credential reaches the next connection without a restart.
type Secret struct {
	key string // the configuration key, for errors
	raw string
	env Env
	// seen records the revealed values; nil outside of a Config.
	seen *revealedSecrets
}

// IsSet reports whether a value was configured.
func (s Secret) IsSet() bool { return s.raw != "" }

// Reveal returns the value with every reference looked up now. Errors name the
// key and the reference and never the value.
func (s Secret) Reveal() (string, error) {
	out, err := expandText(s.raw, s.env)
	if err != nil {
		return "", fmt.Errorf("%s: %w", s.key, err)
	}
	if s.seen != nil {
		s.seen.addSecret(s.key, out)
	}
	return out, nil
}

// Format keeps every verb of fmt from showing the value, %#v and %x too.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// String shows that there is a value, never the value.
func (s Secret) String() string {
	if !s.IsSet() {
		return ""
	}
	return redacted
}

// MarshalText keeps the value out of JSON and every other encoding.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue keeps the value out of the log.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

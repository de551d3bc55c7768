package config

import (
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"dinnerbell/internal/postgres"
)

// minHidden is the shortest secret, in bytes, that Hide takes out of a text: a
// shorter one is a part of common words.
const minHidden = 6

// maxRemembered bounds how many secrets are remembered. A token that is new for each
// connection would fill the memory otherwise.
const maxRemembered = 64

// revealedSecrets holds the secrets that were revealed: a server may repeat a
// secret in an error.
type revealedSecrets struct {
	mu     sync.Mutex          // guards what follows
	values []string            // the one that was used last at the end, maxRemembered at most
	forms  map[string][]string // of each value: encodeSecret
}

// addSecret records the secrets in a revealed value: the passwords in an address, else the
// value itself. Names with which somebody logs in are no secrets.
func (r *revealedSecrets) addSecret(key, value string) {
	var found []string
	switch {
	case strings.HasSuffix(key, "url"):
		found = postgres.Passwords(value)
	case !strings.HasSuffix(key, "username") && !strings.HasSuffix(key, "client_id"): // names that errors may show
		found = []string{value}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range found {
		if len(s) < minHidden {
			continue
		}
		r.values = slices.DeleteFunc(r.values, func(old string) bool { return old == s })
		for len(r.values) >= maxRemembered {
			delete(r.forms, r.values[0])
			r.values = r.values[1:]
		}
		r.values = append(r.values, s)
		if r.forms == nil {
			r.forms = map[string][]string{}
		}
		if _, known := r.forms[s]; !known {
			r.forms[s] = encodeSecret(s)
		}
	}
}

// encodeSecret returns a secret as it is and in the forms in which a server may repeat it:
// of URLs, quoted, hexadecimal, and of Base64 alone or behind something else, such as a
// user's name.
func encodeSecret(s string) []string {
	quoted := strconv.Quote(s)
	forms := []string{s, url.QueryEscape(s), url.PathEscape(s), quoted[1 : len(quoted)-1], hex.EncodeToString([]byte(s)),
		base64.StdEncoding.EncodeToString([]byte(s)), base64.RawURLEncoding.EncodeToString([]byte(s))}
	for _, e := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for before := range 3 { // the characters that s alone determines
			text := e.EncodeToString(append(make([]byte, before), s...))
			if middle := text[(before*8+5)/6 : (before+len(s))*8/6]; len(middle) >= minHidden {
				forms = append(forms, middle)
			}
		}
	}
	slices.Sort(forms)
	return slices.Compact(forms)
}

// listSecrets returns the secrets in all forms, longest first: one may be a part of another.
func (r *revealedSecrets) listSecrets() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	for _, s := range r.values {
		all = append(all, r.forms[s]...)
	}
	slices.SortFunc(all, func(a, b string) int { return len(b) - len(a) })
	return all
}

// userinfo matches user and password of a URL in a text. Cleaning a path leaves one
// of two slashes.
var userinfo = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://?)[^\s/"'` + "`" + `]*:[^\s"'` + "`" + `]*@`)

// assigned matches a password of a keyword/value string, or of a JAAS line.
var assigned = regexp.MustCompile(`(?i)((?:password|passwd|pwd|secret)\s*=\s*)(?:\\?"[^"]*"|'[^']*'|[^\s"'&;,]+)`)

// HideUserinfo removes users with their passwords from the URLs in a text, and
// passwords from name=value: an operator may have written either in the place of a
// name that is no secret.
func HideUserinfo(text string) string {
	text = userinfo.ReplaceAllString(text, "${1}"+redacted+"@")
	return assigned.ReplaceAllString(text, "${1}"+redacted)
}

// Hide removes every password that was used until now from a text of any origin. It
// leaves a password that is also a name, such as the role's: the text would be
// unreadable, and the gap would show the password.
func (c *Config) Hide(text string) string {
	text = HideUserinfo(text)
	if c.seen == nil {
		return text // a Config that Load has not made records no secrets
	}
	for _, s := range c.seen.listSecrets() {
		if strings.Contains(text, s) && !c.isName(s) {
			text = strings.ReplaceAll(text, s, redacted)
		}
	}
	return text
}

// isName reports whether a value that is no secret contains s.
func (c *Config) isName(s string) bool {
	for _, word := range []string{"dinnerbell", "postgres", "password", "authentication"} {
		if strings.Contains(word, s) {
			return true
		}
	}
	for _, f := range newTree(c).allLeaves() {
		switch v := f.value.Interface().(type) {
		case string:
			if strings.Contains(v, s) {
				return true
			}
		case Secret:
			if strings.HasSuffix(f.key, "url") && v.IsSet() {
				if raw, err := expandText(v.raw, v.env); err == nil && strings.Contains(postgres.Redact(raw), s) {
					return true
				}
			}
		}
	}
	return false
}

// watchSecrets has c's secrets record each value that they reveal.
func (c *Config) watchSecrets() {
	c.seen = &revealedSecrets{}
	for _, f := range newTree(c).allLeaves() {
		if s, ok := reflect.TypeAssert[*Secret](f.value.Addr()); ok {
			s.seen = c.seen
		}
	}
}

package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Env is the process environment.
type Env map[string]string

// ParseEnv reads the NAME=value list of os.Environ.
func ParseEnv(list []string) Env {
	env := make(Env, len(list))
	for _, kv := range list {
		if name, value, ok := strings.Cut(kv, "="); ok {
			env[name] = value
		}
	}
	return env
}

// List returns the NAME=value list, sorted.
func (e Env) List() []string {
	out := make([]string, 0, len(e))
	for _, name := range slices.Sorted(maps.Keys(e)) {
		out = append(out, name+"="+e[name])
	}
	return out
}

// expandText replaces ${VAR} by an environment variable and ${file:PATH} by the
// contents of a file, without the line ends that editors and `echo` leave. `$${` is
// a literal `${`; any other `$` stands for itself, so that passwords with one need
// no care. The value of a reference is not expanded again.
func expandText(s string, env Env) (string, error) {
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(s, "${")
		if !found {
			out.WriteString(s)
			return out.String(), nil
		}
		if literal, ok := strings.CutSuffix(before, "$"); ok {
			out.WriteString(literal + "${")
			s = rest
			continue
		}
		name, after, closed := strings.Cut(rest, "}")
		if !closed {
			return "", errors.New("expand: a ${ without its }; write $${ for a literal one")
		}
		value, err := lookupVariable(name, env)
		if err != nil {
			return "", err
		}
		out.WriteString(before + value)
		s = after
	}
}

// lookupVariable returns the value of the reference between ${ and }.
func lookupVariable(name string, env Env) (string, error) {
	if path, ok := strings.CutPrefix(name, "file:"); ok {
		b, err := readBounded(path)
		if err != nil {
			return "", fmt.Errorf("expand ${%s}: %w", name, err)
		}
		return withoutLineEnd(string(b)), nil
	}
	if !isVariable(name) {
		// The error does not repeat the text, which may be a password with "${" in
		// it.
		return "", errors.New("expand: the text between ${ and } is neither a variable's name nor file:PATH; write $${ for a literal one")
	}
	value, ok := env[name]
	if !ok {
		return "", fmt.Errorf("expand ${%s}: the environment variable %s is not set", name, name)
	}
	return withoutLineEnd(value), nil
}

// withoutLineEnd removes the line ends that files, and variables that were filled
// from files, have behind a value.
func withoutLineEnd(s string) string { return strings.TrimRight(s, "\r\n") }

// isVariable reports whether a POSIX shell can set the name.
func isVariable(s string) bool {
	for i, r := range s {
		letter := r == '_' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
		if !letter && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return s != ""
}

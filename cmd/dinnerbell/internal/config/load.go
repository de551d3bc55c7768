package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// DefaultFile is read when no file is named.
const DefaultFile = "dinnerbell.yaml"

// Load reads the file at path over the defaults, and the environment over both. An
// empty path means DefaultFile, which may be absent: then the environment must set
// the keys without a default. A file that is named must exist.
//
// Load checks the form: known keys, readable values, references that resolve.
// Validate checks whether the values make sense together; the split lets `status`
// work with a file that `run` would refuse. All errors found are reported at once
// and wrap ErrInvalid.
func Load(path string, env Env) (*Config, error) {
	cfg := Defaults()
	cfg.watchSecrets()
	optional := path == ""
	if optional {
		path = DefaultFile
	}
	var problems []error
	data, err := readBounded(path)
	switch {
	case err == nil:
		problems = cfg.readFile(path, data, env)
	case optional && errors.Is(err, fs.ErrNotExist):
		cfg.missing = path
	default:
		return nil, fmt.Errorf("%w: read file: %w", ErrInvalid, err)
	}
	problems = append(problems, cfg.readEnv(env)...)
	if err := joinProblems(problems); err != nil {
		return nil, err
	}
	return cfg, nil
}

// maxFile is the size limit, in bytes, of the configuration file and of the files
// that ${file:…} names. A whole configuration has a few kilobytes.
const maxFile = 1 << 20

// readBounded reads a file, and refuses one that is larger than maxFile:
// /dev/zero has no end.
func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	return b, err
}

// maxProblems bounds how many errors are reported at once.
const maxProblems = 20

// joinProblems makes one error of many, with a line for each.
func joinProblems(problems []error) error {
	if more := len(problems) - maxProblems; more > 0 {
		problems = append(slices.Clone(problems[:maxProblems]), fmt.Errorf("and %d more", more))
	}
	switch len(problems) {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("%w: %w", ErrInvalid, problems[0])
	}
	return fmt.Errorf("%w:\n%w", ErrInvalid, errors.Join(problems...))
}

// linkVariable matches the variables that Kubernetes and Docker set by themselves
// for a service named dinnerbell-kafka
// (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables);
// they are no mistakes of an operator.
func linkVariable(name string) bool {
	return strings.HasSuffix(name, "_SERVICE_HOST") || strings.HasSuffix(name, "_PORT") ||
		strings.Contains(name, "_SERVICE_PORT") || strings.Contains(name, "_PORT_")
}

// readEnv sets keys from the environment. A variable with our prefix that names no
// key is an error, like an unknown key in the file.
func (c *Config) readEnv(env Env) []error {
	root := newTree(c)
	known := map[string]bool{}
	var problems []error
	for _, f := range root.allLeaves() {
		name := envName(f.key)
		known[name] = true
		text, ok := env[name]
		if !ok {
			continue
		}
		if err := f.setText(withoutLineEnd(text), env); err != nil {
			problems = append(problems, fmt.Errorf("%s (%s): %w", name, f.key, err))
		}
	}
	var unknown []string
	for name := range env {
		rest, ours := strings.CutPrefix(name, envPrefix)
		section, _, _ := strings.Cut(strings.ToLower(rest), "_")
		if _, isSection := root.children[section]; ours && isSection && !known[name] && !linkVariable(name) {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	for _, name := range unknown {
		problems = append(problems, fmt.Errorf("unknown variable %s%s", name, nearestEnv(root, name)))
	}
	return problems
}

// Missing reports whether there is no configuration file.
func (c *Config) Missing() bool { return c.missing != "" }

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
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
	problems = append(problems, cfg.readEnv(data, env)...)
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

// linkName matches the variables that Kubernetes and Docker set by themselves for a service
// named dinnerbell or dinnerbell-kafka
// (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables);
// they are no mistakes of an operator.
var linkName = regexp.MustCompile(`^DINNERBELL_(.*_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`)

// isLinkVariable reports whether a variable is one of these: also DINNERBELL_PORT, whose
// value is a URL.
func isLinkVariable(name, value string) bool {
	return linkName.MatchString(name) || strings.HasSuffix(name, "_PORT") && strings.Contains(value, "://")
}

// otherVariables are the known variables that are no keys: the name of the file, and the
// place where a binary for the tests of crashes dies.
var otherVariables = []string{"DINNERBELL_CONFIG", "DINNERBELL_FAILPOINT"}

// readEnv sets keys from the environment. A variable with our prefix that names no key is an
// error, like an unknown key in the file, unless ${NAME} in the file or in another variable
// refers to it.
func (c *Config) readEnv(file []byte, env Env) []error {
	root := newTree(c)
	known := map[string]bool{}
	for _, name := range otherVariables {
		known[name] = true
	}
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
	for name, value := range env {
		if strings.HasPrefix(name, envPrefix) && !known[name] && !isLinkVariable(name, value) && !isReferred(name, file, env) {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	for _, name := range unknown {
		problems = append(problems, fmt.Errorf("unknown variable %s%s", name, nearestEnv(root, name)))
	}
	return problems
}

// isReferred reports whether ${name} stands in the file, or in a variable of ours.
func isReferred(name string, file []byte, env Env) bool {
	reference := "${" + name + "}"
	if bytes.Contains(file, []byte(reference)) {
		return true
	}
	for other, value := range env {
		if strings.HasPrefix(other, envPrefix) && strings.Contains(value, reference) {
			return true
		}
	}
	return false
}

// Describe names where the configuration came from. file is the file that Load was given.
func (c *Config) Describe(file string, env Env) string {
	if file == "" {
		file = DefaultFile
	}
	if whole, err := filepath.Abs(file); err == nil {
		file = whole
	}
	if c.missing != "" {
		file = "no file (" + file + " does not exist)"
	}
	variables := 0
	for name := range env {
		if strings.HasPrefix(name, "DINNERBELL_") && name != "DINNERBELL_CONFIG" {
			variables++
		}
	}
	switch variables {
	case 0:
		return file
	case 1:
		return file + ", 1 variable of the environment"
	}
	return fmt.Sprintf("%s, %d variables of the environment", file, variables)
}

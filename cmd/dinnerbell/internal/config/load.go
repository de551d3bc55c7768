package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// DefaultFile is read when no file is named.
const DefaultFile = "dinnerbell.yaml"

// Load reads the file at path over the defaults, and the environment over both.
// An empty path means DefaultFile, which may be absent: then the environment has
// to say what has no default. A file that was asked for must be there.
//
// Load checks the form: known keys, readable values, references that resolve.
// Whether the values make sense together is Validate's to say; the split lets
// `status` work with a file that `run` would refuse. All errors found are
// reported at once and wrap ErrInvalid.
func Load(path string, env Env) (*Config, error) {
	cfg := Defaults()
	optional := path == ""
	if optional {
		path = DefaultFile
	}
	var problems []error
	data, err := os.ReadFile(path)
	switch {
	case err == nil:
		problems = cfg.readFile(path, data, env)
	case optional && errors.Is(err, fs.ErrNotExist):
		cfg.missing = path
	default:
		return nil, fmt.Errorf("%w: read file: %w", ErrInvalid, err)
	}
	problems = append(problems, cfg.readEnv(env)...)
	if err := joined(problems); err != nil {
		return nil, err
	}
	return cfg, nil
}

// joined makes one error of many, one to a line.
func joined(problems []error) error {
	switch len(problems) {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("%w: %w", ErrInvalid, problems[0])
	}
	return fmt.Errorf("%w:\n%w", ErrInvalid, errors.Join(problems...))
}

// readFile lays the file's values over cfg.
func (c *Config) readFile(path string, data []byte, env Env) []error {
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		// Without the excerpt of the source, which may hold a password.
		return []error{fmt.Errorf("%s: not YAML: %s", path, yaml.FormatError(err, false, false))}
	}
	r := fileReader{path: path, root: tree(c), env: env, anchors: map[string]ast.Node{}}
	for i, doc := range file.Docs {
		if i > 0 && doc.Body != nil {
			r.failf(doc.Body, "a second YAML document; one file is one configuration")
			break
		}
		r.section(r.root, doc.Body)
	}
	return r.problems
}

// fileReader walks the syntax tree beside the key tree. It works on the tree,
// not through an unmarshaler, to know the line of every key.
type fileReader struct {
	path     string
	root     *field
	env      Env
	anchors  map[string]ast.Node
	problems []error
}

func (r *fileReader) failf(at ast.Node, format string, args ...any) {
	line := 0
	if t := at.GetToken(); t != nil && t.Position != nil {
		line = t.Position.Line
	}
	r.problems = append(r.problems, fmt.Errorf("%s:%d: %w", r.path, line, fmt.Errorf(format, args...)))
}

// resolve follows anchors, aliases and tags to the node that holds the value.
func (r *fileReader) resolve(n ast.Node) ast.Node {
	switch n := n.(type) {
	case *ast.AnchorNode:
		r.anchors[n.Name.String()] = n.Value
		return r.resolve(n.Value)
	case *ast.AliasNode:
		if v, ok := r.anchors[n.Value.String()]; ok {
			return v
		}
	case *ast.TagNode:
		return r.resolve(n.Value)
	}
	return n
}

// section reads a mapping. An empty one (all its lines commented out) leaves
// the defaults in place.
func (r *fileReader) section(f *field, n ast.Node) {
	n = r.resolve(n)
	if n == nil || n.Type() == ast.NullType {
		return
	}
	m, ok := n.(ast.MapNode)
	if !ok {
		what := "the file"
		if f.key != "" {
			what = f.key
		}
		r.failf(n, "%s holds keys, not a single value", what)
		return
	}
	for it := m.MapRange(); it.Next(); {
		name := it.Key().GetToken().Value
		child, known := f.children[name]
		switch {
		case !known:
			key := strings.TrimPrefix(f.key+"."+name, ".")
			r.failf(it.Key(), "unknown key %s; did you mean %s?", key, nearest(r.root, f, name))
		case child.children != nil:
			r.section(child, it.Value())
		default:
			r.leaf(child, it.Key(), it.Value())
		}
	}
}

// leaf reads one value. An empty one leaves the default in place.
func (r *fileReader) leaf(f *field, key ast.MapKeyNode, n ast.Node) {
	n = r.resolve(n)
	if n == nil || n.Type() == ast.NullType {
		return
	}
	text, ok := r.text(f, n)
	if !ok {
		r.failf(n, "%s: expected a single value", f.key)
		return
	}
	if err := f.set(text, r.env); err != nil {
		r.failf(key, "%s: %w", f.key, err)
	}
}

// text gives a scalar as it was written (a password of digits stays what it is,
// leading zeros included), and a sequence as a comma separated list.
func (r *fileReader) text(f *field, n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return strings.TrimRight(n.Value.Value, "\n"), true
	case *ast.SequenceNode:
		if _, list := reflect.TypeAssert[[]string](f.value); !list {
			return "", false
		}
		var items []string
		for _, v := range n.Values {
			item, ok := r.text(f, r.resolve(v))
			if !ok {
				return "", false
			}
			items = append(items, item)
		}
		return strings.Join(items, ","), true
	case ast.ScalarNode:
		return n.GetToken().Value, true
	}
	return "", false
}

// linkVariable holds for what Kubernetes and Docker set by themselves for a
// service named dinnerbell-kafka
// (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables);
// nobody wrote those, so they are no mistakes.
func linkVariable(name string) bool {
	return strings.HasSuffix(name, "_SERVICE_HOST") || strings.HasSuffix(name, "_PORT") ||
		strings.Contains(name, "_SERVICE_PORT") || strings.Contains(name, "_PORT_")
}

// readEnv lays the variables over cfg. A variable that begins like one of ours
// and is none is an error, like an unknown key in the file.
func (c *Config) readEnv(env Env) []error {
	root := tree(c)
	known := map[string]bool{}
	var problems []error
	for _, f := range root.leaves() {
		name := envName(f.key)
		known[name] = true
		text, ok := env[name]
		if !ok {
			continue
		}
		if err := f.set(text, env); err != nil {
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
		problems = append(problems, fmt.Errorf("unknown variable %s; did you mean %s?", name, nearestEnv(root, name)))
	}
	return problems
}

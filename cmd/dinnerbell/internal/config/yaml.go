package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v4"
)

// readFile sets cfg from the file.
func (c *Config) readFile(path string, data []byte, env Env) []error {
	r := fileReader{path: path, root: newTree(c), env: env}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		return []error{r.notYAML(err, data)}
	}
	found := false
	for {
		var doc yaml.Node
		err := loader.Load(&doc)
		switch {
		case errors.Is(err, io.EOF):
			return r.problems
		case err != nil:
			return append(r.problems, r.notYAML(err, data))
		case len(doc.Content) == 0 || isNull(doc.Content[0]):
		case found:
			r.failf(doc.Content[0], "a second YAML document; one file is one configuration")
			return r.problems
		default:
			found = true
			r.readSection(r.root, doc.Content[0])
		}
	}
}

// fileReader walks the syntax tree beside the key tree. It works on the tree,
// not through an unmarshaler, to know the line of every key.
//
// The walk is short for every file: it descends as deep as the key tree, and from
// there one list deep, so that aliases cannot multiply and an alias that contains
// itself is read once.
type fileReader struct {
	path     string
	root     *configField
	env      Env
	problems []error
}

func (r *fileReader) failf(at *yaml.Node, format string, args ...any) {
	r.problems = append(r.problems, fmt.Errorf("%s:%d: %w", r.path, at.Line, fmt.Errorf(format, args...)))
}

// notYAML returns the parser's reason and line. It replaces the parser's text about
// an alias, which repeats the file and may hold a password.
func (r *fileReader) notYAML(err error, data []byte) error {
	e, ok := errors.AsType[*yaml.LoadError](err)
	if !ok {
		return fmt.Errorf("%s: not YAML", r.path)
	}
	line, reason := e.Mark.Line, e.Message
	if e.ContextMark.Line > 0 && e.ContextMark.Line < line {
		line = e.ContextMark.Line // the begin of the construct that does not end
	}
	switch {
	case indentedByTab(data, e.Mark.Line):
		reason = "a tab before the key; YAML is indented by blanks"
	case strings.Contains(reason, "anchor"):
		reason = "an alias (*name) without its anchor (&name) before it; put a value that begins with * into quotes"
	case strings.Contains(reason, "cannot start any token"):
		reason += "; put a value that begins with %, @ or a backtick into quotes"
	case strings.Contains(reason, "mapping values are not allowed"):
		reason += "; put a value that holds a colon and a blank into quotes, and indent keys of one section alike"
	}
	if line == 0 {
		return fmt.Errorf("%s: not YAML: %s", r.path, reason)
	}
	return fmt.Errorf("%s:%d: not YAML: %s", r.path, line, reason)
}

// indentedByTab reports whether a line, counted from 1, begins with a tab.
func indentedByTab(data []byte, line int) bool {
	lines := bytes.Split(data, []byte("\n"))
	if line < 1 || line > len(lines) {
		return false
	}
	text := lines[line-1]
	return bytes.ContainsRune(text[:len(text)-len(bytes.TrimLeft(text, " \t"))], '\t')
}

// resolveAlias follows an alias to the node that holds the value. Anchors never hold
// aliases themselves.
func resolveAlias(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// isNull reports whether a value is absent or null.
func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Tag == "!!null" && n.Anchor == ""
}

// readSection reads a mapping. An empty one (all its lines commented out) leaves
// the defaults in place.
func (r *fileReader) readSection(f *configField, n *yaml.Node) {
	n = resolveAlias(n)
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		what := "the file"
		if f.key != "" {
			what = f.key
		}
		r.failf(n, "%s holds keys (key: value), not a single value or a list", what)
		return
	}
	lines := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := key.Value
		child, known := f.children[name]
		before, twice := lines[name]
		lines[name] = key.Line
		switch {
		case key.Tag == "!!merge":
			r.failf(key, "merge keys (<<) are not supported; an alias stands for a whole value or section")
		case key.Kind != yaml.ScalarNode || !known:
			r.reportUnknown(f, key)
		case twice:
			r.failf(key, "%s: set twice, first in line %d", child.key, before)
		case child.children != nil:
			r.readSection(child, value)
		default:
			r.readLeaf(child, key, value)
		}
	}
}

// keyLike matches texts that may be shown as a key. Other texts may contain a
// value: without a blank behind the colon, {url:postgres://…} is one key.
var keyLike = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,39}$`)

func (r *fileReader) reportUnknown(section *configField, key *yaml.Node) {
	if key.Kind != yaml.ScalarNode || !keyLike.MatchString(key.Value) {
		r.failf(key, "something that is no key, and not shown since it may be a secret; write key: value, with a blank behind the colon")
		return
	}
	r.failf(key, "unknown key %s%s", strings.TrimPrefix(section.key+"."+key.Value, "."), nearestKey(r.root, section, key.Value))
}

// readLeaf reads one value. An empty one leaves the default in place.
func (r *fileReader) readLeaf(f *configField, key, n *yaml.Node) {
	n = resolveAlias(n)
	if isNull(n) {
		return
	}
	text, err := leafText(f, n)
	if err == nil {
		err = f.setText(text, r.env)
	}
	if err != nil {
		r.failf(key, "%s: %w", f.key, err)
	}
}

// leafText returns a scalar as written, and a sequence as a comma separated list.
func leafText(f *configField, n *yaml.Node) (string, error) {
	if n.Kind != yaml.SequenceNode {
		return scalarText(n)
	}
	if _, list := reflect.TypeAssert[[]string](f.value); !list {
		return "", errNotSingle
	}
	items := make([]string, 0, len(n.Content))
	for _, v := range n.Content {
		item, err := scalarText(resolveAlias(v))
		if err != nil {
			return "", err
		}
		items = append(items, item)
	}
	return strings.Join(items, ","), nil
}

var errNotSingle = errors.New("expected a single value")

// scalarText returns a scalar as written: a password of digits keeps its leading
// zeros.
func scalarText(n *yaml.Node) (string, error) {
	switch {
	case n.Kind != yaml.ScalarNode:
		return "", errNotSingle
	case n.Anchor != "" && n.Tag == "!!null":
		return "", errors.New("an anchor (&name) without a value; put a value that begins with & into quotes")
	case n.Style&yaml.TaggedStyle != 0 && n.Tag != "!!str":
		return "", errors.New("tags (!name) are not supported; put a value that begins with ! into quotes")
	case n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		return strings.TrimRight(n.Value, "\n"), nil
	}
	return n.Value, nil
}

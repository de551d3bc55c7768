package config

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agnivade/levenshtein"
)

// envPrefix begins the variable of every key.
const envPrefix = "DINNERBELL_"

// configField is one node of the key tree: a section with children, or a leaf.
type configField struct {
	key      string // dotted path; "" for the root
	value    reflect.Value
	children map[string]*configField // by name; nil for a leaf
}

// newTree returns the tree of the struct's keys, by its yaml tags. Leaves point
// into cfg.
func newTree(cfg *Config) *configField { return newSubtree("", reflect.ValueOf(cfg).Elem()) }

func newSubtree(key string, v reflect.Value) *configField {
	f := &configField{key: key, value: v}
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("yaml")
		if name == "" {
			continue
		}
		if f.children == nil {
			f.children = map[string]*configField{}
		}
		path := strings.TrimPrefix(key+"."+name, ".")
		child := &configField{key: path, value: v.Field(i)}
		if v.Field(i).Kind() == reflect.Struct {
			// Secret and Table have no tagged fields and so come back as leaves.
			child = newSubtree(path, v.Field(i))
		}
		f.children[name] = child
	}
	return f
}

// allLeaves returns every key under f, sorted.
func (f *configField) allLeaves() []*configField {
	if f.children == nil {
		return []*configField{f}
	}
	var out []*configField
	for _, c := range f.children {
		out = append(out, c.allLeaves()...)
	}
	slices.SortFunc(out, func(a, b *configField) int { return strings.Compare(a.key, b.key) })
	return out
}

// envName returns the variable that overrides the key.
func envName(key string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// setText stores text in a leaf. It looks references up now, except those of a
// secret, which are looked up at every use.
func (f *configField) setText(text string, env Env) error {
	if old, ok := reflect.TypeAssert[Secret](f.value); ok {
		f.value.Set(reflect.ValueOf(Secret{key: f.key, raw: text, env: env, seen: old.seen}))
		return nil
	}
	text, err := expandText(text, env)
	if err != nil {
		return err
	}
	var v any
	switch f.value.Interface().(type) {
	case string:
		v = text
	case bool:
		v, err = parseBool(text)
	case int:
		v, err = parseInt(text)
	case time.Duration:
		var d time.Duration
		if d, err = time.ParseDuration(text); err != nil { // a rule says what is wrong with a negative one
			d, err = ParseDuration(text)
		}
		v = d
	case Table:
		v, err = parseTable(text)
	case Reserve:
		v, err = parseReserve(text)
	case Size:
		v, err = parseSize(text)
	case Age:
		var age time.Duration
		age, err = ParseDuration(text)
		v = Age(age)
	case []string:
		v = splitList(text)
	default:
		return fmt.Errorf("no way to read a %s", f.value.Type())
	}
	if err != nil {
		return err
	}
	f.value.Set(reflect.ValueOf(v))
	return nil
}

// parseBool reads true or false.
func parseBool(text string) (bool, error) {
	v, err := strconv.ParseBool(text)
	if err != nil {
		return false, fmt.Errorf("%q is neither true nor false", Excerpt(text)) // strconv's own words do not help
	}
	return v, nil
}

// parseInt reads a whole number.
func parseInt(text string) (int, error) {
	n, err := strconv.Atoi(text)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return 0, fmt.Errorf("%q is too large a number", Excerpt(text))
	case err != nil:
		return 0, fmt.Errorf("%q is not a whole number such as 3", Excerpt(text))
	}
	return n, nil
}

// splitList reads a comma separated list; blanks around the items do not count.
func splitList(s string) []string {
	var out []string
	for item := range strings.SplitSeq(s, ",") {
		if item = strings.TrimSpace(item); item != "" {
			out = append(out, item)
		}
	}
	return out
}

// nearestKey names, for a message, the known key that an unknown one was probably
// meant to be: among the siblings, then, for a key put into the wrong section, at
// every key's last part. If no key is near, it names the section's keys.
func nearestKey(root, section *configField, name string) string {
	name = strings.ToLower(name)
	best, distance := "", maxDistance(name)+1
	consider := func(key, candidate string) {
		d := levenshtein.ComputeDistance(name, candidate)
		if d < distance || d == distance && best != "" && key < best {
			best, distance = key, d
		}
	}
	for sibling, f := range section.children {
		consider(f.key, sibling)
	}
	if best == "" {
		distance = 2
		for _, f := range root.allLeaves() {
			consider(f.key, f.key[strings.LastIndexByte(f.key, '.')+1:])
		}
	}
	if best != "" {
		return "; did you mean " + best + "?"
	}
	where := section.key
	if where == "" {
		where = "the file"
	}
	return fmt.Sprintf("; %s has %s", where, strings.Join(slices.Sorted(maps.Keys(section.children)), ", "))
}

// maxDistance returns how many edits may lie between a written key and the intended
// one: two, a third of a longer key, and fewer than half of a short one.
func maxDistance(name string) int { return min(max(2, len(name)/3), (len(name)+1)/2) }

// nearestEnv names, for a message, the known variable closest to an unknown one; if none
// is near, the variables of the section that is.
func nearestEnv(root *configField, name string) string {
	rest := strings.TrimPrefix(name, envPrefix)
	best, distance := "", maxDistance(rest)+1
	for _, f := range root.allLeaves() {
		known := envName(f.key)
		if d := levenshtein.ComputeDistance(name, known); d < distance {
			best, distance = known, d
		}
	}
	if best != "" {
		return "; did you mean " + best + "?"
	}
	first, _, _ := strings.Cut(strings.ToLower(rest), "_")
	for _, section := range slices.Sorted(maps.Keys(root.children)) {
		if levenshtein.ComputeDistance(first, section) > min(2, len(section)/3) {
			continue
		}
		var list []string
		for _, f := range root.children[section].allLeaves() {
			list = append(list, envName(f.key))
		}
		return "; the variables of " + section + " are " + strings.Join(list, ", ")
	}
	return "; a key such as source.url is " + envName("source.url")
}

package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest/generated"
)

// The reference of the keys in docs/configuration.md is made from the struct, its
// defaults and the table of rules.
func TestConfigurationIsDocumented(t *testing.T) {
	t.Parallel()
	leaves := map[string]*configField{}
	for _, f := range newTree(Defaults()).allLeaves() {
		leaves[f.key] = f
	}
	var overview, details strings.Builder
	overview.WriteString("| key | type | default | accepted | changes on SIGHUP |\n|---|---|---|---|---|\n")
	section := ""
	for _, r := range rules {
		f, ok := leaves[r.key]
		if !ok {
			t.Errorf("the rule of %s has no key, or is there twice", r.key)
			continue
		}
		delete(leaves, r.key)
		if name, _, _ := strings.Cut(r.key, "."); name != section {
			section = name
			fmt.Fprintf(&details, "\n### %s\n", section)
		}
		fmt.Fprintf(&overview, "| [`%s`](#%s) | %s | %s | %s | %s |\n", r.key, anchor(r.key), typeText(f), defaultText(r, f), acceptedText(r), map[bool]string{true: "yes"}[r.reload])
		fmt.Fprintf(&details, "\n#### `%s`\n%s\n\n%s\n", r.key, r.meaning, factsText(r, f))
	}
	for key := range leaves {
		t.Errorf("%s has no rule in rules.go, and so no documentation", key)
	}
	generated.Check(t, "../../../../docs/configuration.md", "keys", overview.String()+details.String())
}

// anchor is the id that Markdown readers give to a heading.
func anchor(key string) string { return strings.ReplaceAll(key, ".", "") }

// factsText is the line below the text of a key.
func factsText(r keyRule, f *configField) string {
	facts := []string{typeText(f), "default " + defaultText(r, f)}
	if r.byDefault == "required" {
		facts[1] = "required"
	}
	if a := acceptedText(r); a != "" {
		facts = append(facts, a)
	}
	if r.reload {
		facts = append(facts, "changes on SIGHUP")
	}
	return "*" + strings.Join(facts, " · ") + "* · `" + envName(r.key) + "`"
}

func typeText(f *configField) string {
	switch f.value.Interface().(type) {
	case bool:
		return "`true` or `false`"
	case int:
		return "whole number"
	case time.Duration:
		return "duration (`500ms`, `5s`, `12h`, `7d`)"
	case Age:
		return "duration (`500ms`, `5s`, `12h`, `7d`)"
	case Size, Reserve:
		return "size (`500MB` is 5·10⁸ bytes, `2GiB` 2³¹)"
	case Table:
		return "table"
	case []string:
		return "list"
	case Secret:
		if strings.HasSuffix(f.key, ".url") {
			return "Postgres address, secret"
		}
		return "secret"
	}
	return "string"
}

func defaultText(r keyRule, f *configField) string {
	if r.byDefault != "" {
		return r.byDefault
	}
	text := fmt.Sprint(f.value.Interface())
	switch v := f.value.Interface().(type) {
	case []string:
		text = strings.Join(v, ", ")
	case time.Duration:
		text = shortDuration(v)
	case Age:
		text = fmt.Sprintf("%dd", time.Duration(v)/(24*time.Hour))
	case Size:
		text = fmt.Sprintf("%dMB", v/1e6)
	}
	return "`" + text + "`"
}

// shortDuration writes 5m0s as 5m.
func shortDuration(d time.Duration) string {
	text := d.String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(text, zero) {
			text = text[:len(text)-2]
		}
	}
	return text
}

func acceptedText(r keyRule) string {
	var parts []string
	if r.words != nil {
		parts = append(parts, "`"+strings.Join(r.words, "`, `")+"`")
	}
	if r.least != "" && r.least != "0" {
		parts = append(parts, "at least `"+r.least+"`")
	}
	if r.zero != "" {
		parts = append(parts, "`0`: "+r.zero)
	}
	return strings.Join(parts, "; ")
}

// What the documentation names as accepted is accepted, and nothing else is: each word,
// each bound, and each value just outside.
func TestDocumentedBoundsHold(t *testing.T) {
	t.Parallel()
	for _, r := range rules {
		accepted, refused := slices.Clone(r.words), []string(nil)
		if r.words != nil {
			refused = append(refused, "no-such-word")
		}
		if r.least != "" {
			accepted, refused = append(accepted, r.least), append(refused, below(t, r))
		}
		switch {
		case r.zero != "":
			accepted = append(accepted, "0")
		case r.least != "" && r.least != "0":
			refused = append(refused, "0")
		}
		for _, text := range accepted {
			if err := problemOf(r.key, text); err != nil {
				t.Errorf("%s: %s is documented as accepted: %v", r.key, text, err)
			}
		}
		for _, text := range refused {
			if err := problemOf(r.key, text); err == nil || !strings.Contains(err.Error(), r.key) {
				t.Errorf("%s: %s is accepted, or refused without the key's name: %v", r.key, text, err)
			}
		}
	}
}

// below returns a value just below the smallest accepted one.
func below(t *testing.T, r keyRule) string {
	t.Helper()
	f := newTree(Defaults()).leafAt(r.key)
	leaf := configField{key: r.key, value: f}
	if err := leaf.setText(r.least, nil); err != nil {
		t.Fatal(err)
	}
	n := f.Int() - 1
	switch f.Interface().(type) {
	case Age, time.Duration:
		return time.Duration(n).String()
	case Size:
		return fmt.Sprintf("%dB", n)
	}
	return fmt.Sprint(n)
}

// problemOf validates an otherwise complete configuration in which one key has a value.
func problemOf(key, text string) error {
	cfg := Defaults()
	set := func(key, text string) error {
		f := configField{key: key, value: newTree(cfg).leafAt(key)}
		return f.setText(text, Env{})
	}
	for k, v := range map[string]string{"source.url": "postgres://u@db/de", "kafka.brokers": "k:9092"} {
		if err := set(k, v); err != nil {
			return err
		}
	}
	if key == "kafka.sasl.mechanism" {
		needs := map[string]string{"kafka.sasl.username": "somebody", "kafka.sasl.password": "somebody"}
		switch text {
		case OAuthBearer:
			needs = map[string]string{"kafka.sasl.token": "a.b.c"}
		case AWSMSKIAM:
			needs = map[string]string{"kafka.sasl.aws.credentials_command": "aws"}
		}
		for k, v := range needs {
			if err := set(k, v); err != nil {
				return err
			}
		}
	}
	if err := set(key, text); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return cfg.Validate()
}

// Every key that is documented to change on SIGHUP is reported so, and every other one
// as a key that needs a restart.
func TestDocumentedReloads(t *testing.T) {
	t.Parallel()
	for _, r := range rules {
		before, after := Defaults(), Defaults()
		f := newTree(after).leafAt(r.key)
		switch f.Kind() {
		case reflect.String:
			f.SetString("another")
		case reflect.Int, reflect.Int64:
			f.SetInt(f.Int() + 1)
		case reflect.Bool:
			f.SetBool(!f.Bool())
		default:
			leaf := configField{key: r.key, value: f}
			if err := leaf.setText("1%", Env{}); err != nil {
				t.Fatal(err)
			}
		}
		now, restart := ChangedKeys(before, after)
		if got := slices.Contains(now, r.key); got != r.reload || len(now)+len(restart) != 1 {
			t.Errorf("%s: now %v, restart %v; documented: %v", r.key, now, restart, r.reload)
		}
	}
}
